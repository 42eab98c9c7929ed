/** View of one map, or of two maps of a raster side by side, with its panels. */

import { announce } from './announce';
import type { Session } from './api';
import { button, fill, h, type Words } from './dom';
import { failureNotice } from './failure';
import { JobMapView } from './jobmap';
import { JobState, type Panel } from './jobstate';
import { localise, t } from './language';
import { LayerPanel } from './layerpanel';
import { MapArea } from './maparea';
import { supportsWebGL2 } from './mapframe';
import { ReviewPanel } from './reviewpanel';
import { onKeys } from './shortcuts';
import type { View } from './view';

/** Open a map; `other` is the job of a map to compare it with. */
export function jobView(session: Session, id: string, other: string | null): View {
  const element = h('div', { class: 'job-view' });
  const closing = new AbortController();
  let state: JobState | null = null;
  const open = async () => {
    fill(element, h('p', { class: 'soft centred' }, () => t().loading));
    if (!supportsWebGL2()) return fill(element, h('p', { class: 'notice wrong', role: 'alert' }, () => t().noWebGL));
    try {
      const opened = await Promise.all([id, ...(other ? [other] : [])].map((one) => JobMapView.open(one)));
      if (closing.signal.aborted) return opened.forEach((one) => one.close());
      state = new JobState(session, opened[0]!, opened[1] ?? null);
      await show(element, state, closing.signal);
    } catch (error) {
      if (!closing.signal.aborted) fill(element, failureNotice(() => t().mapFailed, error, () => void open()));
    }
  };
  void open();
  return {
    element,
    unsaved: () => state?.unsaved ?? false,
    close: () => {
      closing.abort();
      state?.close();
    },
  };
}

/** Fill the element with the map and its panels, and load their content. */
async function show(element: HTMLElement, state: JobState, signal: AbortSignal): Promise<void> {
  const { main } = state;
  const area = new MapArea(state);
  const layers = new LayerPanel(state, signal, () => void mapAgain(state, area.notice));
  const review = new ReviewPanel(main.job.jobID, main.review, state.mayReview, {
    next: () => state.step(1),
    previous: () => state.step(-1),
    accept: () => void state.reviewSelected('accepted'),
    reject: () => void state.reviewSelected('rejected'),
    undo: () => void state.undo(),
    edit: () => void state.edit(),
    draw: () => void state.draw(),
  });
  const unchecked = h('span');
  const body = h('div', { class: 'job-body' }, tabs(state), layers.element, area.element, review.element);
  const showReview = () => {
    review.show();
    unchecked.textContent = uncheckedText(state);
  };
  main.review.onChange(showReview);
  state.onChange(() => showPanel(body, state.panel));
  showPanel(body, state.panel);
  bindKeys(state, signal);
  localise(body, () => {
    showReview();
    area.show();
    layers.show();
  });
  fill(element, titleStrip(state, unchecked), body);
  main.frame.fit();
  await Promise.all([...state.maps.map((map) => map.review.load()), layers.load()]);
}

function titleStrip({ main: { facts } }: JobState, unchecked: HTMLElement): HTMLElement {
  return h(
    'div',
    { class: facts.synthetic ? 'strip synthetic' : 'strip' },
    h('a', { class: 'back', href: '#/' }, '‹ ', () => t().back),
    h('h1', {}, facts.name),
    h(
      'p',
      {},
      facts.synthetic ? h('strong', {}, () => `${t().syntheticTitle}. `) : null,
      facts.synthetic ? h('span', {}, () => `${t().syntheticMap} `) : null,
      h('span', {}, () => `${t().madeBy(facts.model, facts.version)} `),
      unchecked,
    ),
  );
}

function uncheckedText({ main }: JobState): string {
  const { unreviewed, accepted, rejected } = main.review.counts();
  const reviewed = accepted + rejected;
  const all = unreviewed + reviewed;
  if (reviewed === 0) return t().reviewedNone;
  return unreviewed ? t().reviewedSome(reviewed, all) : t().reviewedAll(all);
}

/** Create buttons that switch between the panels on small screens. */
function tabs(state: JobState): HTMLElement {
  const tab = (panel: Panel, words: Words) =>
    button(words, () => state.showPanel(panel), { class: 'tab', id: `tab-${panel}`, 'aria-pressed': 'false' });
  return h(
    'div',
    { class: 'tabs', role: 'group', 'aria-label': () => t().panelTabs },
    tab('review', () => t().reviewTab),
    tab('layers', () => t().layersTab),
  );
}

function showPanel(body: HTMLElement, panel: Panel): void {
  for (const name of ['layers', 'review'] as const) {
    body.classList.toggle(`show-${name}`, panel === name);
    body.querySelector(`#tab-${name}`)?.setAttribute('aria-pressed', String(panel === name));
  }
}

function bindKeys(state: JobState, signal: AbortSignal): void {
  onKeys(
    {
      n: () => state.step(1),
      p: () => state.step(-1),
      a: () => void state.reviewSelected('accepted'),
      r: () => void state.reviewSelected('rejected'),
      u: () => void state.undo(),
      d: () => void state.draw(),
      e: () => void state.edit(),
      Enter: () => state.editing.finish(),
      Escape: () => state.leave(),
    },
    signal,
  );
}

async function mapAgain(state: JobState, notice: HTMLElement): Promise<void> {
  try {
    await state.requestMap();
    announce(t().started);
    location.hash = '#/';
  } catch (error) {
    fill(notice, failureNotice(() => t().startFailed, error, () => void mapAgain(state, notice)));
  }
}
