/** Keys of one letter, which a person can switch off. */

const KEY = 'talud.shortcuts';

export const shortcutsOn = (): boolean => localStorage.getItem(KEY) !== 'off';
export const setShortcuts = (on: boolean): void => localStorage.setItem(KEY, on ? 'on' : 'off');

const TYPING = 'input:not([type=range], [type=checkbox]), select, textarea';
const PRESSING = 'button, a, summary, input, select, textarea';

/**
 * Calls what belongs to a key until the signal stops it: never in a dialogue, nor while something is typed. Enter
 * and Escape are no letters: they work when the letters are off, but Enter on a button presses the button.
 */
export function onKeys(acts: Record<string, () => void>, signal: AbortSignal): void {
  document.addEventListener(
    'keydown',
    (event) => {
      const act = acts[event.key];
      if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
      const letter = event.key.length === 1;
      if ((letter && !shortcutsOn()) || document.querySelector('dialog[open]')) return;
      if (event.target instanceof Element && event.target.matches(event.key === 'Enter' ? PRESSING : TYPING)) return;
      event.preventDefault();
      act();
    },
    { signal },
  );
}
