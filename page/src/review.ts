/** Review of a map: polygons, their status and unsaved changes. */

import Feature from 'ol/Feature';
import type { Geometry } from 'ol/geom';
import VectorSource from 'ol/source/Vector';

import { addPolygon, deleteReview, getPolygons, saveReview, type PolygonFeature, type PolygonProperties, type Verdict } from './api';
import { announce } from './announce';
import { errorMessage } from './failure';
import type { MultiPolygon, Polygon } from './geojson';
import { t } from './language';
import { FORMAT } from './layers';
import { countPolygons, nextPolygon, type Counts } from './revieworder';

export type ReviewAction = Verdict | 'shape' | 'drawn' | 'removed';

interface Change {
  feature: Feature;
  action: ReviewAction;
  send: () => Promise<void>;
  /** Restore the polygon as saved by the service. */
  discard: () => void;
}

export interface Unsaved extends Change {
  error: unknown;
}

const toGeoJson = (geometry: Geometry) =>
  FORMAT.writeGeometryObject(geometry, { rightHanded: true }) as unknown as Polygon | MultiPolygon;

export const propertiesOf = (feature: Feature): PolygonProperties => feature.getProperties() as PolygonProperties & { geometry: Geometry };

export class Review {
  readonly source = new VectorSource();
  selected: Feature | null = null;
  unsaved: Unsaved[] = [];
  saving = 0;
  loaded = false;
  private order: Feature[] = [];
  private readonly queues = new WeakMap<Feature, Promise<void>>();
  private readonly listeners: (() => void)[] = [];

  constructor(private readonly job: string) {}

  /** Call `listener` after every change of the review. */
  onChange(listener: () => void): void {
    this.listeners.push(listener);
  }

  private changed(): void {
    for (const listener of this.listeners) listener();
  }

  async load(): Promise<void> {
    const found = FORMAT.readFeatures(await getPolygons(this.job)) as Feature[];
    this.source.clear();
    this.source.addFeatures(found);
    this.loaded = true;
    this.order = found.sort((a, b) => propertiesOf(b).area_m2 - propertiesOf(a).area_m2);
    this.changed();
  }

  counts(): Counts {
    return countPolygons(this.order.filter((feature) => !isNew(feature)).map(propertiesOf));
  }

  select(feature: Feature | null): void {
    this.selected = feature;
    this.changed();
  }

  /** Select the next (1) or previous (-1) polygon, unreviewed ones first. */
  step(by: 1 | -1): Feature | null {
    this.select(nextPolygon(this.order, this.selected, by, (one) => propertiesOf(one).verdict === 'unreviewed'));
    return this.selected;
  }

  reviewPolygon(feature: Feature, verdict: 'accepted' | 'rejected', reviewer: string): Promise<void> {
    // An unsaved outline is sent along, because the review replaces its unsaved change.
    const outline = feature.get('unsaved') ? toGeoJson(feature.getGeometry()!) : undefined;
    const { discard } = this.unsaved.find((one) => one.feature === feature) ?? { discard: () => undefined };
    const send = async () => this.applySaved(feature, await saveReview(this.job, String(feature.getId()), verdict, reviewer, outline));
    return this.commit({ feature, action: verdict, send, discard });
  }

  /** Replace the outline of a polygon, which accepts it. */
  reshape(feature: Feature, geometry: Geometry, reviewer: string): Promise<void> {
    if (isNew(feature)) {
      feature.setGeometry(geometry);
      return this.add(feature, reviewer);
    }
    const before = feature.getGeometry()!;
    feature.setGeometry(geometry);
    feature.set('unsaved', true);
    const send = async () =>
      this.applySaved(feature, await saveReview(this.job, String(feature.getId()), 'accepted', reviewer, toGeoJson(geometry)));
    const earlier = this.unsaved.find((one) => one.feature === feature);
    const discard = () => {
      feature.setGeometry(before);
      feature.unset('unsaved');
      earlier?.discard();
    };
    return this.commit({ feature, action: 'shape', send, discard });
  }

  /** Add a polygon drawn by a person. */
  draw(geometry: Geometry, reviewer: string): Promise<void> {
    const feature = new Feature({ geometry, unsaved: true, verdict: 'accepted', origin: 'drawn', area_m2: 0 });
    this.source.addFeature(feature);
    this.order.push(feature);
    this.select(feature);
    return this.add(feature, reviewer);
  }

  private add(feature: Feature, reviewer: string): Promise<void> {
    const send = async () => this.applySaved(feature, await addPolygon(this.job, reviewer, toGeoJson(feature.getGeometry()!)));
    return this.commit({ feature, action: 'drawn', send, discard: () => this.removeFeature(feature) });
  }

  /** Undo the review of a polygon; a drawn polygon is deleted. */
  undo(feature: Feature): Promise<void> {
    const { origin, redrawn } = propertiesOf(feature);
    const send = async () => {
      await deleteReview(this.job, String(feature.getId()));
      if (origin === 'drawn') return this.removeFeature(feature);
      if (redrawn) return this.applySaved(feature, await this.fetchPolygon(feature));
      feature.setProperties({ verdict: 'unreviewed', reviewed_by: null, reviewed_at: null });
    };
    return this.commit({ feature, action: origin === 'drawn' ? 'removed' : 'unreviewed', send, discard: () => undefined });
  }

  private async fetchPolygon(feature: Feature): Promise<PolygonFeature> {
    const found = (await getPolygons(this.job)).features.find(({ id }) => String(id) === String(feature.getId()));
    if (!found) throw new Error(t().noResponse);
    return found;
  }

  private applySaved(feature: Feature, kept: PolygonFeature): void {
    const { id, geometry, properties: facts } = kept;
    feature.setId(id);
    feature.setGeometry(FORMAT.readGeometry(geometry));
    feature.setProperties(facts);
    feature.unset('unsaved');
  }

  private removeFeature(feature: Feature): void {
    this.source.removeFeature(feature);
    this.order = this.order.filter((one) => one !== feature);
    if (this.selected === feature) this.selected = null;
  }

  /** Send a change after earlier ones of its polygon. If it fails, it is kept in `unsaved`. */
  private commit(change: Change): Promise<void> {
    const { feature } = change;
    this.unsaved = this.unsaved.filter((one) => one.feature !== feature);
    feature.unset('failed');
    this.saving += 1;
    this.changed();
    const done = (this.queues.get(feature) ?? Promise.resolve()).then(async () => {
      try {
        await change.send();
        announce(t().savedReview(t().actionDone[change.action], this.counts().unreviewed));
      } catch (error) {
        this.unsaved = [...this.unsaved, { ...change, error }];
        feature.set('failed', true);
        announce(t().failed(t().unsaved(this.unsaved.length), errorMessage(error)));
      }
      this.saving -= 1;
      this.changed();
    });
    this.queues.set(feature, done);
    return done;
  }

  /** Send all unsaved changes again. */
  async retryUnsaved(): Promise<void> {
    await Promise.all(this.unsaved.map((change) => this.commit(change)));
  }

  /** Discard an unsaved change. */
  discard(change: Unsaved): void {
    change.discard();
    change.feature.unset('failed');
    this.unsaved = this.unsaved.filter((one) => one !== change);
    this.changed();
  }

  get anyUnsaved(): boolean {
    return this.saving > 0 || this.unsaved.length > 0;
  }
}

/** Check if a drawn polygon has not been saved by the service yet. */
export const isNew = (feature: Feature): boolean => feature.getId() === undefined;
