/** What rasters are called: an upload's address says nothing, so the browser that sent it remembers what it was. */

import type { Raster } from './api';

const UPLOADS_KEY = 'talud.uploads';
const MAX_UPLOADS = 30;

/** The rasters that this browser has uploaded, the newest first. */
export function uploadedRasters(): Raster[] {
  try {
    const stored: unknown = JSON.parse(localStorage.getItem(UPLOADS_KEY) ?? '[]');
    return Array.isArray(stored) ? (stored as Raster[]) : [];
  } catch {
    return [];
  }
}

export function rememberUpload(raster: Raster): void {
  const others = uploadedRasters().filter(({ href }) => href !== raster.href);
  localStorage.setItem(UPLOADS_KEY, JSON.stringify([raster, ...others].slice(0, MAX_UPLOADS)));
}

/** A raster's name for people. */
export const rasterName = (href: string): string =>
  uploadedRasters().find((upload) => upload.href === href)?.name ?? (href.startsWith('uploads/') ? href : href.split('/').at(-1)!);
