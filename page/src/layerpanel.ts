/** Layer panel: layers, threshold, unmapped areas, comparison and files. */

import { getResults, listJobs, type Job, type NotMapped } from './api';
import { button, fill, h } from './dom';
import { failureNotice } from './failure';
import type { JobState } from './jobstate';
import { t } from './language';
import type { Layer } from './layers';
import { rasterName } from './rasternames';
import { area, moment, number } from './quantities';
import { ThresholdSlider } from './thresholdslider';

const MAX_LISTED_JOBS = 200;

type LayerChange = (name: string, visible: boolean, opacity: number) => void;

export class LayerPanel {
  readonly element: HTMLElement;
  private readonly mapAgainButton: HTMLButtonElement;
  private readonly notMapped = h('div', {}, h('p', { class: 'soft' }, () => t().loading));
  private readonly compare = h('div');
  private readonly files = h('div');

  /** Create the panel; `mapAgain` starts a map with the threshold of the slider. */
  constructor(
    private readonly state: JobState,
    private readonly signal: AbortSignal,
    mapAgain: () => void,
  ) {
    const { main, second } = state;
    const label = () => (second ? t().leftThreshold : t().mapThreshold);
    const moved = (threshold: number) => state.setThreshold(threshold);
    const slider = new ThresholdSlider('map-threshold', label, main.facts.threshold, moved);
    this.mapAgainButton = button(() => this.mapAgainText(), mapAgain, { id: 'map-again' });
    this.element = h(
      'section',
      { class: 'panel layer-panel', 'aria-labelledby': 'layers-title' },
      h('h2', { id: 'layers-title' }, () => t().layers),
      layerRows(main.layers.all, (name, visible, opacity) => state.setLayer(name, visible, opacity)),
      slider.element,
      second ? secondSlider(state).element : null,
      h('p', { class: 'soft' }, () => t().sliderNote(number(main.facts.threshold, 2))),
      state.mayReview ? this.mapAgainButton : null,
      h('h3', {}, () => t().notMapped),
      this.notMapped,
      h('h3', {}, () => t().compare),
      this.compare,
      h('h3', {}, () => t().files),
      this.files,
    );
    state.onChange(() => this.show());
  }

  show(): void {
    this.mapAgainButton.hidden = !this.state.thresholdMoved;
    this.mapAgainButton.textContent = this.mapAgainText();
  }

  /** Load the lists of the panel: unmapped areas, other maps and files. */
  async load(): Promise<void> {
    await Promise.all([this.showNotMapped(), this.showCompare(), showFiles(this.state.main.job.jobID, this.files)]);
  }

  private mapAgainText(): string {
    return t().mapAgain(number(this.state.threshold, 2));
  }

  private async showNotMapped(): Promise<void> {
    try {
      const [areas] = await Promise.all(this.state.maps.map((map) => map.loadNotMapped()));
      fill(this.notMapped, notMappedList(areas!));
    } catch (error) {
      fill(this.notMapped, failureNotice(() => t().notMappedFailed, error, () => void this.showNotMapped()));
    }
  }

  private async showCompare(): Promise<void> {
    const { job } = this.state.main;
    const comparable = (one: Job) =>
      one.status === 'successful' && one.jobID !== job.jobID && one.inputs.raster === job.inputs.raster;
    try {
      const { jobs: all } = await listJobs(MAX_LISTED_JOBS, this.signal);
      const other = this.state.second?.job.jobID ?? null;
      fill(this.compare, compareChoice(job.jobID, all.filter(comparable), other));
    } catch (error) {
      if (this.signal.aborted) return;
      fill(this.compare, failureNotice(() => t().compare, error, () => void this.showCompare()));
    }
  }
}

function secondSlider({ second }: JobState): ThresholdSlider {
  const { facts, layers } = second!;
  const moved = (threshold: number) => layers.setThreshold(threshold);
  return new ThresholdSlider('second-threshold', () => t().rightThreshold, facts.threshold, moved);
}

/** Create a row for each layer, with a checkbox and an opacity slider. */
function layerRows(layers: Layer[], changed: LayerChange): HTMLElement {
  const rows = layers.map(({ name, layer }) => {
    const id = `layer-${name}`;
    const words = () => t().layer[name] ?? name;
    const notify = () => {
      fade.disabled = !box.checked;
      changed(name, box.checked, fade.valueAsNumber);
    };
    const box = h('input', { type: 'checkbox', id, checked: layer.getVisible(), on: { change: notify } });
    const fade = h('input', {
      type: 'range',
      min: 0,
      max: 1,
      step: 0.05,
      value: layer.getOpacity(),
      disabled: !layer.getVisible(),
      'aria-label': () => t().opacityOf(words()),
      on: { input: notify },
    });
    return h('li', {}, box, h('label', { for: id }, words), fade);
  });
  // The list starts with the topmost layer.
  return h('ul', { class: 'layers' }, ...rows.reverse());
}

/** List the unmapped area by reason. */
function notMappedList(areas: NotMapped): HTMLElement {
  const byReason = new Map<string, number>();
  for (const { properties: { reason, area_m2: size } } of areas.features) {
    byReason.set(reason, (byReason.get(reason) ?? 0) + size);
  }
  if (!byReason.size) return h('p', { class: 'soft' }, () => t().notMappedNone);
  const all = [...byReason.values()].reduce((sum, one) => sum + one, 0);
  const largest = [...byReason].sort((a, b) => b[1] - a[1]);
  return h(
    'div',
    {},
    h('p', {}, () => t().notMappedSome(area(all))),
    h('ul', {}, ...largest.map(([reason, size]) => h('li', {}, () => `${t().reason(reason)}: ${area(size)}`))),
  );
}

/** Create the menu of other maps of the same raster. */
function compareChoice(id: string, others: Job[], other: string | null): HTMLElement {
  if (!others.length) return h('p', { class: 'soft' }, () => t().nothingToCompare);
  const go = () => {
    location.hash = choice.value ? `#/jobs/${id}/compare/${choice.value}` : `#/jobs/${id}`;
  };
  const choice = h('select', { id: 'compare', on: { change: go } }, h('option', { value: '' }, () => t().noComparison));
  for (const job of others) {
    const words = () => {
      const { model, version, threshold } = job.inputs;
      const parts = [t().jobModel(model, version), threshold === null ? null : number(threshold, 2), moment(job.created)];
      return parts.filter((part) => part !== null).join(' · ');
    };
    choice.append(h('option', { value: job.jobID, selected: job.jobID === other }, words));
  }
  return h('div', {}, h('label', { for: 'compare' }, () => t().compareWith), choice);
}

/** Load and list the files of a map. */
async function showFiles(id: string, container: HTMLElement): Promise<void> {
  try {
    const files = Object.entries(await getResults(id));
    const entry = ([name, { href }]: (typeof files)[number]) =>
      h('li', {}, h('a', { href, target: '_blank', rel: 'noopener' }, () => t().fileNames[name] ?? rasterName(href)));
    fill(container, h('ul', { class: 'files' }, ...files.map(entry)));
  } catch (error) {
    fill(container, failureNotice(() => t().files, error, () => void showFiles(id, container)));
  }
}
