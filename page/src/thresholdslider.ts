/** Slider for the threshold at which a map is coloured, with a reset button. */

import { button, h } from './dom';
import { localise, t } from './language';
import { number } from './quantities';

const STEP = 0.01;

export class ThresholdSlider {
  readonly element: HTMLElement;
  value: number;
  private readonly slider: HTMLInputElement;
  private readonly output: HTMLOutputElement;
  private readonly resetButton: HTMLButtonElement;

  constructor(
    id: string,
    label: () => string,
    private readonly initial: number,
    private readonly onChange: (threshold: number) => void,
  ) {
    this.value = initial;
    this.slider = h('input', {
      type: 'range',
      id,
      min: STEP,
      max: 1 - STEP,
      step: STEP,
      value: initial.toFixed(2),
      on: { input: () => this.set(this.slider.valueAsNumber) },
    });
    this.output = h('output', { for: id });
    this.resetButton = button(() => t().modelThreshold(number(initial, 2)), () => this.set(initial));
    const row = h('div', { class: 'row' }, h('label', { for: id }, label), this.output);
    this.element = h('div', { class: 'threshold' }, row, this.slider, this.resetButton);
    localise(this.element, () => this.show());
  }

  get moved(): boolean {
    return this.value !== this.initial;
  }

  private set(threshold: number): void {
    this.value = threshold;
    this.slider.value = threshold.toFixed(2);
    this.show();
    this.onChange(threshold);
  }

  private show(): void {
    this.output.textContent = number(this.value, 2);
    this.slider.setAttribute('aria-valuetext', number(this.value, 2));
    this.resetButton.hidden = !this.moved;
  }
}
