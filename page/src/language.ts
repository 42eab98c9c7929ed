/** Language of the page and the update of its texts when it changes. */

import { en, type Messages } from './messages/en';
import { es } from './messages/es';

export type Language = 'en' | 'es';

const MESSAGES: Record<Language, Messages> = { en, es };
const LANGUAGE_KEY = 'talud.language';

let current: Language = storedLanguage() ?? (navigator.language.startsWith('es') ? 'es' : 'en');
let localised: { node: WeakRef<Node>; update: (node: Node) => void }[] = [];

function storedLanguage(): Language | null {
  const stored = localStorage.getItem(LANGUAGE_KEY);
  return stored === 'en' || stored === 'es' ? stored : null;
}

export const language = (): Language => current;

/** Return the messages of the current language. */
export const t = (): Messages => MESSAGES[current];

/** Update a node now and after every change of the language. */
export function localise<N extends Node>(node: N, update: (node: N) => void): void {
  update(node);
  localised.push({ node: new WeakRef(node), update: update as (node: Node) => void });
}

export function setLanguage(chosen: Language): void {
  current = chosen;
  localStorage.setItem(LANGUAGE_KEY, chosen);
  document.documentElement.lang = chosen;
  localised = localised.filter(({ node, update }) => {
    const target = node.deref();
    if (target) update(target);
    return target !== undefined;
  });
}
