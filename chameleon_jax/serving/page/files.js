// Files as data: URLs and back.

/** The data: URL of a file. Raises Error if the browser cannot read it. */
export const readUrl = (blob) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${blob.name || "The file"} could not be read.`));
    reader.readAsDataURL(blob);
  });

/** Offer what a data: URL holds as a file called `name` and the ending of its kind. */
export function download(url, name) {
  const [, type, base64] = /^data:([a-z]+\/[\w.+-]+);base64,(.*)$/s.exec(url);
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([bytes], { type }));
  link.download = `${name}.${type.split("/")[1].replace("jpeg", "jpg")}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** Only what came with the answer is shown: a URL of anything else could call elsewhere. `media` is "image" or "audio". */
export const isDataOf = (media, url) => typeof url === "string" && new RegExp(`^data:${media}/[\\w.+-]+;base64,`).test(url);
