/** Numbers as people of the page's language write them. */

import { language } from './language';

export function number(value: number, digits = 0): string {
  const options = { minimumFractionDigits: digits, maximumFractionDigits: digits };
  return new Intl.NumberFormat(language(), options).format(value);
}

/** An area in m² below a hectare, in hectares below a square kilometre. */
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
