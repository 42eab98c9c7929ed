/** What rasters are called: an upload's address says nothing, so the browser that sent it remembers what it was. */

import type { Raster } from './api';

const KEY = 'talud.uploads';
const MOST = 30;

/** The rasters that this browser has uploaded, the newest first. */
export function uploads(): Raster[] {
  try {
    const kept: unknown = JSON.parse(localStorage.getItem(KEY) ?? '[]');
    return Array.isArray(kept) ? (kept as Raster[]) : [];
  } catch {
    return [];
  }
}

export function rememberUpload(raster: Raster): void {
  const others = uploads().filter(({ href }) => href !== raster.href);
  localStorage.setItem(KEY, JSON.stringify([raster, ...others].slice(0, MOST)));
}

/** A raster's name for people. */
export const rasterName = (href: string): string =>
  uploads().find((upload) => upload.href === href)?.name ?? (href.startsWith('uploads/') ? href : href.split('/').at(-1)!);
