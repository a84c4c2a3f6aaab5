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

const SVG = "http://www.w3.org/2000/svg";

/** The drawing called `name` in icons.svg; screen readers pass over it. */
export function icon(name) {
  const [svg, use] = [document.createElementNS(SVG, "svg"), document.createElementNS(SVG, "use")];
  use.setAttribute("href", new URL(`icons.svg#${name}`, import.meta.url).href);
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("class", "icon");
  svg.append(use);
  return svg;
}

/** A button that shows a drawing; `label` is its name and its tooltip. */
export const iconButton = (name, label, onclick, properties = {}) =>
  el("button", { type: "button", className: "bare", ariaLabel: label, title: label, onclick, ...properties }, icon(name));

export const byId = (id) => document.getElementById(id);
