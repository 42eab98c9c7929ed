/** Map view of one job: its layers and polygons. */

import type Feature from 'ol/Feature';
import type OlMap from 'ol/Map';
import VectorLayer from 'ol/layer/Vector';

import { getJob, getJobMap, getNotMapped, type Job, type JobMap, type NotMapped } from './api';
import { Layers } from './layers';
import { MapFrame } from './mapframe';
import { polygonStyle } from './polygons';
import { Review } from './review';
import { maxZoomFor } from './tiles';

const CLICK_TOLERANCE_PIXELS = 6;

export class JobMapView {
  readonly frame: MapFrame;
  readonly layers: Layers;
  readonly review: Review;
  failedTiles = 0;
  private tileFailed: () => void = () => undefined;

  private constructor(
    readonly job: Job,
    readonly facts: JobMap,
  ) {
    const maxZoom = maxZoomFor(facts.resolution, (facts.bounds[1] + facts.bounds[3]) / 2);
    const failed = () => {
      this.failedTiles += 1;
      this.tileFailed();
    };
    this.frame = new MapFrame(facts.bounds, maxZoom);
    this.review = new Review(job.jobID);
    this.layers = new Layers(facts, { job: job.jobID, maxZoom, failed });
    const polygons = new VectorLayer({
      source: this.review.source,
      style: (feature, resolution) =>
        feature.get('hidden') ? [] : polygonStyle(feature as Feature, feature === this.review.selected, resolution),
    });
    this.layers.all.push({ name: 'polygons', layer: polygons });
    for (const { layer } of this.layers.all) this.map.addLayer(layer);
    this.review.onChange(() => polygons.changed());
  }

  static async open(id: string): Promise<JobMapView> {
    const [facts, about] = await Promise.all([getJobMap(id), getJob(id)]);
    return new JobMapView(about, facts);
  }

  get map(): OlMap {
    return this.frame.map;
  }

  /** Set the listener that is called when a tile fails to load. */
  onTileFailure(listener: () => void): void {
    this.tileFailed = listener;
  }

  /** Reload the tiles that failed to load. */
  refresh(): void {
    this.failedTiles = 0;
    this.layers.refresh();
  }

  async loadNotMapped(): Promise<NotMapped> {
    const areas = await getNotMapped(this.job.jobID);
    this.layers.setNotMapped(areas);
    return areas;
  }

  /** Return the polygon at a pixel of the map; the smallest if there are several. */
  polygonAt(pixel: number[]): Feature | null {
    const polygons = this.layers.find('polygons');
    const options = { layerFilter: (layer: unknown) => layer === polygons, hitTolerance: CLICK_TOLERANCE_PIXELS };
    const found = this.map.getFeaturesAtPixel(pixel, options) as Feature[];
    return found.sort((a, b) => Number(a.get('area_m2')) - Number(b.get('area_m2')))[0] ?? null;
  }

  close(): void {
    this.frame.close();
  }
}
