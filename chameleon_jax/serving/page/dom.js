// Elements from plain data. Whatever a string holds, it becomes text: nothing here parses HTML.

/** el("p", {className: "x", ariaLabel: "y", dataset: {...}, onclick}, ...children): properties, then children (strings are text). */
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  const { dataset, attributes, ...rest } = properties;
  Object.assign(node, rest);
  Object.assign(node.dataset, dataset);
  for (const [name, value] of Object.entries(attributes ?? {})) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

export const button = (text, onclick, properties = {}) =>
  el("button", { type: "button", textContent: text, onclick, ...properties });

export const byId = (id) => document.getElementById(id);
