/** Colours of the map, safe for colour-blind readers. */

export type Colour = readonly [red: number, green: number, blue: number];

/** Colour ramp of the probability, as in the QGIS styles. */
export const PROBABILITY_RAMP: readonly (readonly [probability: number, colour: Colour])[] = [
  [0, [255, 255, 212]],
  [0.1, [254, 233, 176]],
  [0.25, [254, 217, 142]],
  [0.5, [254, 153, 41]],
  [0.75, [221, 75, 26]],
  [1, [140, 13, 37]],
];

/** Colours of the confusion map, from the palette of Okabe and Ito. */
export const TRUE_POSITIVE: Colour = [0, 114, 178];
export const FALSE_POSITIVE: Colour = [230, 159, 0];
export const FALSE_NEGATIVE: Colour = [204, 61, 139];
export const INVENTORY_COLOUR: Colour = [94, 60, 153];

export const css = ([red, green, blue]: Colour, opacity = 1): string => `rgb(${red} ${green} ${blue} / ${opacity})`;
