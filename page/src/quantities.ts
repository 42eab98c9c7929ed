/** Numbers, areas and dates formatted in the current language. */

import { language } from './language';

export function number(value: number, digits = 0): string {
  const options = { minimumFractionDigits: digits, maximumFractionDigits: digits };
  return new Intl.NumberFormat(language(), options).format(value);
}

/** Format an area in m², hectares or km², depending on its size. */
export function area(squareMetres: number): string {
  if (squareMetres < 10_000) return `${number(squareMetres)} m²`;
  if (squareMetres < 1_000_000) return `${number(squareMetres / 10_000, 2)} ha`;
  return `${number(squareMetres / 1_000_000, 2)} km²`;
}

export const probability = (value: number | null): string => (value === null ? '–' : number(value, 2));

export function moment(iso: string): string {
  return new Intl.DateTimeFormat(language(), { dateStyle: 'medium', timeStyle: 'short' }).format(new Date(iso));
}

export function megapixels(pixels: number): string {
  return number(pixels / 1e6, pixels < 1e7 ? 1 : 0);
}
