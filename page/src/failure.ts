/** Error messages and notices with a button to try again. */

import { ServiceError } from './api';
import { button, h } from './dom';
import { t } from './language';

/** Return the message of an error, or a hint that the service did not respond. */
export function errorMessage(error: unknown): string {
  if (error instanceof ServiceError) return error.status === 0 ? t().noResponse : error.message;
  return error instanceof Error ? error.message : String(error);
}

/** Create a notice of a failure and its reason; with a button if `again` is given. */
export function failureNotice(what: () => string, error: unknown, again?: () => void): HTMLElement {
  return h(
    'div',
    { class: 'notice wrong', role: 'alert' },
    h('p', {}, () => t().failed(what(), errorMessage(error))),
    again ? button(() => t().tryAgain, again) : null,
  );
}
