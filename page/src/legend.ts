/** Legend of the visible layers. */

import { FALSE_POSITIVE, TRUE_POSITIVE, INVENTORY_COLOUR, FALSE_NEGATIVE, PROBABILITY_RAMP, css, type Colour } from './colours';
import { fill, h } from './dom';
import { t } from './language';
import { LINE_STYLES } from './polygons';
import { number } from './quantities';

export class Legend {
  readonly element: HTMLDetailsElement;
  private readonly body = h('div', { class: 'legend-body' });

  constructor() {
    const narrow = matchMedia('(max-width: 900px)').matches;
    this.element = h('details', { class: 'legend', open: !narrow }, h('summary', {}, () => t().legend), this.body);
  }

  show(visible: ReadonlySet<string>, threshold: number, unsaved: boolean): void {
    fill(
      this.body,
      visible.has('probability') ? ramp(threshold) : null,
      visible.has('confusion')
        ? list([
            [swatch(TRUE_POSITIVE), t().truePositive, t().truePositiveTerm],
            [swatch(FALSE_POSITIVE), t().falsePositive, t().falsePositiveTerm],
            [swatch(FALSE_NEGATIVE), t().falseNegative, t().falseNegativeTerm],
            [h('i', { class: 'swatch clear' }), t().trueNegative, t().trueNegativeTerm],
          ])
        : null,
      visible.has('inventory') ? list([[swatch(INVENTORY_COLOUR), t().inventoryLegend]]) : null,
      visible.has('polygons')
        ? list([
            [line('unreviewed'), t().polygonLegend.unreviewed],
            [line('accepted'), t().polygonLegend.accepted],
            [line('rejected'), t().polygonLegend.rejected],
            ...(unsaved ? [[line('unsaved'), t().unsavedLegend] as const] : []),
          ])
        : null,
      visible.has('not_mapped') ? list([[h('i', { class: 'swatch hatch' }), t().notMappedLegend]]) : null,
    );
  }
}

function list(entries: (readonly [mark: HTMLElement, words: string, term?: string])[]): HTMLElement {
  const entry = ([mark, words, term]: (typeof entries)[number]) =>
    h('li', {}, mark, h('span', {}, words, term ? h('span', { class: 'soft' }, ` (${term})`) : null));
  return h('ul', {}, ...entries.map(entry));
}

function swatch(colour: Colour): HTMLElement {
  const mark = h('i', { class: 'swatch' });
  mark.style.background = css(colour);
  return mark;
}

function line(kind: keyof typeof LINE_STYLES): HTMLElement {
  const { colour, dash } = LINE_STYLES[kind];
  const mark = h('i', { class: 'swatch line' });
  mark.style.borderColor = colour;
  mark.style.borderStyle = dash ? (dash[0]! < 4 ? 'dotted' : 'dashed') : 'solid';
  return mark;
}

function ramp(threshold: number): HTMLElement {
  const bar = h('i', { class: 'ramp' });
  const stops = PROBABILITY_RAMP.map(([at, colour]) => `${css(colour)} ${at * 100}%`);
  const clear = `linear-gradient(to right, var(--card) ${threshold * 100}%, transparent ${threshold * 100}%)`;
  bar.style.background = `${clear}, linear-gradient(to right, ${stops.join(', ')})`;
  return h(
    'div',
    { class: 'ramp-entry' },
    h('p', {}, t().legendProbability(number(threshold, 2))),
    bar,
    h('div', { class: 'row soft' }, h('span', {}, number(0)), h('span', {}, number(0.5, 1)), h('span', {}, number(1))),
  );
}
