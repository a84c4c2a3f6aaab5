// What is being written, kept until the tab is closed: a page that is loaded anew goes on where it was.

const KEY = "chameleon.draft.";
const SHOWN = "chameleon.chat";

/** Remember which chat is in sight, and read it back. */
export const rememberChat = (id) => sessionStorage.setItem(SHOWN, id);
export const rememberedChat = () => sessionStorage.getItem(SHOWN);

/** Keep the parts of a prompt for a chat; pictures that do not fit the tab's storage are left out. */
export function keepDraft(id, content) {
  if (!content.length) return sessionStorage.removeItem(KEY + id);
  try {
    sessionStorage.setItem(KEY + id, JSON.stringify(content));
  } catch {
    const words = content.filter(({ type }) => type === "text");
    try {
      sessionStorage.setItem(KEY + id, JSON.stringify(words));
    } catch {
      sessionStorage.removeItem(KEY + id); // no room at all
    }
  }
}

export function readDraft(id) {
  const kept = sessionStorage.getItem(KEY + id);
  return kept ? JSON.parse(kept) : [];
}
