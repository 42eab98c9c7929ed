/** Map mode for drawing and redrawing polygons, with its toolbar. */

import Collection from 'ol/Collection';
import Feature from 'ol/Feature';
import type OlMap from 'ol/Map';
import { click, never, primaryAction, singleClick } from 'ol/events/condition';
import type { Geometry } from 'ol/geom';
import Draw from 'ol/interaction/Draw';
import Modify from 'ol/interaction/Modify';
import VectorLayer from 'ol/layer/Vector';
import VectorSource from 'ol/source/Vector';

import { announce } from './announce';
import { button, fill, h, type Words } from './dom';
import { t } from './language';
import { sketchStyle } from './polygons';

const TOUCH_TOLERANCE_PIXELS = 22;
const MOUSE_TOLERANCE_PIXELS = 10;

export class Editing {
  readonly bar = h('div', { class: 'edit-bar', role: 'group', 'aria-label': () => t().edit, hidden: true });
  private readonly sketch = new VectorSource();
  private readonly layer = new VectorLayer({ source: this.sketch, style: sketchStyle(), zIndex: 10 });
  private onLeave: (() => void) | null = null;
  private onFinish: () => void = () => undefined;

  constructor(private readonly map: OlMap) {
    map.addLayer(this.layer);
  }

  get active(): boolean {
    return this.onLeave !== null;
  }

  /** End drawing or redrawing and discard the changes. */
  leave(): void {
    this.onLeave?.();
    this.onLeave = null;
    this.sketch.clear();
    this.bar.hidden = true;
  }

  /** End drawing or redrawing and keep the outline, if it is a polygon. */
  finish(): void {
    if (this.active) this.onFinish();
  }

  draw(done: (geometry: Geometry) => void): void {
    this.leave();
    const draw = new Draw({
      type: 'Polygon',
      source: this.sketch,
      style: sketchStyle(),
      stopClick: true,
      snapTolerance: TOUCH_TOLERANCE_PIXELS,
    });
    draw.on('drawend', ({ feature }) => {
      const geometry = feature.getGeometry()!;
      // OpenLayers adds the drawn polygon to the sketch only after this event.
      setTimeout(() => {
        this.leave();
        done(geometry);
      });
    });
    draw.on('drawabort', () => announce(t().tooFew));
    const removeLast = button(() => t().removeLast, () => draw.removeLastPoint());
    this.startMode([draw], () => t().drawing, () => draw.finishDrawing(), removeLast, () => t().finish);
  }

  edit(feature: Feature, done: (geometry: Geometry) => void): void {
    this.leave();
    const copy = new Feature(feature.getGeometry()!.clone());
    this.sketch.addFeature(copy);
    const removeButton = h('button', {
      type: 'button',
      class: 'button plain',
      'aria-pressed': 'false',
      on: { click: () => removeButton.setAttribute('aria-pressed', String(removeButton.getAttribute('aria-pressed') !== 'true')) },
    }, () => t().removeCorners);
    const removes = () => removeButton.getAttribute('aria-pressed') === 'true';
    const modify = new Modify({
      features: new Collection([copy]),
      style: sketchStyle(),
      pixelTolerance: matchMedia('(pointer: coarse)').matches ? TOUCH_TOLERANCE_PIXELS : MOUSE_TOLERANCE_PIXELS,
      condition: (event) => primaryAction(event),
      deleteCondition: (event) => (removes() ? click(event) || singleClick(event) : never()),
      insertVertexCondition: () => !removes(),
    });
    const save = () => {
      const geometry = copy.getGeometry()!;
      this.leave();
      done(geometry);
    };
    feature.set('hidden', true);
    this.startMode([modify], () => t().editing, save, removeButton, () => t().saveOutline, () => feature.unset('hidden'));
  }

  private startMode(
    interactions: (Draw | Modify)[],
    hint: Words,
    finish: () => void,
    tool: HTMLElement,
    saveLabel: Words,
    onEnd = () => undefined as void,
  ): void {
    for (const interaction of interactions) this.map.addInteraction(interaction);
    this.onFinish = finish;
    this.onLeave = () => {
      for (const interaction of interactions) this.map.removeInteraction(interaction);
      onEnd();
    };
    fill(
      this.bar,
      h('p', {}, hint),
      h('div', { class: 'actions' }, tool, button(() => t().cancel, () => this.leave()), button(saveLabel, finish, { kind: 'primary' })),
    );
    this.bar.hidden = false;
    announce(typeof hint === 'function' ? hint() : hint);
  }
}

