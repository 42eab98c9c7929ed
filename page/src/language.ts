/** The language of the page: what is said in it follows when it is changed. */

import { en, type Messages } from './messages/en';
import { es } from './messages/es';

export type Language = 'en' | 'es';

const MESSAGES: Record<Language, Messages> = { en, es };
const KEY = 'talud.language';

let current: Language = remembered() ?? (navigator.language.startsWith('es') ? 'es' : 'en');
let spoken: { node: WeakRef<Node>; renew: (node: Node) => void }[] = [];

function remembered(): Language | null {
  const kept = localStorage.getItem(KEY);
  return kept === 'en' || kept === 'es' ? kept : null;
}

export const language = (): Language => current;

/** The words of the current language. */
export const t = (): Messages => MESSAGES[current];

/** Does something with a node now, and again whenever the language changes while the node is in use. */
export function speak<N extends Node>(node: N, renew: (node: N) => void): void {
  renew(node);
  spoken.push({ node: new WeakRef(node), renew: renew as (node: Node) => void });
}

export function setLanguage(chosen: Language): void {
  current = chosen;
  localStorage.setItem(KEY, chosen);
  document.documentElement.lang = chosen;
  spoken = spoken.filter(({ node, renew }) => {
    const there = node.deref();
    if (there) renew(there);
    return there !== undefined;
  });
}
