/** Divider between two maps in one frame, moved by pointer or keyboard. */

import { h } from './dom';
import { t } from './language';

const STEP_PERCENT = 2;

export class Swipe {
  readonly handle: HTMLElement;
  private percent = 50;

  /** Create the divider; `upper`, the top map, is only visible on its right. */
  constructor(
    private readonly frame: HTMLElement,
    private readonly upper: HTMLElement,
  ) {
    this.handle = h(
      'div',
      {
        class: 'swipe',
        role: 'slider',
        tabindex: 0,
        'aria-label': () => t().divider,
        'aria-orientation': 'horizontal',
        'aria-valuemin': 0,
        'aria-valuemax': 100,
      },
      h('span', { class: 'grip', 'aria-hidden': 'true' }, '⇔'),
    );
    this.handle.addEventListener('pointerdown', (event) => this.handle.setPointerCapture(event.pointerId));
    this.handle.addEventListener('pointermove', (event) => {
      if (!this.handle.hasPointerCapture(event.pointerId)) return;
      const { left, width } = this.frame.getBoundingClientRect();
      this.set(((event.clientX - left) / width) * 100);
    });
    this.handle.addEventListener('keydown', (event) => {
      const to = {
        ArrowLeft: this.percent - STEP_PERCENT,
        ArrowRight: this.percent + STEP_PERCENT,
        PageDown: this.percent - 5 * STEP_PERCENT,
        PageUp: this.percent + 5 * STEP_PERCENT,
        Home: 0,
        End: 100,
      }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      this.set(to);
    });
    this.set(50);
  }

  /** Check if a point, `x` pixels from the left edge, is on the right map. */
  isRight(x: number): boolean {
    return x > (this.percent / 100) * this.frame.clientWidth;
  }

  private set(percent: number): void {
    this.percent = Math.min(100, Math.max(0, percent));
    this.handle.style.left = `${this.percent}%`;
    this.upper.style.clipPath = `inset(0 0 0 ${this.percent}%)`;
    this.handle.setAttribute('aria-valuenow', String(Math.round(this.percent)));
    this.handle.setAttribute('aria-valuetext', `${Math.round(this.percent)} %`);
  }
}
