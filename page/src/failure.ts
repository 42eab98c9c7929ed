/** What went wrong, in words, with a way to try again. */

import { ServiceError } from './api';
import { button, h } from './dom';
import { t } from './language';

/** Why something failed: what the service says, or that it says nothing. */
export function errorMessage(error: unknown): string {
  if (error instanceof ServiceError) return error.status === 0 ? t().noAnswer : error.message;
  return error instanceof Error ? error.message : String(error);
}

/** A notice of what failed and why; with a button where trying again may help. */
export function failureNotice(what: () => string, error: unknown, again?: () => void): HTMLElement {
  return h(
    'div',
    { class: 'notice wrong', role: 'alert' },
    h('p', {}, () => t().failed(what(), errorMessage(error))),
    again ? button(() => t().again, again) : null,
  );
}
