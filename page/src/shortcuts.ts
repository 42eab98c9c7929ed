/** Single-letter keyboard shortcuts, which the user can switch off. */

const SHORTCUTS_KEY = 'talud.shortcuts';

export const shortcutsOn = (): boolean => localStorage.getItem(SHORTCUTS_KEY) !== 'off';
export const setShortcuts = (on: boolean): void => localStorage.setItem(SHORTCUTS_KEY, on ? 'on' : 'off');

const TEXT_CONTROLS = 'input:not([type=range], [type=checkbox]), select, textarea';
const PRESSABLE_CONTROLS = 'button, a, summary, input, select, textarea';

/**
 * Call the handler of each pressed key until the signal is aborted.
 *
 * Shortcuts do not work in dialogues and text fields. Enter and Escape also work when the letters are switched off,
 * but Enter on a button presses the button.
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
