/** Help dialogue: keyboard shortcuts and how to read a map. */

import { openDialogue } from './dialogue';
import { button, h } from './dom';
import { t } from './language';
import { setShortcuts, shortcutsOn } from './shortcuts';

export function openHelp(): void {
  const keys: [string, string][] = [
    ['n', t().keyNext],
    ['p', t().keyPrevious],
    ['a', t().keyAccept],
    ['r', t().keyReject],
    ['u', t().keyUndo],
    ['d', t().keyDraw],
    ['e', t().keyEdit],
    ['Enter', t().keyEnter],
    ['Esc', t().keyEscape],
    ['?', t().keyHelp],
  ];
  const on = h('input', { type: 'checkbox', id: 'keys-on', checked: shortcutsOn(), on: { change: () => setShortcuts(on.checked) } });
  const dialogue = openDialogue(
    () => t().helpTitle,
    h('h3', {}, () => t().helpWhat),
    h('ul', {}, ...[t().helpNetwork, t().helpReview, t().helpNotMapped, t().helpSynthetic].map((text) => h('li', {}, text))),
    h('h3', {}, () => t().helpKeys),
    h('dl', { class: 'keys' }, ...keys.map(([key, meaning]) => h('div', {}, h('dt', {}, h('kbd', {}, key)), h('dd', {}, meaning)))),
    h('p', { class: 'check' }, on, h('label', { for: 'keys-on' }, () => t().enableShortcuts)),
    h('p', { class: 'soft' }, h('a', { href: './licences.txt', target: '_blank' }, () => t().licences)),
    h('div', { class: 'actions' }, button(() => t().close, () => dialogue.close(), { kind: 'primary' })),
  );
  dialogue.classList.add('wide');
}
