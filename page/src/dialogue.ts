/** Dialogues: one question at a time, with the focus kept in it and given back after. */

import { button, h, type Child, type Words } from './dom';
import { t } from './language';

/** Opens a dialogue; it is gone once closed. */
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

/** Asks whether to go on; false where the person does not want to. */
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
