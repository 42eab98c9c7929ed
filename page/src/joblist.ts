/** List of maps with their inputs, progress and actions. */

import { dismissJob, listJobs, type Job, type Raster } from './api';
import { announce } from './announce';
import { confirmAction } from './dialogue';
import { button, fill, h } from './dom';
import { failureNotice } from './failure';
import { localise, t } from './language';
import { rasterName } from './rasternames';
import { area, moment, number } from './quantities';

const PAGE_SIZE = 30;
const ACTIVE_POLL_INTERVAL_MS = 1500;
const IDLE_POLL_INTERVAL_MS = 10_000;

const isUnfinished = (job: Job): boolean => job.status === 'accepted' || job.status === 'running';

export class JobList {
  readonly element: HTMLElement;
  private readonly list = h('ul', { class: 'jobs' });
  private readonly state = h('div');
  private readonly closing = new AbortController();
  private jobs: Job[] = [];
  private synthetic = new Set<string>();
  private limit = PAGE_SIZE;
  private timer = 0;

  constructor() {
    this.element = h(
      'section',
      { class: 'card', 'aria-labelledby': 'maps-title' },
      h('h2', { id: 'maps-title' }, () => t().maps),
      this.state,
      this.list,
    );
    localise(this.list, () => this.show());
    fill(this.state, h('p', { class: 'soft' }, () => t().loading));
    void this.poll();
  }

  /** Mark the maps of synthetic rasters. */
  setRasters(rasters: Raster[]): void {
    this.synthetic = new Set(rasters.filter((raster) => raster.synthetic).map(({ href }) => href));
    this.show();
  }

  close(): void {
    this.closing.abort();
    clearTimeout(this.timer);
  }

  /** Request the list now instead of at the next interval. */
  async poll(): Promise<void> {
    clearTimeout(this.timer);
    try {
      const { jobs: found } = await listJobs(this.limit, this.closing.signal);
      this.announceFinished(found);
      this.jobs = found;
      fill(this.state, found.length ? null : h('p', { class: 'soft' }, () => t().noMaps));
      this.show();
    } catch (error) {
      if (this.closing.signal.aborted) return;
      fill(this.state, failureNotice(() => t().mapsFailed, error, () => void this.poll()));
    }
    const wait = this.jobs.some(isUnfinished) && !document.hidden ? ACTIVE_POLL_INTERVAL_MS : IDLE_POLL_INTERVAL_MS;
    if (!this.closing.signal.aborted) this.timer = window.setTimeout(() => void this.poll(), wait);
  }

  private announceFinished(found: Job[]): void {
    const before = new Map(this.jobs.map((job) => [job.jobID, job]));
    for (const job of found) {
      const was = before.get(job.jobID);
      if (!was || !isUnfinished(was)) continue;
      if (job.status === 'successful') announce(t().jobReady(rasterName(job.inputs.raster)));
      if (job.status === 'failed') announce(t().jobFailed(rasterName(job.inputs.raster)));
    }
  }

  private show(): void {
    // The list is built anew, so the focus is moved to the same button of the same map.
    const focused = this.list.contains(document.activeElement) ? document.activeElement?.id : undefined;
    fill(this.list, ...this.jobs.filter((job) => job.status !== 'dismissed').map((job) => this.entry(job)));
    if (this.jobs.length >= this.limit) {
      const more = () => {
        this.limit += PAGE_SIZE;
        void this.poll();
      };
      this.list.append(h('li', { class: 'more' }, button(() => t().showMore, more, { id: 'more-maps' })));
    }
    if (focused) document.getElementById(focused)?.focus();
  }

  private entry(job: Job): HTMLElement {
    const name = rasterName(job.inputs.raster);
    return h(
      'li',
      { class: `job ${job.status}` },
      h(
        'div',
        { class: 'job-facts' },
        h(
          'p',
          { class: 'job-name' },
          h('strong', {}, name),
          h('span', { class: `chip ${job.status}` }, t().status[job.status]),
          this.synthetic.has(job.inputs.raster) ? h('span', { class: 'chip synthetic' }, t().synthetic) : null,
        ),
        h('p', { class: 'soft' }, jobFacts(job)),
        h('p', { class: 'soft' }, t().createdAt(moment(job.created))),
        isUnfinished(job)
          ? h('progress', { max: 100, value: job.progress, 'aria-label': t().progressOf(name) }, `${job.progress} %`)
          : null,
        job.status === 'failed' && job.message ? h('p', { class: 'wrong-text' }, job.message) : null,
      ),
      h(
        'div',
        { class: 'actions' },
        job.status === 'successful'
          ? h(
              'a',
              {
                class: 'button primary',
                href: `#/jobs/${job.jobID}`,
                id: `open-${job.jobID}`,
                'aria-label': t().openMap(name),
              },
              t().open,
            )
          : null,
        button(isUnfinished(job) ? t().stop : t().remove, () => void this.dismiss(job), {
          id: `dismiss-${job.jobID}`,
          'aria-label': isUnfinished(job) ? t().stopMap(name) : t().removeMap(name),
        }),
      ),
    );
  }

  private async dismiss(job: Job): Promise<void> {
    const sure = isUnfinished(job) || (await confirmAction(() => t().removeTitle, () => t().removeText, () => t().remove));
    if (!sure) return;
    try {
      await dismissJob(job.jobID);
      await this.poll();
    } catch (error) {
      fill(this.state, failureNotice(() => t().removeFailed, error, () => void this.dismiss(job)));
    }
  }
}

function jobFacts(job: Job): string {
  const { model, version, threshold, minimum_area: minimum } = job.inputs;
  return [
    t().jobModel(model, version),
    threshold === null ? null : t().jobThreshold(number(threshold, 2)),
    minimum ? t().jobMinimum(area(minimum)) : null,
  ]
    .filter((part) => part !== null)
    .join(' · ');
}
