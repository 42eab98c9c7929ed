/** Entry point of the page: header, and the view for the current address. */

import './page.css';
import { liveRegion } from './announce';
import type { Session } from './api';
import { confirmAction } from './dialogue';
import { button, fill, h } from './dom';
import { failureNotice } from './failure';
import { openHelp } from './help';
import { home } from './home';
import { jobView } from './jobview';
import { language, setLanguage, localise, t, type Language } from './language';
import { accountControls, signedInSession } from './session';
import { onKeys } from './shortcuts';
import type { View } from './view';

const content = h('main', { id: 'content', tabindex: -1 });
let current: View | null = null;
let address = '';

function header(session: Session | null): HTMLElement {
  const choose = h('select', {
    id: 'language',
    'aria-label': () => t().language,
    on: { change: () => setLanguage(choose.value as Language) },
  });
  fill(choose, h('option', { value: 'en', lang: 'en' }, 'English'), h('option', { value: 'es', lang: 'es' }, 'Español'));
  choose.value = language();
  const help = button('?', openHelp, { class: 'button plain round', 'aria-label': () => t().helpButton });
  return h(
    'header',
    { class: 'header' },
    h('a', { class: 'skip', href: '#content', on: { click: skip } }, () => t().skip),
    h(
      'a',
      { class: 'brand', href: '#/' },
      h('img', { src: './icon.svg', alt: '', width: 24, height: 24 }),
      h('strong', {}, 'talud'),
      h('span', { class: 'brand-title' }, () => t().title),
    ),
    h('div', { class: 'header-tools' }, session && accountControls(session), choose, help),
  );
}

function skip(event: Event): void {
  // The router uses the address, so the link moves the focus without changing it.
  event.preventDefault();
  content.focus();
}

async function route(session: Session): Promise<void> {
  if (location.hash === address) return;
  if (current?.unsaved() && !(await confirmAction(() => t().leaveTitle, () => t().leaveText, () => t().leave))) {
    history.replaceState(null, '', address);
    return;
  }
  address = location.hash;
  current?.close();
  const [, id, other] = /^#\/jobs\/([^/]+)(?:\/compare\/([^/]+))?$/.exec(address) ?? [];
  current = id ? jobView(session, decodeURIComponent(id), other ? decodeURIComponent(other) : null) : home(session);
  document.body.classList.toggle('with-map', id !== undefined);
  fill(content, current.element);
}

async function startPage(): Promise<void> {
  fill(content, h('p', { class: 'soft centred' }, () => t().loading));
  fill(document.body, header(null), content, liveRegion());
  try {
    const session = await signedInSession();
    fill(document.body, header(session), content, liveRegion());
    address = '-';
    addEventListener('hashchange', () => void route(session));
    await route(session);
  } catch (error) {
    fill(content, failureNotice(() => t().title, error, () => void startPage()));
  }
}

addEventListener('beforeunload', (event) => {
  if (current?.unsaved()) event.preventDefault();
});
onKeys({ '?': openHelp }, new AbortController().signal);
localise(document, () => {
  document.title = `${t().title} – talud`;
});
setLanguage(language());
void startPage();
