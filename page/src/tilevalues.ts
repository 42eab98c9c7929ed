/** Encoding of probabilities in tiles: 1 to 255, and 0 for unmapped pixels. */

export const tileValue = (probability: number): number => Math.round(probability * 254) + 1;

/** Return the tile value, divided by 255, above which a pixel reaches the threshold. */
export const tileThreshold = (threshold: number): number => (tileValue(threshold) - 0.5) / 255;

/** Merge tiles into bands: probability, inventory (255 landslide), inventory known (255), 255. */
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
