/** Content of the page below its header. */

export interface View {
  element: HTMLElement;
  /** Check if leaving the view would lose unsaved changes. */
  unsaved(): boolean;
  close(): void;
}
