// A picture as large as the window allows, with what can be done with it.

import { copyPictureButton } from "./copying.js";
import { byId, el, iconButton } from "./dom.js";
import { download } from "./files.js";

/** Show a picture; `name` is its file's name, `actions` are further buttons: [icon, label, act]. */
export function openLightbox({ url, alt, name, actions = [] }) {
  const dialog = byId("lightbox");
  const picture = el("img", { src: url, alt });
  picture.onload = () => {
    picture.classList.toggle("small", picture.naturalWidth < 400); // enlarged squares and not blur
    size.textContent = `${picture.naturalWidth} × ${picture.naturalHeight}`;
  };
  const size = el("span", { className: "meta" });
  const more = actions.map(([drawing, label, act]) =>
    iconButton(drawing, label, () => {
      dialog.close();
      act();
    }),
  );
  const close = iconButton("close", "Close the picture", () => dialog.close());
  const tools = [copyPictureButton("Copy the picture", () => url), iconButton("download", "Download the picture", () => download(url, name))];
  dialog.replaceChildren(el("div", { className: "lightbox-bar" }, size, ...more, ...tools, close), el("div", { className: "stand" }, picture));
  dialog.onclick = (event) => event.target.closest("img, button") || dialog.close();
  dialog.showModal();
  close.focus();
}
