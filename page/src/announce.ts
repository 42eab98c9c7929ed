/** What happened, for those who do not see it: a live region. */

import { h } from './dom';

const region = h('p', { role: 'status', class: 'hidden-visually' });

export const liveRegion = (): HTMLElement => region;

export function announce(words: string): void {
  region.textContent = '';
  // Two equal messages in a row are two messages: a screen reader hears only what changes.
  requestAnimationFrame(() => {
    region.textContent = words;
  });
}
