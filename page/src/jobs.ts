/** The list of maps: what each is made of, how far it is, and what can be done with it. */

import { dismiss, jobs, type Job, type Raster } from './api';
import { announce } from './announce';
import { confirmed } from './dialogue';
import { button, fill, h } from './dom';
import { failure } from './failure';
import { speak, t } from './language';
import { rasterName } from './names';
import { area, moment, number } from './quantities';

const PAGE = 30;
const OFTEN = 1500;
const SELDOM = 10_000;

const alive = (job: Job): boolean => job.status === 'accepted' || job.status === 'running';

export class JobList {
  readonly element: HTMLElement;
  private readonly list = h('ul', { class: 'jobs' });
  private readonly state = h('div');
  private readonly closing = new AbortController();
  private known: Job[] = [];
  private synthetic = new Set<string>();
  private limit = PAGE;
  private timer = 0;

  constructor() {
    this.element = h(
      'section',
      { class: 'card', 'aria-labelledby': 'maps-title' },
      h('h2', { id: 'maps-title' }, () => t().maps),
      this.state,
      this.list,
    );
    speak(this.list, () => this.show());
    fill(this.state, h('p', { class: 'soft' }, () => t().loading));
    void this.poll();
  }

  /** Says of maps whose rasters are synthetic that they are. */
  setRasters(rasters: Raster[]): void {
    this.synthetic = new Set(rasters.filter((raster) => raster.synthetic).map(({ href }) => href));
    this.show();
  }

  close(): void {
    this.closing.abort();
    clearTimeout(this.timer);
  }

  /** Asks at once, rather than when its time has come. */
  async poll(): Promise<void> {
    clearTimeout(this.timer);
    try {
      const { jobs: found } = await jobs(this.limit, this.closing.signal);
      this.tell(found);
      this.known = found;
      fill(this.state, found.length ? null : h('p', { class: 'soft' }, () => t().mapsNone));
      this.show();
    } catch (error) {
      if (this.closing.signal.aborted) return;
      fill(this.state, failure(() => t().mapsFailed, error, () => void this.poll()));
    }
    const wait = this.known.some(alive) && !document.hidden ? OFTEN : SELDOM;
    if (!this.closing.signal.aborted) this.timer = window.setTimeout(() => void this.poll(), wait);
  }

  private tell(found: Job[]): void {
    const before = new Map(this.known.map((job) => [job.jobID, job]));
    for (const job of found) {
      const was = before.get(job.jobID);
      if (!was || !alive(was)) continue;
      if (job.status === 'successful') announce(t().jobReady(rasterName(job.inputs.raster)));
      if (job.status === 'failed') announce(t().jobFailed(rasterName(job.inputs.raster)));
    }
  }

  private show(): void {
    // The focus outlives the renewal: it is on the same button of the same map after it.
    const focused = this.list.contains(document.activeElement) ? document.activeElement?.id : undefined;
    fill(this.list, ...this.known.filter((job) => job.status !== 'dismissed').map((job) => this.entry(job)));
    if (this.known.length >= this.limit) {
      const more = () => {
        this.limit += PAGE;
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
        h('p', { class: 'soft' }, facts(job)),
        h('p', { class: 'soft' }, t().createdAt(moment(job.created))),
        alive(job)
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
        button(alive(job) ? t().stop : t().remove, () => void this.dismiss(job), {
          id: `dismiss-${job.jobID}`,
          'aria-label': alive(job) ? t().stopMap(name) : t().removeMap(name),
        }),
      ),
    );
  }

  private async dismiss(job: Job): Promise<void> {
    const sure = alive(job) || (await confirmed(() => t().removeTitle, () => t().removeText, () => t().remove));
    if (!sure) return;
    try {
      await dismiss(job.jobID);
      await this.poll();
    } catch (error) {
      fill(this.state, failure(() => t().removeFailed, error, () => void this.dismiss(job)));
    }
  }
}

function facts(job: Job): string {
  const { model, version, threshold, minimum_area: minimum } = job.inputs;
  return [
    t().jobModel(model, version),
    threshold === null ? null : t().jobThreshold(number(threshold, 2)),
    minimum ? t().jobMinimum(area(minimum)) : null,
  ]
    .filter((part) => part !== null)
    .join(' · ');
}
