/** Modal dialogues, which keep the focus and return it when they are closed. */

import { button, h, type Child, type Words } from './dom';
import { t } from './language';

/** Open a dialogue, which is removed when it is closed. */
export function openDialogue(title: Words, ...children: Child[]): HTMLDialogElement {
  const dialogue = h(
    'dialog',
    { 'aria-labelledby': 'dialogue-title' },
    h('h2', { id: 'dialogue-title' }, title),
    ...children,
  );
  dialogue.addEventListener('close', () => dialogue.remove());
  document.body.append(dialogue);
  dialogue.showModal();
  return dialogue;
}

/** Ask for confirmation; resolve to false if the user cancels. */
export function confirmAction(title: Words, text: Words, yes: Words): Promise<boolean> {
  return new Promise((resolve) => {
    const dialogue = openDialogue(
      title,
      h('p', {}, text),
      h(
        'div',
        { class: 'actions' },
        button(() => t().cancel, () => dialogue.close()),
        button(yes, () => dialogue.close('yes'), { kind: 'danger' }),
      ),
    );
    dialogue.addEventListener('close', () => resolve(dialogue.returnValue === 'yes'));
  });
}
