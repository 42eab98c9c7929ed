/** Map area: one map, or two with a divider, with legend and notices. */

import type MapBrowserEvent from 'ol/MapBrowserEvent';

import { announce } from './announce';
import { button, fill, h } from './dom';
import type { JobMapView } from './jobmap';
import type { JobState } from './jobstate';
import { t } from './language';
import { Legend } from './legend';
import { number } from './quantities';
import { Swipe } from './swipe';

export class MapArea {
  readonly element: HTMLElement;
  readonly notice = h('div', { class: 'map-notice' });
  private readonly legend = new Legend();
  private readonly swipe: Swipe | null = null;

  constructor(private readonly state: JobState) {
    const { main, second, editing } = state;
    this.element = h('div', { class: 'map-area' }, main.frame.element, this.legend.element, editing.bar, this.notice);
    if (second) this.swipe = addComparison(main, second, this.element);
    for (const map of state.maps) map.onTileFailure(() => this.showTileFailures());
    main.map.on('click', (event) => this.clicked(event));
    state.onChange(() => this.show());
  }

  show(): void {
    const { visibleLayers, threshold, main } = this.state;
    this.legend.show(visibleLayers, threshold, main.review.unsaved.length > 0);
  }

  private showTileFailures(): void {
    const { maps } = this.state;
    const failed = maps.reduce((sum, map) => sum + map.failedTiles, 0);
    const again = () => {
      fill(this.notice);
      for (const map of maps) map.refresh();
    };
    const words = h('p', {}, () => t().tilesFailed(failed));
    fill(this.notice, h('div', { class: 'notice wrong', role: 'alert' }, words, button(() => t().tryAgain, again)));
  }

  private clicked({ pixel }: MapBrowserEvent): void {
    const { main, second, editing } = this.state;
    if (editing.active) return;
    if (this.swipe?.isRight(pixel[0] ?? 0)) {
      if (second?.polygonAt(pixel)) announce(t().otherMap);
      return;
    }
    this.state.select(main.polygonAt(pixel));
  }
}

/** Place the second map over the first; both share one view. */
function addComparison(main: JobMapView, second: JobMapView, area: HTMLElement): Swipe {
  second.map.setView(main.map.getView());
  const { target } = second.frame;
  target.classList.add('upper');
  // Pointer and keyboard move the first map, and through the shared view this one.
  target.removeAttribute('tabindex');
  target.setAttribute('aria-hidden', 'true');
  const swipe = new Swipe(area, target);
  main.frame.target.after(target);
  area.append(mapLabel('left', main), mapLabel('right', second), swipe.handle);
  return swipe;
}

function mapLabel(name: 'left' | 'right', { facts }: JobMapView): HTMLElement {
  const model = () => `${t().jobModel(facts.model, facts.version)} · ${number(facts.threshold, 2)}`;
  return h('p', { class: `side ${name}` }, h('span', { class: 'hidden-visually' }, () => `${t()[name]}: `), model);
}
