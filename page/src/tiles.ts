/** Tile sources of the layers: images, and values that are coloured in the browser. */

import DataTile from 'ol/source/DataTile';
import { createXYZ } from 'ol/tilegrid';

import { getTile } from './api';
import { mergeTiles } from './tilevalues';

const TILE_SIDE_PIXELS = 256;
const MAX_CACHED_TILES = 160;

/** Return the lowest zoom whose pixels are no larger than those of the raster. */
export function maxZoomFor(resolution: number, latitude: number): number {
  const ground = 156_543.034 * Math.cos((latitude * Math.PI) / 180);
  return Math.min(22, Math.max(0, Math.ceil(Math.log2(ground / resolution))));
}

export interface TileSet {
  job: string;
  maxZoom: number;
  failed: () => void;
}

function emptyTile(): HTMLCanvasElement {
  const canvas = document.createElement('canvas');
  canvas.width = canvas.height = TILE_SIDE_PIXELS;
  return canvas;
}

/** Return the source of a layer that the service colours. */
export function pictureSource({ job, maxZoom, failed }: TileSet, layer: string): DataTile {
  return new DataTile({
    tileGrid: createXYZ({ maxZoom, tileSize: TILE_SIDE_PIXELS }),
    interpolate: true,
    transition: 0,
    loader: async (z, x, y) => {
      try {
        return (await getTile(job, layer, z, x, y)) ?? emptyTile();
      } catch (error) {
        failed();
        throw error;
      }
    },
  });
}

/** Return a factory of sources of merged tiles (see `mergeTiles`) with a shared cache. */
export function valueSources({ job, maxZoom, failed }: TileSet, inventory: boolean): () => DataTile {
  const cache = new Map<string, Promise<Uint8Array>>();
  const load = async (z: number, x: number, y: number) => {
    const layerPixels = (layer: string) => getTile(job, layer, z, x, y).then(readPixels);
    const [probability, known] = await Promise.all([layerPixels('probability'), inventory ? layerPixels('inventory') : null]);
    return mergeTiles(probability, known, TILE_SIDE_PIXELS * TILE_SIDE_PIXELS);
  };
  return () =>
    new DataTile({
      tileGrid: createXYZ({ maxZoom, tileSize: TILE_SIDE_PIXELS }),
      bandCount: 4,
      interpolate: false,
      transition: 0,
      loader: (z, x, y) => {
        const key = `${z}/${x}/${y}`;
        const found = cache.get(key) ?? load(z, x, y);
        cache.delete(key);
        cache.set(key, found);
        found.catch(() => {
          cache.delete(key);
          failed();
        });
        if (cache.size > MAX_CACHED_TILES) cache.delete(cache.keys().next().value!);
        return found;
      },
    });
}

function readPixels(picture: ImageBitmap | null): Uint8ClampedArray | null {
  if (picture === null) return null;
  const context = new OffscreenCanvas(TILE_SIDE_PIXELS, TILE_SIDE_PIXELS).getContext('2d', { willReadFrequently: true })!;
  context.drawImage(picture, 0, 0);
  picture.close();
  return context.getImageData(0, 0, TILE_SIDE_PIXELS, TILE_SIDE_PIXELS).data;
}
