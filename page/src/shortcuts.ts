/** Keys of one letter, which a person can switch off. */

const SHORTCUTS_KEY = 'talud.shortcuts';

export const shortcutsOn = (): boolean => localStorage.getItem(SHORTCUTS_KEY) !== 'off';
export const setShortcuts = (on: boolean): void => localStorage.setItem(SHORTCUTS_KEY, on ? 'on' : 'off');

const TEXT_CONTROLS = 'input:not([type=range], [type=checkbox]), select, textarea';
const PRESSABLE_CONTROLS = 'button, a, summary, input, select, textarea';

/**
 * Calls what belongs to a key until the signal stops it: never in a dialogue, nor while something is typed. Enter
 * and Escape are no letters: they work when the letters are off, but Enter on a button presses the button.
 */
export function onKeys(handlers: Record<string, () => void>, signal: AbortSignal): void {
  document.addEventListener(
    'keydown',
    (event) => {
      const handler = handlers[event.key];
      if (!handler || event.ctrlKey || event.metaKey || event.altKey) return;
      const letter = event.key.length === 1;
      if ((letter && !shortcutsOn()) || document.querySelector('dialog[open]')) return;
      if (event.target instanceof Element && event.target.matches(event.key === 'Enter' ? PRESSABLE_CONTROLS : TEXT_CONTROLS)) return;
      event.preventDefault();
      handler();
    },
    { signal },
  );
}
