/** Name of the reviewer, stored in the browser. */

import { button, h } from './dom';
import { openDialogue } from './dialogue';
import { t } from './language';

const REVIEWER_KEY = 'talud.reviewer';

export const reviewer = (): string | null => localStorage.getItem(REVIEWER_KEY);

/** Ask for the reviewer's name; resolve to null if the user cancels. */
export function askReviewer(): Promise<string | null> {
  return new Promise((resolve) => {
    const field = h('input', {
      id: 'reviewer',
      required: true,
      maxlength: 100,
      autocomplete: 'name',
      value: reviewer() ?? '',
    });
    const form = h(
      'form',
      {
        method: 'dialog',
        on: {
          submit: (event) => {
            event.preventDefault();
            const name = field.value.trim();
            if (!name) return;
            localStorage.setItem(REVIEWER_KEY, name);
            dialogue.close('yes');
          },
        },
      },
      h('label', { for: 'reviewer' }, () => t().reviewerName),
      field,
      h('p', { class: 'soft' }, () => t().reviewerNotice),
      h(
        'div',
        { class: 'actions' },
        button(() => t().cancel, () => dialogue.close()),
        h('button', { type: 'submit', class: 'button primary' }, () => t().proceed),
      ),
    );
    const dialogue = openDialogue(() => t().reviewerTitle, form);
    dialogue.addEventListener('close', () => resolve(dialogue.returnValue === 'yes' ? reviewer() : null));
    field.focus();
  });
}
