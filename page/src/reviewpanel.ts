/** Review panel: progress, selected polygon, actions and export. */

import type Feature from 'ol/Feature';

import { exportReview } from './api';
import { announce } from './announce';
import { button, fill, h } from './dom';
import { errorMessage, failureNotice } from './failure';
import { localise, t } from './language';
import { area, moment, number, probability } from './quantities';
import { isNew, propertiesOf, type Review } from './review';
import { askReviewer, reviewer } from './reviewer';

export interface ReviewHandlers {
  next(): void;
  previous(): void;
  accept(): void;
  reject(): void;
  undo(): void;
  edit(): void;
  draw(): void;
}

const ADVANCE_KEY = 'talud.goOn';

export const advancesAfterReview = (): boolean => localStorage.getItem(ADVANCE_KEY) === 'on';

export class ReviewPanel {
  readonly element: HTMLElement;
  private readonly unsaved = h('div', { class: 'unsaved' });
  private readonly counts = h('div', { class: 'progress' });
  private readonly selected = h('div', { class: 'selected' });
  private readonly by = h('p', { class: 'soft reviewing' });
  private readonly notice = h('div');
  private readonly note = h('p', { class: 'soft' });
  private readonly accept: HTMLButtonElement;
  private readonly reject: HTMLButtonElement;
  private readonly draw: HTMLButtonElement;
  private readonly reviewButtons: HTMLButtonElement[];
  private readonly undo: HTMLButtonElement;

  constructor(
    private readonly job: string,
    private readonly review: Review,
    private readonly mayReview: boolean,
    handlers: ReviewHandlers,
  ) {
    const key = (words: () => string, letter: string, onClick: () => void, kind: 'primary' | 'plain' = 'plain') => {
      const made = button(words, onClick, { kind, 'aria-keyshortcuts': letter });
      made.append(h('kbd', { 'aria-hidden': 'true' }, letter));
      return made;
    };
    const rememberAdvance = () => localStorage.setItem(ADVANCE_KEY, advance.checked ? 'on' : 'off');
    const advance = h('input', { type: 'checkbox', id: 'go-on', checked: advancesAfterReview(), on: { change: rememberAdvance } });
    this.accept = key(() => t().accept, 'a', handlers.accept, 'primary');
    this.reject = key(() => t().reject, 'r', handlers.reject);
    const edit = key(() => t().edit, 'e', handlers.edit);
    this.undo = key(() => (this.drawn() ? t().removeDrawn : t().undo), 'u', handlers.undo);
    this.draw = key(() => t().draw, 'd', handlers.draw);
    this.draw.disabled = !mayReview;
    this.reviewButtons = [this.accept, this.reject, edit];
    this.element = h(
      'section',
      { class: 'panel review', 'aria-labelledby': 'review-title' },
      h('h2', { id: 'review-title' }, () => t().review),
      this.unsaved,
      this.counts,
      h(
        'div',
        { class: 'review-actions' },
        mayReview ? null : h('p', { class: 'notice' }, () => t().cannotReview),
        h('div', { class: 'pair' }, key(() => t().previous, 'p', handlers.previous), key(() => t().next, 'n', handlers.next)),
        h('div', { class: 'pair' }, this.accept, this.reject, edit, this.undo),
        h('p', { class: 'check' }, advance, h('label', { for: 'go-on' }, () => t().advanceAfterReview)),
      ),
      this.selected,
      h(
        'div',
        { class: 'export-actions' },
        this.draw,
        this.by,
        button(() => t().exportReview, () => void this.export(), { kind: 'primary', id: 'export' }),
        this.note,
        this.notice,
      ),
    );
    localise(this.element, () => this.show());
  }

  private drawn(): boolean {
    const { selected } = this.review;
    return selected !== null && propertiesOf(selected).origin === 'drawn';
  }

  show(): void {
    const { selected } = this.review;
    const { unreviewed, accepted, rejected, drawn, acceptedArea } = this.review.counts();
    const all = unreviewed + accepted + rejected;
    const entry = (words: string, value: string) => h('div', {}, h('dt', {}, words), h('dd', {}, value));
    if (!this.review.loaded) fill(this.counts, h('p', { class: 'soft' }, t().loading));
    else fill(
      this.counts,
      all === 0
        ? h('p', { class: 'soft' }, t().noPolygons)
        : h('progress', { max: all, value: all - unreviewed, 'aria-label': t().reviewed }),
      h('p', { class: 'soft' }, t().reviewedOf(all - unreviewed, all)),
      h(
        'dl',
        { class: 'counts' },
        entry(t().counts.unreviewed, number(unreviewed)),
        entry(t().counts.accepted, number(accepted)),
        entry(t().counts.rejected, number(rejected)),
        entry(t().counts.drawn, number(drawn)),
        entry(t().acceptedArea, area(acceptedArea)),
      ),
    );
    fill(this.selected, ...(selected ? polygonFacts(selected) : [h('p', { class: 'soft' }, t().nothingSelected)]));
    for (const one of this.reviewButtons) one.disabled = !this.mayReview || selected === null;
    // A drawn polygon is accepted; it can only be redrawn or deleted.
    if (this.drawn()) this.accept.disabled = this.reject.disabled = true;
    this.undo.disabled = !this.mayReview || selected === null || isNew(selected) || propertiesOf(selected).verdict === 'unreviewed';
    this.undo.firstChild!.textContent = this.drawn() ? t().removeDrawn : t().undo;
    this.note.textContent = t().exportNote(unreviewed);
    const name = reviewer();
    const change = () => void askReviewer().then(() => this.show());
    fill(this.by, ...(name ? [h('span', {}, t().reviewingAs(name)), button(t().changeReviewer, change, { class: 'button link' })] : []));
    this.showUnsaved();
  }

  private showUnsaved(): void {
    const { unsaved, saving } = this.review;
    const entry = (one: (typeof unsaved)[number]) =>
      h(
        'li',
        {},
        h('span', {}, t().unsavedOf(t().actionDone[one.action], area(propertiesOf(one.feature).area_m2), errorMessage(one.error))),
        button(t().discard, () => this.review.discard(one), { class: 'button link' }),
      );
    fill(
      this.unsaved,
      saving ? h('p', { class: 'soft' }, t().saving(saving)) : null,
      unsaved.length
        ? h(
            'div',
            // No alert role: the live region reads the failure once, while the panel is often rebuilt.
            { class: 'notice wrong' },
            h('p', {}, h('strong', {}, t().unsaved(unsaved.length))),
            h('ul', {}, ...unsaved.map(entry)),
            button(t().tryAllAgain, () => void this.review.retryUnsaved(), { kind: 'primary' }),
          )
        : null,
    );
  }

  private async export(): Promise<void> {
    if (this.review.anyUnsaved) {
      fill(this.notice, h('p', { class: 'notice wrong', role: 'alert' }, () => t().exportUnsaved));
      return;
    }
    try {
      const link = h('a', { href: URL.createObjectURL(await exportReview(this.job)), download: 'review.gpkg' });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
      const words = () => t().exported(this.review.counts().unreviewed);
      fill(this.notice, h('p', { class: 'notice' }, words));
      announce(words());
    } catch (error) {
      fill(this.notice, failureNotice(() => t().exportFailed, error, () => void this.export()));
    }
  }
}

function polygonFacts(feature: Feature): HTMLElement[] {
  const facts = propertiesOf(feature);
  const origin = facts.origin === 'drawn' ? t().originDrawn : facts.redrawn ? t().redrawn : t().originModel;
  const entries: [string, string | null][] = [
    [t().reviewStatus, feature.get('unsaved') || feature.get('failed') ? t().unsavedLegend : t().reviewStatuses[facts.verdict]],
    [t().area, area(facts.area_m2)],
    [t().meanProbability, facts.origin === 'model' ? probability(facts.mean_probability) : null],
    [t().maximumProbability, facts.origin === 'model' ? probability(facts.maximum_probability) : null],
    [t().meanSlope, facts.mean_slope_degrees == null ? null : `${number(facts.mean_slope_degrees, 1)}°`],
    [t().origin, origin],
  ];
  const known = entries.filter(([, value]) => value !== null);
  const { reviewed_by: name, reviewed_at: when } = facts;
  return [
    h('h3', {}, t().selected),
    h('dl', { class: 'facts' }, ...known.map(([words, value]) => h('div', {}, h('dt', {}, words), h('dd', {}, value)))),
    ...(name && when ? [h('p', { class: 'soft' }, t().reviewedBy(name, moment(when)))] : []),
  ];
}
