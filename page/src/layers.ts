/** The layers of a job's map, from the ground up. */

import type BaseLayer from 'ol/layer/Base';
import VectorLayer from 'ol/layer/Vector';
import WebGLTile, { type Style } from 'ol/layer/WebGLTile';
import { transformExtent } from 'ol/proj';
import GeoJSON from 'ol/format/GeoJSON';
import VectorSource from 'ol/source/Vector';

import type { JobMap, NotMapped } from './api';
import { FALSE_ALARM, HIT, INVENTORY, MISS, RAMP, type Colour } from './colours';
import { cut } from './levels';
import { hatched } from './polygons';
import { pictures, values, type TileSet } from './tiles';

export const FORMAT = new GeoJSON({ dataProjection: 'EPSG:4326', featureProjection: 'EPSG:3857' });

const PICTURES = ['optical', 'elevation', 'slope', 'sar_before', 'sar_after'];
const SHOWN = new Set(['optical', 'probability', 'not_mapped', 'polygons']);

const PROBABILITY = ['band', 1];
const MAPPED = ['>', PROBABILITY, 0.5 / 255];
const LANDSLIDE = ['>', PROBABILITY, ['var', 'cut']];
const KNOWN = ['>', ['band', 3], 0.5];
const TRUE = ['>', ['band', 2], 0.5];
const CLEAR = ['color', 0, 0, 0, 0];

const colour = ([red, green, blue]: Colour, opacity = 1) => ['color', red, green, blue, opacity];

function probabilityStyle(threshold: number): Style {
  const stops = RAMP.flatMap(([probability, shade]) => [(probability * 254 + 1) / 255, colour(shade)]);
  return {
    variables: { cut: cut(threshold) },
    color: ['case', ['all', MAPPED, LANDSLIDE], ['interpolate', ['linear'], PROBABILITY, ...stops], CLEAR],
  };
}

/** The study's four classes; what is true and mapped negative, unknown or not mapped stays clear. */
function confusionStyle(threshold: number): Style {
  const both = ['all', MAPPED, KNOWN];
  return {
    variables: { cut: cut(threshold) },
    color: [
      'case',
      ['all', both, LANDSLIDE, TRUE],
      colour(HIT),
      ['all', both, LANDSLIDE, ['!', TRUE]],
      colour(FALSE_ALARM),
      ['all', both, ['!', LANDSLIDE], TRUE],
      colour(MISS),
      CLEAR,
    ],
  };
}

const INVENTORY_STYLE: Style = { color: ['case', ['all', KNOWN, TRUE], colour(INVENTORY), CLEAR] };

export interface Layer {
  name: string;
  layer: BaseLayer;
}

export class Layers {
  readonly all: Layer[] = [];
  readonly hatching = new VectorSource();
  private readonly coloured: WebGLTile[] = [];

  constructor(map: JobMap, tiles: TileSet) {
    const extent = transformExtent(map.bounds, 'EPSG:4326', 'EPSG:3857');
    const inventory = map.inventory;
    const shared = values(tiles, inventory);
    const add = (name: string, layer: BaseLayer) => {
      layer.setVisible(SHOWN.has(name));
      this.all.push({ name, layer });
      return layer;
    };
    const valued = (name: string, style: Style, opacity: number) => {
      const layer = new WebGLTile({ source: shared(), style, extent, opacity });
      add(name, layer);
      if (style.variables) this.coloured.push(layer);
    };
    for (const name of PICTURES.filter((one) => map.layers.includes(one))) {
      add(name, new WebGLTile({ source: pictures(tiles, name), extent }));
    }
    valued('probability', probabilityStyle(map.threshold), 0.85);
    if (inventory) {
      valued('inventory', INVENTORY_STYLE, 0.75);
      valued('confusion', confusionStyle(map.threshold), 0.9);
    }
    add('not_mapped', new VectorLayer({ source: this.hatching, style: hatched() }));
  }

  /** Colours probability and classes by another threshold, without a tile being asked for. */
  setThreshold(threshold: number): void {
    for (const layer of this.coloured) layer.updateStyleVariables({ cut: cut(threshold) });
  }

  setNotMapped(areas: NotMapped): void {
    this.hatching.clear();
    this.hatching.addFeatures(FORMAT.readFeatures(areas));
  }

  find(name: string): BaseLayer | undefined {
    return this.all.find((one) => one.name === name)?.layer;
  }

  /** Asks again for the tiles that did not arrive. */
  refresh(): void {
    for (const { layer } of this.all) if (layer instanceof WebGLTile) layer.getSource()?.refresh();
  }
}
