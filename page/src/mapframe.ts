/** OpenLayers map with localised zoom buttons. */

import OlMap from 'ol/Map';
import View from 'ol/View';
import ScaleLine from 'ol/control/ScaleLine';
import { defaults } from 'ol/interaction/defaults';
import { transformExtent } from 'ol/proj';
import 'ol/ol.css';

import type { Bounds } from './api';
import { button, h } from './dom';
import { t } from './language';

export const supportsWebGL2 = (): boolean => document.createElement('canvas').getContext('webgl2') !== null;

export class MapFrame {
  readonly element: HTMLElement;
  readonly target: HTMLElement;
  readonly map: OlMap;
  private readonly extent: number[];

  constructor(bounds: Bounds, maxZoom: number) {
    this.extent = transformExtent(bounds, 'EPSG:4326', 'EPSG:3857');
    this.target = h('div', { class: 'map', tabindex: 0, role: 'application', 'aria-label': () => t().mapLabel });
    this.map = new OlMap({
      target: this.target,
      controls: [new ScaleLine()],
      interactions: defaults({ altShiftDragRotate: false, pinchRotate: false }),
      view: new View({ center: [0, 0], zoom: 2, maxZoom: maxZoom + 3, enableRotation: false }),
    });
    const zoom = (by: number) => () => this.map.getView().animate({ zoom: (this.map.getView().getZoom() ?? 0) + by, duration: 150 });
    const tool = (words: () => string, sign: string, onClick: () => void) =>
      button(sign, onClick, { 'aria-label': words, title: words, class: 'button plain round' });
    this.element = h(
      'div',
      { class: 'map-frame' },
      this.target,
      h(
        'div',
        { class: 'map-tools' },
        tool(() => t().zoomIn, '+', zoom(1)),
        tool(() => t().zoomOut, '−', zoom(-1)),
        tool(() => t().wholeMap, '⤢', () => this.fit()),
      ),
    );
  }

  /** Show the whole raster. */
  fit(): void {
    this.map.updateSize();
    this.map.getView().fit(this.extent, { padding: [30, 30, 30, 30] });
    // Until a frame is drawn, OpenLayers would resolve a click in the earlier view.
    this.map.renderSync();
  }

  /** Zoom to an extent, but keep its surroundings visible. */
  zoomTo(extent: number[]): void {
    const view = this.map.getView();
    view.fit(extent, { padding: [90, 90, 90, 90], maxZoom: view.getMaxZoom() - 2, duration: prefersReducedMotion() ? 0 : 250 });
    this.map.renderSync();
  }

  close(): void {
    this.map.setTarget(undefined);
    this.map.dispose();
  }
}

export const prefersReducedMotion = (): boolean => matchMedia('(prefers-reduced-motion: reduce)').matches;
