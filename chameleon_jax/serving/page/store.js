// What this browser keeps of chats, in IndexedDB. Three tables: `heads` for the list and its search, `chats`, and `answers`, each by
// itself, so that an answer that is growing writes neither the pictures of the others nor the rest of the chat.

const NAME = "chameleon";

let opened = null;

function database() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("heads", { keyPath: "id" });
      request.result.createObjectStore("chats", { keyPath: "id" });
      request.result.createObjectStore("answers", { keyPath: ["chat", "id"] });
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new Error("another tab holds the chats"));
  });
  return opened;
}

const result = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

const completed = (tables) =>
  new Promise((resolve, reject) => {
    tables.oncomplete = resolve;
    tables.onabort = () => reject(tables.error ?? new Error("the browser has no room"));
  });

const ofChat = (id) => IDBKeyRange.bound([id], [id, []]); // arrays sort after all strings

/** Heads of all chats, the newest first: {id, title, created, updated, text}; `text` is what a search looks at. */
export async function listHeads() {
  const heads = await result((await database()).transaction("heads").objectStore("heads").getAll());
  return heads.sort((a, b) => b.updated - a.updated);
}

/** {chat, answers: Map of records by id}, or null. */
export async function readChat(id) {
  const tables = (await database()).transaction(["chats", "answers"]);
  const [chat, answers] = await Promise.all([
    result(tables.objectStore("chats").get(id)),
    result(tables.objectStore("answers").getAll(ofChat(id))),
  ]);
  return chat ? { chat, answers: new Map(answers.map((record) => [record.id, record])) } : null;
}

/** All at once or nothing: head and chat, the `records` of changed answers, and the end of those called `gone`. */
export async function writeChat(head, chat, records, gone) {
  const tables = (await database()).transaction(["heads", "chats", "answers"], "readwrite");
  const done = completed(tables);
  tables.objectStore("heads").put(head);
  tables.objectStore("chats").put(chat);
  const answers = tables.objectStore("answers");
  for (const record of records) answers.put({ ...record, chat: chat.id });
  for (const id of gone) answers.delete([chat.id, id]);
  tables.commit(); // at once: a page that goes is not called back
  await done;
}

/** After it the chat is gone for good, whatever becomes of the page. */
export async function deleteChat(id) {
  const tables = (await database()).transaction(["heads", "chats", "answers"], "readwrite");
  const done = completed(tables);
  tables.objectStore("heads").delete(id);
  tables.objectStore("chats").delete(id);
  tables.objectStore("answers").delete(ofChat(id));
  tables.commit();
  await done;
}
