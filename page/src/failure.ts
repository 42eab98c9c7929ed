/** What went wrong, in words, with a way to try again. */

import { Problem } from './api';
import { button, h } from './dom';
import { t } from './language';

/** Why something failed: what the service says, or that it says nothing. */
export function reason(error: unknown): string {
  if (error instanceof Problem) return error.status === 0 ? t().noAnswer : error.message;
  return error instanceof Error ? error.message : String(error);
}

/** A notice of what failed and why; with a button where trying again may help. */
export function failure(what: () => string, error: unknown, again?: () => void): HTMLElement {
  return h(
    'div',
    { class: 'notice wrong', role: 'alert' },
    h('p', {}, () => t().failed(what(), reason(error))),
    again ? button(() => t().again, again) : null,
  );
}
