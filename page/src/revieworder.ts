/** Order and progress of a review. */

import type { PolygonProperties } from './api';

/** Numbers of polygons by status. Drawn polygons are not counted as accepted. */
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
 * Return the nearest unreviewed polygon in the direction of `step`.
 *
 * The search runs forwards (1) or backwards (-1) from the current polygon and wraps around at the ends. Without a
 * current polygon it starts at the first (1) or last (-1) one. If all others are reviewed, the neighbour is returned.
 */
export function nextPolygon<T>(order: readonly T[], current: T | null, step: 1 | -1, unreviewed: (one: T) => boolean): T | null {
  const at = current === null ? -1 : order.indexOf(current);
  const from = at < 0 && step < 0 ? order.length : at;
  const round = order.map((_, n) => order[(from + step * (n + 1) + order.length * 2) % order.length]!);
  return round.find((one) => one !== current && unreviewed(one)) ?? round[0] ?? null;
}
