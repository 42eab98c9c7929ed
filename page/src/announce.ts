/** Live region that reads messages to screen readers. */

import { h } from './dom';

const region = h('p', { role: 'status', class: 'hidden-visually' });

export const liveRegion = (): HTMLElement => region;

export function announce(words: string): void {
  region.textContent = '';
  // A screen reader only reads changes, so the region is cleared before a repeated message.
  requestAnimationFrame(() => {
    region.textContent = words;
  });
}
