/** What the page shows below its header, one at a time. */

export interface View {
  element: HTMLElement;
  /** Whether something would be lost with it. */
  unsaved(): boolean;
  close(): void;
}
