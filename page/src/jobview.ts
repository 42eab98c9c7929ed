/** The view of one map: the map between its panels, or two maps of one raster with a divider between them. */

import type Feature from 'ol/Feature';
import type MapBrowserEvent from 'ol/MapBrowserEvent';

import { jobs, start, type Session } from './api';
import { announce } from './announce';
import { confirmed } from './dialogue';
import { button, fill, h, type Words } from './dom';
import { Editing } from './editing';
import { failure } from './failure';
import { JobMapView } from './jobmap';
import { speak, t } from './language';
import { compareChoice, layerRows, notMappedFacts, showFiles } from './layerpanel';
import { Legend } from './legend';
import { drawsWebGL } from './mapframe';
import { number } from './quantities';
import { properties } from './review';
import { askReviewer, reviewer } from './reviewer';
import { goesOn, ReviewPanel } from './reviewpanel';
import { onKeys } from './shortcuts';
import { Swipe } from './swipe';
import { ThresholdSlider } from './thresholdslider';
import type { View } from './view';

const MOST_JOBS = 200;

/** Opens a map, and another one to compare it with where its id is given. */
export function jobView(session: Session, id: string, other: string | null): View {
  const element = h('div', { class: 'job-view' });
  const closing = new AbortController();
  let shown: OpenJob | null = null;
  const open = async () => {
    fill(element, h('p', { class: 'soft centred' }, () => t().loading));
    if (!drawsWebGL()) return fill(element, h('p', { class: 'notice wrong', role: 'alert' }, () => t().noWebGL));
    try {
      const opened = await Promise.all([id, ...(other ? [other] : [])].map((one) => JobMapView.open(one)));
      if (closing.signal.aborted) return opened.forEach((one) => one.close());
      shown = new OpenJob(session, opened[0]!, opened[1] ?? null, closing.signal);
      fill(element, ...shown.children);
      await shown.begin();
    } catch (error) {
      if (!closing.signal.aborted) fill(element, failure(() => t().mapFailed, error, () => void open()));
    }
  };
  void open();
  return {
    element,
    unsaved: () => shown?.unsaved ?? false,
    close: () => {
      closing.abort();
      shown?.close();
    },
  };
}

class OpenJob {
  readonly children: HTMLElement[];
  private readonly panel: ReviewPanel;
  private readonly legend = new Legend();
  private readonly editing: Editing;
  private readonly slider: ThresholdSlider;
  private readonly secondSlider: ThresholdSlider | null;
  private readonly swipe: Swipe | null = null;
  private readonly unchecked = h('span');
  private readonly notice = h('div', { class: 'map-notice' });
  private readonly notMapped = h('div', {}, h('p', { class: 'soft' }, () => t().loading));
  private readonly compare = h('div');
  private readonly files = h('div');
  private readonly again: HTMLButtonElement;
  private readonly body = h('div', { class: 'job-body show-review' });

  constructor(
    private readonly session: Session,
    private readonly main: JobMapView,
    private readonly second: JobMapView | null,
    private readonly signal: AbortSignal,
  ) {
    const { review, frame, facts } = main;
    this.editing = new Editing(main.map);
    this.panel = new ReviewPanel(main.job.jobID, review, this.mayReview, {
      next: () => this.step(1),
      previous: () => this.step(-1),
      accept: () => void this.judge('accepted'),
      reject: () => void this.judge('rejected'),
      undo: () => void this.undo(),
      edit: () => this.edit(),
      draw: () => this.draw(),
    });
    this.slider = new ThresholdSlider('map-threshold', () => (second ? t().leftThreshold : t().mapThreshold), facts.threshold, (threshold) => {
      main.layers.setThreshold(threshold);
      this.showLegend();
    });
    this.secondSlider = second
      ? new ThresholdSlider('second-threshold', () => t().rightThreshold, second.facts.threshold, (threshold) => second.layers.setThreshold(threshold))
      : null;
    this.again = button(() => t().mapAgain(number(this.slider.value, 2)), () => void this.mapAgain(), { id: 'map-again' });
    const map = h('div', { class: 'map-area' }, frame.element, this.legend.element, this.editing.bar, this.notice);
    if (second) this.swipe = this.sideBySide(second, map);
    fill(this.body, this.tabs(), this.layerPanel(), map, this.panel.element);
    this.children = [this.strip(), this.body];
    for (const one of this.views) one.onTileFailure(() => this.showTileFailures());
    review.onChange(() => this.show());
    main.map.on('click', (event) => this.clicked(event));
    this.keys();
    speak(this.body, () => this.show());
  }

  private get views(): JobMapView[] {
    return this.second ? [this.main, this.second] : [this.main];
  }

  private get mayReview(): boolean {
    return this.session.scope !== 'read';
  }

  get unsaved(): boolean {
    return this.main.review.anyUnsaved || this.editing.active;
  }

  close(): void {
    for (const view of this.views) view.close();
  }

  /** Asks for all that the map shows besides its tiles. */
  async begin(): Promise<void> {
    this.main.frame.fit();
    await Promise.all([...this.views.map((view) => view.review.load()), this.showNotMapped(), this.showCompare(), showFiles(this.main.job.jobID, this.files)]);
  }

  private strip(): HTMLElement {
    const { facts } = this.main;
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
        this.unchecked,
      ),
    );
  }

  /** Where there is no room for both panels, one of them is chosen. */
  private tabs(): HTMLElement {
    const tab = (panel: 'layers' | 'review', words: Words) => button(words, () => this.showPanel(panel), { class: 'tab', id: `tab-${panel}`, 'aria-pressed': String(panel === 'review') });
    return h('div', { class: 'tabs', role: 'group', 'aria-label': () => t().panelTabs }, tab('review', () => t().reviewTab), tab('layers', () => t().layersTab));
  }

  private showPanel(panel: 'layers' | 'review'): void {
    this.body.classList.toggle('show-review', panel === 'review');
    this.body.classList.toggle('show-layers', panel === 'layers');
    for (const name of ['layers', 'review']) this.body.querySelector(`#tab-${name}`)?.setAttribute('aria-pressed', String(name === panel));
  }

  private layerPanel(): HTMLElement {
    const change = (name: string, visible: boolean, opacity: number) => {
      for (const view of this.views) {
        view.layers.find(name)?.setVisible(visible);
        view.layers.find(name)?.setOpacity(opacity);
      }
      this.showLegend();
    };
    const { facts } = this.main;
    return h(
      'section',
      { class: 'panel layer-panel', 'aria-labelledby': 'layers-title' },
      h('h2', { id: 'layers-title' }, () => t().layers),
      layerRows(this.main.layers.all, change),
      this.slider.element,
      this.secondSlider?.element,
      h('p', { class: 'soft' }, () => t().sliderNote(number(facts.threshold, 2))),
      this.mayReview ? this.again : null,
      h('h3', {}, () => t().notMapped),
      this.notMapped,
      h('h3', {}, () => t().compare),
      this.compare,
      h('h3', {}, () => t().files),
      this.files,
    );
  }

  /** Lays the second map over the first; both look at the same place. */
  private sideBySide(second: JobMapView, area: HTMLElement): Swipe {
    second.map.setView(this.main.map.getView());
    const { target } = second.frame;
    target.classList.add('upper');
    // Fingers, mouse and keys move the map below, and with it this one.
    target.removeAttribute('tabindex');
    target.setAttribute('aria-hidden', 'true');
    const swipe = new Swipe(area, target);
    const name = ({ facts }: JobMapView) => `${t().jobModel(facts.model, facts.version)} · ${number(facts.threshold, 2)}`;
    this.main.frame.target.after(target);
    area.append(
      h('p', { class: 'side left' }, h('span', { class: 'hidden-visually' }, () => `${t().left}: `), () => name(this.main)),
      h('p', { class: 'side right' }, h('span', { class: 'hidden-visually' }, () => `${t().right}: `), () => name(second)),
      swipe.handle,
    );
    return swipe;
  }

  private show(): void {
    this.panel.show();
    this.showLegend();
    const { unreviewed, accepted, rejected } = this.main.review.counts();
    const reviewed = accepted + rejected;
    const all = unreviewed + reviewed;
    this.unchecked.textContent = reviewed === 0 ? t().uncheckedAll : unreviewed ? t().uncheckedSome(reviewed, all) : t().uncheckedNone(all);
  }

  private showLegend(): void {
    const visible = this.main.layers.all.filter(({ layer }) => layer.getVisible()).map(({ name }) => name);
    this.legend.show(new Set(visible), this.slider.value, this.main.review.unsaved.length > 0);
    this.again.hidden = !this.slider.moved;
    this.again.textContent = t().mapAgain(number(this.slider.value, 2));
  }

  private showTileFailures(): void {
    const failed = this.views.reduce((sum, view) => sum + view.failedTiles, 0);
    const again = () => {
      fill(this.notice);
      for (const view of this.views) view.refresh();
    };
    fill(this.notice, h('div', { class: 'notice wrong', role: 'alert' }, h('p', {}, () => t().tilesFailed(failed)), button(() => t().again, again)));
  }

  private async showNotMapped(): Promise<void> {
    try {
      const [areas] = await Promise.all(this.views.map((view) => view.loadNotMapped()));
      fill(this.notMapped, notMappedFacts(areas!));
    } catch (error) {
      fill(this.notMapped, failure(() => t().notMappedFailed, error, () => void this.showNotMapped()));
    }
  }

  private async showCompare(): Promise<void> {
    const { job } = this.main;
    try {
      const { jobs: all } = await jobs(MOST_JOBS, this.signal);
      const others = all.filter((one) => one.status === 'successful' && one.jobID !== job.jobID && one.inputs.raster === job.inputs.raster);
      fill(this.compare, compareChoice(job.jobID, others, this.second?.job.jobID ?? null));
    } catch (error) {
      if (!this.signal.aborted) fill(this.compare, failure(() => t().compare, error, () => void this.showCompare()));
    }
  }

  private clicked(event: MapBrowserEvent): void {
    if (this.editing.active) return;
    const [x = 0] = event.pixel;
    if (this.swipe?.isRight(x)) {
      if (this.second?.polygonAt(event.pixel)) announce(t().otherMap);
      return;
    }
    this.main.review.select(this.main.polygonAt(event.pixel));
    if (this.main.review.selected) this.showPanel('review');
  }

  private step(by: 1 | -1): void {
    if (this.editing.active) return;
    const found = this.main.review.step(by);
    if (found) {
      this.main.frame.zoomTo(found.getGeometry()!.getExtent());
      this.showPanel('review');
    }
  }

  /** The selected polygon, and who says something of it; nothing where there is none, or nobody's name. */
  private async subject(): Promise<{ feature: Feature; name: string } | null> {
    const feature = this.main.review.selected;
    if (!feature || !this.mayReview || this.editing.active) return null;
    const name = await this.name();
    return name === null ? null : { feature, name };
  }

  private async name(): Promise<string | null> {
    const name = reviewer() ?? (await askReviewer());
    if (name === null) announce(t().reviewerNeeded);
    return name;
  }

  private async judge(verdict: 'accepted' | 'rejected'): Promise<void> {
    const found = await this.subject();
    if (!found || properties(found.feature).origin === 'drawn') return;
    const kept = this.main.review.judge(found.feature, verdict, found.name);
    if (goesOn()) this.step(1);
    await kept;
  }

  private async undo(): Promise<void> {
    const feature = this.main.review.selected;
    if (!feature || !this.mayReview || this.editing.active) return;
    const { origin, redrawn, verdict } = properties(feature);
    if (verdict === 'unreviewed') return;
    const drawn = origin === 'drawn';
    const lost = drawn || redrawn;
    const sure =
      !lost ||
      (await confirmed(
        () => (drawn ? t().removeDrawnTitle : t().undoRedrawnTitle),
        () => (drawn ? t().removeDrawnText : t().undoRedrawnText),
        () => (drawn ? t().removeDrawn : t().undo),
      ));
    if (sure) await this.main.review.undo(feature);
  }

  private edit(): void {
    void this.subject().then((found) => {
      if (!found) return;
      this.main.frame.zoomTo(found.feature.getGeometry()!.getExtent());
      this.editing.edit(found.feature, (geometry) => void this.main.review.reshape(found.feature, geometry, found.name));
    });
  }

  private draw(): void {
    if (!this.mayReview || this.editing.active) return;
    void this.name().then((name) => {
      if (name !== null) this.editing.draw((geometry) => void this.main.review.draw(geometry, name));
    });
  }

  private keys(): void {
    onKeys(
      {
        n: () => this.step(1),
        p: () => this.step(-1),
        a: () => void this.judge('accepted'),
        r: () => void this.judge('rejected'),
        u: () => void this.undo(),
        d: () => this.draw(),
        e: () => this.edit(),
        Enter: () => this.editing.finish(),
        Escape: () => (this.editing.active ? this.editing.leave() : this.main.review.select(null)),
      },
      this.signal,
    );
  }

  private async mapAgain(): Promise<void> {
    const { raster, model, version, minimum_area: minimum } = this.main.job.inputs;
    try {
      await start({
        raster: { href: raster },
        model: version ? `${model}/${version}` : model,
        threshold: this.slider.value,
        ...(minimum ? { minimum_area: minimum } : {}),
      });
      announce(t().started);
      location.hash = '#/';
    } catch (error) {
      fill(this.notice, failure(() => t().startFailed, error, () => void this.mapAgain()));
    }
  }
}
