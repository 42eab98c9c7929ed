/** Client of the service's HTTP API; no other module sends requests. */

import type { MultiPolygon, Polygon } from './geojson';

/** Address of the service, one level above the page. It is relative, for proxies with a path prefix. */
export const SERVICE = new URL('../', document.baseURI);

export type Scope = 'read' | 'run' | 'admin';
export type Status = 'accepted' | 'running' | 'successful' | 'failed' | 'dismissed';
export type Verdict = 'unreviewed' | 'accepted' | 'rejected';
export type Picture = 'optical' | 'slope' | 'elevation' | 'sar_before' | 'sar_after';
/** West, south, east and north in degrees. */
export type Bounds = [number, number, number, number];

export interface Session {
  keys_required: boolean;
  name: string | null;
  scope: Scope | null;
}

export interface Raster {
  href: string;
  name: string;
  bands: string[];
  layers: string[];
  bounds: Bounds | null;
  pixels: number;
  resolution: number;
  crs: string;
  synthetic: boolean;
  inventory: boolean;
  fits: string[];
}

export interface Contract {
  bands: { name: string; unit: string; group: string }[];
  pixel_size: number;
  threshold: number;
  scores?: Record<string, number>;
  areas?: string[];
  data_version?: string;
}

export interface Model {
  name: string;
  version: string;
  aliases: string[];
  created: string | null;
  contract: Contract;
}

export interface Inputs {
  raster: { href: string };
  model: string;
  bands?: string[];
  threshold?: number;
  minimum_area?: number;
}

export interface Job {
  jobID: string;
  status: Status;
  message: string | null;
  created: string;
  started: string | null;
  finished: string | null;
  progress: number;
  inputs: {
    raster: string;
    model: string;
    version: string | null;
    threshold: number | null;
    minimum_area: number | null;
  };
}

export interface JobMap {
  bounds: Bounds;
  layers: string[];
  threshold: number;
  model: string;
  version: string;
  raster: string;
  name: string;
  resolution: number;
  synthetic: boolean;
  inventory: boolean;
}

export interface PolygonProperties {
  area_m2: number;
  mean_probability: number | null;
  maximum_probability: number | null;
  mean_slope_degrees?: number | null;
  origin: 'model' | 'drawn';
  verdict: Verdict;
  redrawn: boolean;
  reviewed_by: string | null;
  reviewed_at: string | null;
}

export interface PolygonFeature {
  type: 'Feature';
  id: string;
  geometry: Polygon | MultiPolygon;
  properties: PolygonProperties;
}

export interface Polygons {
  type: 'FeatureCollection';
  features: PolygonFeature[];
}

export interface NotMapped {
  type: 'FeatureCollection';
  features: {
    type: 'Feature';
    geometry: Polygon | MultiPolygon;
    properties: { reason: string; area_m2: number };
  }[];
}

export type Results = Record<string, { href: string; type?: string; title?: string }>;

/** Error response (RFC 7807). The status is 0 if the service did not respond. */
export class ServiceError extends Error {
  constructor(
    readonly status: number,
    readonly title: string,
    readonly detail: string,
  ) {
    super(detail || title);
  }
}

let handleSignedOut: () => void = () => undefined;

/** Set the listener that is called when the session has expired. */
export function onSignedOut(listener: () => void): void {
  handleSignedOut = listener;
}

async function serviceError(response: Response): Promise<ServiceError> {
  if (response.status === 401) handleSignedOut();
  const text = await response.text();
  try {
    const { title, detail } = JSON.parse(text) as { title?: string; detail?: unknown };
    return new ServiceError(
      response.status,
      title ?? response.statusText,
      typeof detail === 'string' ? detail : detail === undefined ? '' : JSON.stringify(detail),
    );
  } catch {
    return new ServiceError(response.status, response.statusText, '');
  }
}

async function request(path: string, options: RequestInit = {}): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(new URL(path, SERVICE), { credentials: 'same-origin', ...options });
  } catch (error) {
    if (error instanceof DOMException && error.name === 'AbortError') throw error;
    throw new ServiceError(0, '', '');
  }
  if (!response.ok) throw await serviceError(response);
  return response;
}

async function getJson<T>(path: string, signal?: AbortSignal): Promise<T> {
  const response = await request(path, {
    headers: { Accept: 'application/json, application/geo+json' },
    ...(signal ? { signal } : {}),
  });
  return (await response.json()) as T;
}

async function sendJson(method: string, path: string, body?: unknown, headers: Record<string, string> = {}): Promise<Response> {
  return request(path, {
    method,
    headers: {
      Accept: 'application/json, application/geo+json',
      ...(body === undefined ? {} : { 'Content-Type': 'application/json' }),
      ...headers,
    },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
}

const jobPath = (id: string) => `jobs/${encodeURIComponent(id)}`;

export const getSession = () => getJson<Session>('session');
export const signIn = async (key: string) => void (await sendJson('POST', 'session', { key }));
export const signOut = async () => void (await sendJson('DELETE', 'session'));

export const listRasters = async () => (await getJson<{ rasters: Raster[] }>('rasters')).rasters;
export const listModels = async () => (await getJson<{ models: Model[] }>('models')).models;
export const listJobs = async (limit: number, signal?: AbortSignal) => getJson<{ jobs: Job[] }>(`jobs?limit=${limit}`, signal);
export const getJob = (id: string) => getJson<Job>(jobPath(id));
export const getJobMap = (id: string) => getJson<JobMap>(`${jobPath(id)}/map`);
export const getResults = (id: string) => getJson<Results>(`${jobPath(id)}/results`);
export const getPolygons = (id: string) => getJson<Polygons>(`${jobPath(id)}/polygons`);
export const getNotMapped = (id: string) => getJson<NotMapped>(`${jobPath(id)}/not-mapped`);
export const dismissJob = async (id: string) => void (await sendJson('DELETE', jobPath(id)));

export async function startJob(inputs: Inputs): Promise<Job> {
  const headers = { Prefer: 'respond-async' };
  const response = await sendJson('POST', 'processes/map-landslides/execution', { inputs }, headers);
  return (await response.json()) as Job;
}

/** Upload a raster; `progress` gets the share that has been sent, 0 to 1. */
export function uploadRaster(file: File, progress: (share: number) => void, signal: AbortSignal): Promise<Raster> {
  return new Promise((resolve, reject) => {
    const transfer = new XMLHttpRequest();
    transfer.open('PUT', new URL(`uploads/${encodeURIComponent(file.name)}`, SERVICE));
    transfer.setRequestHeader('Content-Type', 'application/octet-stream');
    transfer.upload.addEventListener('progress', (event) => {
      if (event.lengthComputable) progress(event.loaded / event.total);
    });
    transfer.addEventListener('error', () => reject(new ServiceError(0, '', '')));
    transfer.addEventListener('abort', () => reject(new DOMException('', 'AbortError')));
    transfer.addEventListener('load', () => {
      if (transfer.status === 201 || transfer.status === 200) {
        resolve(JSON.parse(transfer.responseText) as Raster);
        return;
      }
      void serviceError(new Response(transfer.responseText, { status: transfer.status })).then(reject);
    });
    signal.addEventListener('abort', () => transfer.abort());
    transfer.send(file);
  });
}

/** Save the review of a polygon, with a new outline if one is given. */
export async function saveReview(
  id: string,
  polygon: string,
  verdict: Verdict,
  reviewer: string,
  geometry?: Polygon | MultiPolygon,
): Promise<PolygonFeature> {
  const body = geometry ? { verdict, reviewer, geometry } : { verdict, reviewer };
  const response = await sendJson('PUT', `${jobPath(id)}/polygons/${encodeURIComponent(polygon)}`, body);
  return (await response.json()) as PolygonFeature;
}

/** Add a polygon drawn by a person; it counts as accepted. */
export async function addPolygon(id: string, reviewer: string, geometry: Polygon | MultiPolygon): Promise<PolygonFeature> {
  const response = await sendJson('POST', `${jobPath(id)}/polygons`, { geometry, reviewer });
  return (await response.json()) as PolygonFeature;
}

/** Delete a review. A drawn polygon is removed; a redrawn one gets the model's outline back. */
export const deleteReview = async (id: string, polygon: string) =>
  void (await sendJson('DELETE', `${jobPath(id)}/polygons/${encodeURIComponent(polygon)}`));

export async function exportReview(id: string): Promise<Blob> {
  return (await request(`${jobPath(id)}/review.gpkg`)).blob();
}

/** Return a tile of a map as an image; null if it is empty. */
export async function getTile(id: string, layer: string, z: number, x: number, y: number): Promise<ImageBitmap | null> {
  const response = await request(`${jobPath(id)}/tiles/${layer}/${z}/${x}/${y}.png`);
  if (response.status === 204) return null;
  // Pixel values are read from these images, so the browser must not convert them.
  return createImageBitmap(await response.blob(), { colorSpaceConversion: 'none', premultiplyAlpha: 'none' });
}
