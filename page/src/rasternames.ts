/** Names of rasters. Those of uploads are stored in the browser. */

import type { Raster } from './api';

const UPLOADS_KEY = 'talud.uploads';
const MAX_UPLOADS = 30;

/** Return the rasters uploaded by this browser, newest first. */
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

/** Return the display name of a raster. */
export const rasterName = (href: string): string =>
  uploadedRasters().find((upload) => upload.href === href)?.name ?? (href.startsWith('uploads/') ? href : href.split('/').at(-1)!);
