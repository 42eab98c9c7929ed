/** Sign-in with an API key, in a dialogue that keeps the page and its unsaved changes. */

import { ServiceError, getSession, signIn, signOut, onSignedOut, type Session } from './api';
import { openDialogue } from './dialogue';
import { button, fill, h } from './dom';
import { errorMessage } from './failure';
import { t } from './language';

let asking: Promise<void> | null = null;

/** Ask for an API key until one is valid. */
export function askKey(): Promise<void> {
  asking ??= new Promise<void>((resolve) => {
    const field = h('input', { id: 'key', type: 'password', required: true, autocomplete: 'current-password' });
    const wrong = h('p', { class: 'wrong-text', role: 'alert' });
    const form = h(
      'form',
      {
        on: {
          submit: (event) => {
            event.preventDefault();
            fill(wrong);
            signIn(field.value.trim()).then(
              () => dialogue.close(),
              (error: unknown) => {
                const unknown = error instanceof ServiceError && (error.status === 401 || error.status === 403);
                fill(wrong, unknown ? () => t().invalidKey : () => errorMessage(error));
                field.select();
              },
            );
          },
        },
      },
      h('p', { class: 'soft' }, () => t().signInText),
      // Password managers need a user name to store the key under.
      h('input', { type: 'text', autocomplete: 'username', value: 'talud', hidden: true }),
      h('label', { for: 'key' }, () => t().key),
      field,
      wrong,
      h('div', { class: 'actions' }, h('button', { type: 'submit', class: 'button primary' }, () => t().signIn)),
    );
    const dialogue = openDialogue(() => t().signInTitle, form);
    dialogue.addEventListener('cancel', (event) => event.preventDefault());
    dialogue.addEventListener('close', () => {
      asking = null;
      resolve();
    });
    field.focus();
  });
  return asking;
}

/** Return the session, after signing in if the service requires a key. */
export async function signedInSession(): Promise<Session> {
  let current = await getSession();
  while (current.keys_required && current.name === null) {
    await askKey();
    current = await getSession();
  }
  onSignedOut(() => {
    if (current.keys_required) void askKey();
  });
  return current;
}

/** Create the user's name and a sign-out button; null if nobody is signed in. */
export function accountControls(current: Session): HTMLElement | null {
  const { name } = current;
  if (!current.keys_required || name === null) return null;
  const out = () => void signOut().finally(() => location.reload());
  return h(
    'span',
    { class: 'account' },
    h('span', { class: 'soft' }, () => t().signedInAs(name)),
    button(() => t().signOut, out),
  );
}
