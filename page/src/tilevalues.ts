/** Probabilities as the tiles carry them: 1 to 255, 0 where nothing is mapped. */

export const tileValue = (probability: number): number => Math.round(probability * 254) + 1;

/** What a pixel's value must exceed, as a share of 255, to reach the threshold: half a step below its level. */
export const tileThreshold = (threshold: number): number => (tileValue(threshold) - 0.5) / 255;

/** The values of a tile: probability, inventory (255 landslide), whether the inventory is known (255), 255. */
export function mergeTiles(probability: Uint8ClampedArray | null, inventory: Uint8ClampedArray | null, pixels: number): Uint8Array {
  const values = new Uint8Array(pixels * 4);
  for (let at = 0; at < values.length; at += 4) {
    values[at] = probability && probability[at + 3]! > 0 ? probability[at]! : 0;
    const known = inventory !== null && inventory[at + 3]! > 0;
    values[at + 1] = known ? inventory[at]! : 0;
    values[at + 2] = known ? 255 : 0;
    values[at + 3] = 255;
  }
  return values;
}
