/** A slider for the threshold of a map's picture, which starts at the map's own. */

import { button, h } from './dom';
import { speak, t } from './language';
import { number } from './quantities';

const STEP = 0.01;

export class ThresholdSlider {
  readonly element: HTMLElement;
  value: number;
  private readonly slider: HTMLInputElement;
  private readonly shown: HTMLOutputElement;
  private readonly back: HTMLButtonElement;

  constructor(
    id: string,
    label: () => string,
    private readonly own: number,
    private readonly changed: (threshold: number) => void,
  ) {
    this.value = own;
    this.slider = h('input', {
      type: 'range',
      id,
      min: STEP,
      max: 1 - STEP,
      step: STEP,
      value: own.toFixed(2),
      on: { input: () => this.set(this.slider.valueAsNumber) },
    });
    this.shown = h('output', { for: id });
    this.back = button(() => t().modelThreshold(number(own, 2)), () => this.set(own));
    const row = h('div', { class: 'row' }, h('label', { for: id }, label), this.shown);
    this.element = h('div', { class: 'threshold' }, row, this.slider, this.back);
    speak(this.element, () => this.show());
  }

  get moved(): boolean {
    return this.value !== this.own;
  }

  private set(threshold: number): void {
    this.value = threshold;
    this.slider.value = threshold.toFixed(2);
    this.show();
    this.changed(threshold);
  }

  private show(): void {
    this.shown.textContent = number(this.value, 2);
    this.slider.setAttribute('aria-valuetext', number(this.value, 2));
    this.back.hidden = !this.moved;
  }
}
