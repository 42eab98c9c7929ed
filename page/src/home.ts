/** Start view: a form that starts a map, and the list of maps. */

import type { Session } from './api';
import { h } from './dom';
import { JobList } from './joblist';
import { StartForm } from './startform';
import { t } from './language';
import type { View } from './view';

export function home(session: Session): View {
  const list = new JobList();
  const form = new StartForm(
    session,
    () => void list.poll(),
    (rasters) => list.setRasters(rasters),
  );
  return {
    element: h('div', { class: 'home' }, h('h1', { class: 'hidden-visually' }, () => t().title), form.element, list.element),
    unsaved: () => false,
    close: () => list.close(),
  };
}
