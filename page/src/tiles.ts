/** Where the map's layers get their tiles: pictures, and the values that are coloured in the browser. */

import DataTile from 'ol/source/DataTile';
import { createXYZ } from 'ol/tilegrid';

import { tile } from './api';
import { merged } from './levels';

const SIDE = 256;
const KEPT = 160;

/** The zoom whose pixels are no larger than the raster's; beyond it, tiles are drawn larger. */
export function finest(resolution: number, latitude: number): number {
  const ground = 156_543.034 * Math.cos((latitude * Math.PI) / 180);
  return Math.min(22, Math.max(0, Math.ceil(Math.log2(ground / resolution))));
}

export interface TileSet {
  job: string;
  maxZoom: number;
  failed: () => void;
}

function empty(): HTMLCanvasElement {
  const canvas = document.createElement('canvas');
  canvas.width = canvas.height = SIDE;
  return canvas;
}

/** A layer that the service has coloured. */
export function pictures({ job, maxZoom, failed }: TileSet, layer: string): DataTile {
  return new DataTile({
    tileGrid: createXYZ({ maxZoom, tileSize: SIDE }),
    interpolate: true,
    transition: 0,
    loader: async (z, x, y) => {
      try {
        return (await tile(job, layer, z, x, y)) ?? empty();
      } catch (error) {
        failed();
        throw error;
      }
    },
  });
}

/** Probability and, where there is one, inventory as values: see `merged`. Several layers colour the same ones. */
export function values({ job, maxZoom, failed }: TileSet, inventory: boolean): () => DataTile {
  const kept = new Map<string, Promise<Uint8Array>>();
  const load = async (z: number, x: number, y: number) => {
    const of = (layer: string) => tile(job, layer, z, x, y).then(pixels);
    const [probability, known] = await Promise.all([of('probability'), inventory ? of('inventory') : null]);
    return merged(probability, known, SIDE * SIDE);
  };
  return () =>
    new DataTile({
      tileGrid: createXYZ({ maxZoom, tileSize: SIDE }),
      bandCount: 4,
      interpolate: false,
      transition: 0,
      loader: (z, x, y) => {
        const key = `${z}/${x}/${y}`;
        const found = kept.get(key) ?? load(z, x, y);
        kept.delete(key);
        kept.set(key, found);
        found.catch(() => {
          kept.delete(key);
          failed();
        });
        if (kept.size > KEPT) kept.delete(kept.keys().next().value!);
        return found;
      },
    });
}

function pixels(picture: ImageBitmap | null): Uint8ClampedArray | null {
  if (picture === null) return null;
  const context = new OffscreenCanvas(SIDE, SIDE).getContext('2d', { willReadFrequently: true })!;
  context.drawImage(picture, 0, 0);
  picture.close();
  return context.getImageData(0, 0, SIDE, SIDE).data;
}
