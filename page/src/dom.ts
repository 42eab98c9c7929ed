/** Creation of DOM elements with text in the current language. */

import { localise } from './language';

/** Text, or a function that returns it in the current language. */
export type Words = string | (() => string);
export type Child = Node | Words | null | undefined;

type Value = Words | number | boolean | null | undefined;
export interface Attributes {
  on?: { [K in keyof HTMLElementEventMap]?: (event: HTMLElementEventMap[K]) => void };
  [name: string]: Value | Attributes['on'];
}

/** Create an element with attributes, listeners and children. True sets an attribute, false omits it. */
export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Attributes = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === 'on') {
      for (const [event, listener] of Object.entries(value as object)) element.addEventListener(event, listener);
    } else if (typeof value === 'function') {
      localise<HTMLElement>(element, (node) => node.setAttribute(name, value()));
    } else if (value !== false && value !== null && value !== undefined) {
      element.setAttribute(name, value === true ? '' : String(value));
    }
  }
  element.append(...children.filter((child) => child !== null && child !== undefined).map(node));
  return element;
}

function node(child: Node | Words): Node {
  if (typeof child === 'string') return document.createTextNode(child);
  if (typeof child !== 'function') return child;
  const text = document.createTextNode('');
  localise(text, (localised) => {
    localised.data = child();
  });
  return text;
}

/** Replace the children of an element. */
export function fill(element: Element, ...children: Child[]): void {
  element.replaceChildren(...children.filter((child) => child !== null && child !== undefined).map(node));
}

export interface ButtonOptions extends Attributes {
  kind?: 'primary' | 'plain' | 'danger';
}

/** Create a button. */
export function button(words: Words, onClick: () => void, options: ButtonOptions = {}): HTMLButtonElement {
  const { kind = 'plain', ...attributes } = options;
  return h('button', { type: 'button', class: `button ${kind}`, on: { click: onClick }, ...attributes }, words);
}
