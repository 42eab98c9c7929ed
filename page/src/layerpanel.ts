/** The panel of the layers: which are shown and how strongly, the threshold, what is not mapped, other maps, files. */

import { results, type Job, type NotMapped } from './api';
import { fill, h } from './dom';
import { failure } from './failure';
import { t } from './language';
import type { Layer } from './layers';
import { rasterName } from './names';
import { area, moment, number } from './quantities';

/** One row for each layer: a box to show it, a slider to fade it. */
export function layerRows(layers: Layer[], changed: (name: string, visible: boolean, opacity: number) => void): HTMLElement {
  const rows = layers.map(({ name, layer }) => {
    const id = `layer-${name}`;
    const words = () => t().layer[name] ?? name;
    const tell = () => {
      fade.disabled = !box.checked;
      changed(name, box.checked, fade.valueAsNumber);
    };
    const box = h('input', { type: 'checkbox', id, checked: layer.getVisible(), on: { change: tell } });
    const fade = h('input', {
      type: 'range',
      min: 0,
      max: 1,
      step: 0.05,
      value: layer.getOpacity(),
      disabled: !layer.getVisible(),
      'aria-label': () => t().opacityOf(words()),
      on: { input: tell },
    });
    return h('li', {}, box, h('label', { for: id }, words), fade);
  });
  // What lies on top stands on top.
  return h('ul', { class: 'layers' }, ...rows.reverse());
}

/** How much is not mapped, and why. */
export function notMappedFacts(areas: NotMapped): HTMLElement {
  const byReason = new Map<string, number>();
  for (const { properties } of areas.features) byReason.set(properties.reason, (byReason.get(properties.reason) ?? 0) + properties.area_m2);
  if (!byReason.size) return h('p', { class: 'soft' }, () => t().notMappedNothing);
  const all = [...byReason.values()].reduce((sum, one) => sum + one, 0);
  return h(
    'div',
    {},
    h('p', {}, () => t().notMappedSome(area(all))),
    h('ul', {}, ...[...byReason].sort((a, b) => b[1] - a[1]).map(([reason, size]) => h('li', {}, () => `${t().reason(reason)}: ${area(size)}`))),
  );
}

/** The maps of the same raster that this one can be compared with. */
export function compareChoice(id: string, others: Job[], other: string | null): HTMLElement {
  if (!others.length) return h('p', { class: 'soft' }, () => t().compareNone);
  const go = () => {
    location.hash = choice.value ? `#/jobs/${id}/compare/${choice.value}` : `#/jobs/${id}`;
  };
  const choice = h('select', { id: 'compare', on: { change: go } }, h('option', { value: '' }, () => t().compareNo));
  for (const job of others) {
    const words = () => {
      const { model, version, threshold } = job.inputs;
      return [t().jobModel(model, version), threshold === null ? null : number(threshold, 2), moment(job.created)].filter((part) => part !== null).join(' · ');
    };
    choice.append(h('option', { value: job.jobID, selected: job.jobID === other }, words));
  }
  return h('div', {}, h('label', { for: 'compare' }, () => t().compareWith), choice);
}

/** The files of a map, to be downloaded. */
export async function showFiles(id: string, place: HTMLElement): Promise<void> {
  try {
    const files = Object.entries(await results(id));
    const entry = ([name, { href }]: (typeof files)[number]) =>
      h('li', {}, h('a', { href, target: '_blank', rel: 'noopener' }, () => t().fileNames[name] ?? rasterName(href)));
    fill(place, h('ul', { class: 'files' }, ...files.map(entry)));
  } catch (error) {
    fill(place, failure(() => t().files, error, () => void showFiles(id, place)));
  }
}
