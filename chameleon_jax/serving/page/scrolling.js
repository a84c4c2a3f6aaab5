// The end stays in sight while the conversation grows, unless someone has scrolled up to read.

import { byId } from "./dom.js";

const NEAR = 80; // pixels from the end that still count as the end

let isFollowing = true;

/** Go to the end and stay there. */
export function follow() {
  isFollowing = true;
  byId("conversation").scrollTop = byId("conversation").scrollHeight;
}

/** Show the end of what grew last, if the end was in sight. */
export const keepUp = () => requestAnimationFrame(() => isFollowing && follow());

export function connectScrolling(isGrowing) {
  const scroller = byId("conversation");
  const note = () => (isFollowing = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < NEAR);
  scroller.addEventListener("scroll", note, { passive: true });
  new ResizeObserver(() => isGrowing() && isFollowing && follow()).observe(byId("exchanges"));
}
