/** State of an open map (layers, selection, editing) and the reviewer's actions. */

import type Feature from 'ol/Feature';

import { startJob, type Session } from './api';
import { announce } from './announce';
import { confirmAction } from './dialogue';
import { Editing } from './editing';
import type { JobMapView } from './jobmap';
import { t } from './language';
import { propertiesOf } from './review';
import { askReviewer, reviewer } from './reviewer';
import { advancesAfterReview } from './reviewpanel';

export type Panel = 'layers' | 'review';

export class JobState {
  readonly editing: Editing;
  threshold: number;
  panel: Panel = 'review';
  private readonly listeners: (() => void)[] = [];

  /** Create the state; `second` is the map that `main` is compared with, if any. */
  constructor(
    private readonly session: Session,
    readonly main: JobMapView,
    readonly second: JobMapView | null,
  ) {
    this.editing = new Editing(main.map);
    this.threshold = main.facts.threshold;
    main.review.onChange(() => this.changed());
  }

  get maps(): JobMapView[] {
    return this.second ? [this.main, this.second] : [this.main];
  }

  get mayReview(): boolean {
    return this.session.scope !== 'read';
  }

  get unsaved(): boolean {
    return this.main.review.anyUnsaved || this.editing.active;
  }

  get thresholdMoved(): boolean {
    return this.threshold !== this.main.facts.threshold;
  }

  get visibleLayers(): Set<string> {
    return new Set(this.main.layers.all.filter(({ layer }) => layer.getVisible()).map(({ name }) => name));
  }

  /** Call `listener` after every change of the review or the view. */
  onChange(listener: () => void): void {
    this.listeners.push(listener);
  }

  private changed(): void {
    for (const listener of this.listeners) listener();
  }

  setThreshold(threshold: number): void {
    this.threshold = threshold;
    this.main.layers.setThreshold(threshold);
    this.changed();
  }

  /** Show or hide a layer of all maps. */
  setLayer(name: string, visible: boolean, opacity: number): void {
    for (const { layers } of this.maps) {
      layers.find(name)?.setVisible(visible);
      layers.find(name)?.setOpacity(opacity);
    }
    this.changed();
  }

  showPanel(panel: Panel): void {
    this.panel = panel;
    this.changed();
  }

  select(feature: Feature | null): void {
    this.main.review.select(feature);
    if (feature) this.showPanel('review');
  }

  /** Select the next (1) or previous (-1) polygon and zoom to it. */
  step(by: 1 | -1): void {
    if (this.editing.active) return;
    const found = this.main.review.step(by);
    if (found) {
      this.main.frame.zoomTo(found.getGeometry()!.getExtent());
      this.showPanel('review');
    }
  }

  async reviewSelected(verdict: 'accepted' | 'rejected'): Promise<void> {
    const found = await this.selectionAndReviewer();
    if (!found || propertiesOf(found.feature).origin === 'drawn') return;
    const saved = this.main.review.reviewPolygon(found.feature, verdict, found.name);
    if (advancesAfterReview()) this.step(1);
    await saved;
  }

  /** Undo the review of the selected polygon; ask first if an outline would be lost. */
  async undo(): Promise<void> {
    const feature = this.main.review.selected;
    if (!feature || !this.mayReview || this.editing.active) return;
    const { origin, redrawn, verdict } = propertiesOf(feature);
    if (verdict === 'unreviewed') return;
    const drawn = origin === 'drawn';
    const sure =
      !(drawn || redrawn) ||
      (await confirmAction(
        () => (drawn ? t().removeDrawnTitle : t().undoRedrawnTitle),
        () => (drawn ? t().removeDrawnText : t().undoRedrawnText),
        () => (drawn ? t().removeDrawn : t().undo),
      ));
    if (sure) await this.main.review.undo(feature);
  }

  async edit(): Promise<void> {
    const found = await this.selectionAndReviewer();
    if (!found) return;
    const { feature, name } = found;
    this.main.frame.zoomTo(feature.getGeometry()!.getExtent());
    this.editing.edit(feature, (geometry) => void this.main.review.reshape(feature, geometry, name));
  }

  async draw(): Promise<void> {
    if (!this.mayReview || this.editing.active) return;
    const name = await this.reviewerName();
    if (name !== null) this.editing.draw((geometry) => void this.main.review.draw(geometry, name));
  }

  /** End drawing or redrawing; deselect the polygon if neither is active. */
  leave(): void {
    if (this.editing.active) this.editing.leave();
    else this.main.review.select(null);
  }

  /** Start a map of the same raster with the threshold of the slider. */
  async requestMap(): Promise<void> {
    const { raster, model, version, minimum_area: minimum } = this.main.job.inputs;
    await startJob({
      raster: { href: raster },
      model: version ? `${model}/${version}` : model,
      threshold: this.threshold,
      ...(minimum ? { minimum_area: minimum } : {}),
    });
  }

  close(): void {
    for (const map of this.maps) map.close();
  }

  /** Return the selected polygon and the reviewer's name; null if one is missing. */
  private async selectionAndReviewer(): Promise<{ feature: Feature; name: string } | null> {
    const feature = this.main.review.selected;
    if (!feature || !this.mayReview || this.editing.active) return null;
    const name = await this.reviewerName();
    return name === null ? null : { feature, name };
  }

  private async reviewerName(): Promise<string | null> {
    const name = reviewer() ?? (await askReviewer());
    if (name === null) announce(t().reviewerNeeded);
    return name;
  }
}
