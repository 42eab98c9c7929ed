/** Layers of a map, from bottom to top. */

import type BaseLayer from 'ol/layer/Base';
import VectorLayer from 'ol/layer/Vector';
import WebGLTile, { type Style } from 'ol/layer/WebGLTile';
import { transformExtent } from 'ol/proj';
import GeoJSON from 'ol/format/GeoJSON';
import VectorSource from 'ol/source/Vector';

import type { JobMap, NotMapped } from './api';
import { FALSE_POSITIVE, TRUE_POSITIVE, INVENTORY_COLOUR, FALSE_NEGATIVE, PROBABILITY_RAMP, type Colour } from './colours';
import { tileThreshold } from './tilevalues';
import { hatchStyle } from './polygons';
import { pictureSource, valueSources, type TileSet } from './tiles';

export const FORMAT = new GeoJSON({ dataProjection: 'EPSG:4326', featureProjection: 'EPSG:3857' });

const PICTURE_LAYERS = ['optical', 'elevation', 'slope', 'sar_before', 'sar_after'];
const INITIALLY_VISIBLE = new Set(['optical', 'probability', 'not_mapped', 'polygons']);

const PROBABILITY = ['band', 1];
const MAPPED = ['>', PROBABILITY, 0.5 / 255];
const LANDSLIDE = ['>', PROBABILITY, ['var', 'threshold']];
const INVENTORY_KNOWN = ['>', ['band', 3], 0.5];
const INVENTORY_LANDSLIDE = ['>', ['band', 2], 0.5];
const TRANSPARENT = ['color', 0, 0, 0, 0];

const colour = ([red, green, blue]: Colour, opacity = 1) => ['color', red, green, blue, opacity];

function probabilityStyle(threshold: number): Style {
  const stops = PROBABILITY_RAMP.flatMap(([probability, shade]) => [(probability * 254 + 1) / 255, colour(shade)]);
  return {
    variables: { threshold: tileThreshold(threshold) },
    color: ['case', ['all', MAPPED, LANDSLIDE], ['interpolate', ['linear'], PROBABILITY, ...stops], TRANSPARENT],
  };
}

/** Colour true positives, false positives and false negatives. */
function confusionStyle(threshold: number): Style {
  const both = ['all', MAPPED, INVENTORY_KNOWN];
  return {
    variables: { threshold: tileThreshold(threshold) },
    color: [
      'case',
      ['all', both, LANDSLIDE, INVENTORY_LANDSLIDE],
      colour(TRUE_POSITIVE),
      ['all', both, LANDSLIDE, ['!', INVENTORY_LANDSLIDE]],
      colour(FALSE_POSITIVE),
      ['all', both, ['!', LANDSLIDE], INVENTORY_LANDSLIDE],
      colour(FALSE_NEGATIVE),
      TRANSPARENT,
    ],
  };
}

const INVENTORY_STYLE: Style = { color: ['case', ['all', INVENTORY_KNOWN, INVENTORY_LANDSLIDE], colour(INVENTORY_COLOUR), TRANSPARENT] };

export interface Layer {
  name: string;
  layer: BaseLayer;
}

export class Layers {
  readonly all: Layer[] = [];
  readonly hatching = new VectorSource();
  private readonly thresholdLayers: WebGLTile[] = [];

  constructor(map: JobMap, tiles: TileSet) {
    const extent = transformExtent(map.bounds, 'EPSG:4326', 'EPSG:3857');
    const inventory = map.inventory;
    const nextSource = valueSources(tiles, inventory);
    const add = (name: string, layer: BaseLayer) => {
      layer.setVisible(INITIALLY_VISIBLE.has(name));
      this.all.push({ name, layer });
      return layer;
    };
    const addValueLayer = (name: string, style: Style, opacity: number) => {
      const layer = new WebGLTile({ source: nextSource(), style, extent, opacity });
      add(name, layer);
      if (style.variables) this.thresholdLayers.push(layer);
    };
    for (const name of PICTURE_LAYERS.filter((one) => map.layers.includes(one))) {
      add(name, new WebGLTile({ source: pictureSource(tiles, name), extent }));
    }
    addValueLayer('probability', probabilityStyle(map.threshold), 0.85);
    if (inventory) {
      addValueLayer('inventory', INVENTORY_STYLE, 0.75);
      addValueLayer('confusion', confusionStyle(map.threshold), 0.9);
    }
    add('not_mapped', new VectorLayer({ source: this.hatching, style: hatchStyle() }));
  }

  /** Colour probability and confusion by another threshold, without loading tiles. */
  setThreshold(threshold: number): void {
    for (const layer of this.thresholdLayers) layer.updateStyleVariables({ threshold: tileThreshold(threshold) });
  }

  setNotMapped(areas: NotMapped): void {
    this.hatching.clear();
    this.hatching.addFeatures(FORMAT.readFeatures(areas));
  }

  find(name: string): BaseLayer | undefined {
    return this.all.find((one) => one.name === name)?.layer;
  }

  /** Reload the tiles that failed to load. */
  refresh(): void {
    for (const { layer } of this.all) if (layer instanceof WebGLTile) layer.getSource()?.refresh();
  }
}
