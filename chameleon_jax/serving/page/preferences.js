// How a person likes the page, kept in this browser: true or false each.

const KEY = "chameleon.page";

// Fingers have no Shift key to write a second line with.
const FALLBACK = { enter: !matchMedia("(pointer: coarse)").matches, markdown: true, likelihoods: false };

function read() {
  try {
    return JSON.parse(localStorage.getItem(KEY)) ?? {};
  } catch {
    return {}; // written by something else
  }
}

export const preference = (name) => read()[name] ?? FALLBACK[name];

/** Bind a checkbox to the preference; `onchange` is called after a change. */
export function connectPreference(name, box, onchange) {
  box.checked = preference(name);
  box.onchange = () => {
    localStorage.setItem(KEY, JSON.stringify({ ...read(), [name]: box.checked }));
    onchange();
  };
}
