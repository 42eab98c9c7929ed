/** In which order polygons are reviewed, and how far the review is. */

import type { PolygonProperties } from './api';

/** As the service counts: accepted ones are the model's, drawn ones stand beside them. */
export interface Counts {
  unreviewed: number;
  accepted: number;
  rejected: number;
  drawn: number;
  acceptedArea: number;
}

export function countPolygons(polygons: Iterable<PolygonProperties>): Counts {
  const counts: Counts = { unreviewed: 0, accepted: 0, rejected: 0, drawn: 0, acceptedArea: 0 };
  for (const { verdict, origin, area_m2 } of polygons) {
    counts[origin === 'drawn' ? 'drawn' : verdict] += 1;
    if (origin === 'drawn' || verdict === 'accepted') counts.acceptedArea += area_m2;
  }
  return counts;
}

/**
 * The polygon after (step 1) or before (-1) the current one: the nearest unreviewed one in that direction, round the
 * end; where all others are reviewed, simply the neighbour. Without a current one it begins at the end it comes from.
 */
export function nextPolygon<T>(order: readonly T[], current: T | null, step: 1 | -1, unreviewed: (one: T) => boolean): T | null {
  const at = current === null ? -1 : order.indexOf(current);
  const from = at < 0 && step < 0 ? order.length : at;
  const round = order.map((_, n) => order[(from + step * (n + 1) + order.length * 2) % order.length]!);
  return round.find((one) => one !== current && unreviewed(one)) ?? round[0] ?? null;
}
