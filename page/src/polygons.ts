/** Styles of polygons by review status, visible on any background. */

import type Feature from 'ol/Feature';
import { Circle, Fill, Stroke, Style } from 'ol/style';

import type { Verdict } from './api';

type OutlineKind = 'unsaved' | Verdict;

export const LINE_STYLES: Record<OutlineKind, { colour: string; width: number; dash?: number[] }> = {
  unreviewed: { colour: '#ffe14d', width: 2 },
  accepted: { colour: '#2fe0d2', width: 3 },
  rejected: { colour: '#e8e8e8', width: 2, dash: [6, 5] },
  unsaved: { colour: '#ff9bd2', width: 3, dash: [2, 5] },
};
const CASING = 'rgb(20 24 22 / 85%)';

function outlineStyles(kind: OutlineKind, selected: boolean, widthFactor: number): Style[] {
  const { colour, dash } = LINE_STYLES[kind];
  const width = LINE_STYLES[kind].width * widthFactor;
  const styles = [
    new Style({ stroke: new Stroke({ color: CASING, width: width + 2.5 * widthFactor }) }),
    new Style({
      stroke: new Stroke({ color: colour, width, ...(dash ? { lineDash: dash } : {}) }),
      // Without a fill, only the line could be clicked.
      fill: new Fill({ color: 'rgb(255 255 255 / 1%)' }),
    }),
  ];
  const halo = [
    new Style({ stroke: new Stroke({ color: CASING, width: width + 10 * widthFactor }) }),
    new Style({ stroke: new Stroke({ color: '#ffffff', width: width + 7 * widthFactor }) }),
  ];
  return selected ? [...halo, ...styles] : styles;
}

const styleKey = (kind: OutlineKind, selected: boolean, thin: boolean) => `${kind} ${selected} ${thin}`;
// Metres per screen pixel beyond which lines are thinner, so that they do not cover small polygons.
const THIN_LINE_RESOLUTION = 8;
const OUTLINE_STYLES = new Map<string, Style[]>();
for (const kind of Object.keys(LINE_STYLES) as OutlineKind[]) {
  for (const selected of [true, false]) {
    OUTLINE_STYLES.set(styleKey(kind, selected, true), outlineStyles(kind, selected, 0.65));
    OUTLINE_STYLES.set(styleKey(kind, selected, false), outlineStyles(kind, selected, 1));
  }
}

export function polygonStyle(feature: Feature, selected: boolean, resolution: number): Style[] {
  const kind = feature.get('unsaved') || feature.get('failed') ? 'unsaved' : (feature.get('verdict') as Verdict);
  return OUTLINE_STYLES.get(styleKey(kind, selected, resolution > THIN_LINE_RESOLUTION)) ?? [];
}

/** Return the style of a polygon being drawn, with corners for touch screens. */
export const sketchStyle = (): Style[] => [
  new Style({
    stroke: new Stroke({ color: CASING, width: 5 }),
    image: new Circle({ radius: 8, fill: new Fill({ color: '#ffffff' }), stroke: new Stroke({ color: CASING, width: 2 }) }),
  }),
  new Style({ stroke: new Stroke({ color: '#ffffff', width: 2 }), fill: new Fill({ color: 'rgb(255 255 255 / 15%)' }) }),
];

/** Return the hatching of unmapped areas. */
export function hatchStyle(): Style {
  const side = 10 * devicePixelRatio;
  const canvas = document.createElement('canvas');
  canvas.width = canvas.height = side;
  const context = canvas.getContext('2d')!;
  context.fillStyle = 'rgb(190 190 190 / 45%)';
  context.fillRect(0, 0, side, side);
  context.strokeStyle = 'rgb(60 60 60 / 90%)';
  context.lineWidth = 1.5 * devicePixelRatio;
  for (const shift of [-side, 0, side]) {
    context.moveTo(shift, side);
    context.lineTo(shift + side, 0);
  }
  context.stroke();
  return new Style({
    fill: new Fill({ color: context.createPattern(canvas, 'repeat')! }),
    stroke: new Stroke({ color: 'rgb(60 60 60 / 90%)', width: 1 }),
  });
}
