"""A headless Chromium and a server that says what a test tells it to, both with the standard library alone.

The browser is driven over the DevTools protocol through a pair of pipes (`--remote-debugging-pipe`): no driver program, no port.
"""

from __future__ import annotations

import base64
import fcntl
import http.server
import json
import os
import queue
import select
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import chameleon_jax.serving

PAGE = Path(chameleon_jax.serving.__file__).parent / "page"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WAIT = 20.0  # seconds until something that should come counts as missing; machines are shared

_FLAGS = [
    "--headless=new",
    "--no-sandbox",  # for root, as in containers
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
]
_LAUNCH = "import os, sys; a, b, *c = sys.argv[1:]; os.dup2(int(a), 3); os.dup2(int(b), 4); os.execvp(c[0], c)"
_MODIFIERS = {"Alt": 1, "Control": 2, "Meta": 4, "Shift": 8}
_KEYS = {  # name: (virtual key code, text)
    "Enter": (13, "\r"),
    "Tab": (9, ""),
    "Escape": (27, ""),
    "Delete": (46, ""),
    "ArrowUp": (38, ""),
    "ArrowDown": (40, ""),
    "ArrowRight": (39, ""),
    "End": (35, ""),
    "Home": (36, ""),
    " ": (32, " "),
}


def find_browser() -> str | None:
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


class Browser:
    """One process of Chromium; every page has storage of its own."""

    def __init__(self, program: str, home: Path):
        # The browser reads file descriptor 3 and writes 4. Ours get numbers out of the way first, then a small program moves them.
        pipes = [*os.pipe(), *os.pipe()]
        theirs_in, self._out, self._in, theirs_out = (fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, 10) for each in pipes)
        for each in pipes:
            os.close(each)
        command = [sys.executable, "-c", _LAUNCH, str(theirs_in), str(theirs_out), program, *_FLAGS]
        self._process = subprocess.Popen(
            [*command, f"--user-data-dir={home}", "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._buffer, self._last_id = b"", 0
        self.events: list[dict] = []
        self.send("Browser.getVersion")

    def send(self, method: str, session: str | None = None, **params) -> dict:
        self._last_id += 1
        message = {"id": self._last_id, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        data = memoryview(json.dumps(message).encode() + b"\0")
        while data:
            data = data[os.write(self._out, data) :]
        while True:
            answer = self._read(WAIT)
            if answer.get("id") == self._last_id:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            if "method" in answer:
                self.events.append(answer)

    def _read(self, seconds: float) -> dict:
        while b"\0" not in self._buffer:
            if not select.select([self._in], [], [], seconds)[0]:
                raise TimeoutError("the browser does not answer")
            data = os.read(self._in, 1 << 20)
            if not data:
                raise RuntimeError("the browser is gone")
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(self, url: str, width: int = 1200, height: int = 850, features: dict[str, str] | None = None) -> Page:
        context = self.send("Target.createBrowserContext")["browserContextId"]
        target = self.send("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session, context)
        for domain in ("Page", "Runtime", "Network", "Log"):
            page.send(f"{domain}.enable")
        page.media(**(features or {}))
        page.resize(width, height)
        page.go(url)
        return page

    def close(self) -> None:
        try:
            self.send("Browser.close")
        except (RuntimeError, TimeoutError, OSError):
            self._process.kill()
        self._process.wait(WAIT)
        os.close(self._out)
        os.close(self._in)


class Page:
    def __init__(self, browser: Browser, session: str, context: str):
        self._browser, self._session, self.context = browser, session, context

    def send(self, method: str, **params) -> dict:
        return self._browser.send(method, self._session, **params)

    def close(self) -> None:
        self._browser.send("Target.disposeBrowserContext", browserContextId=self.context)

    def events(self, method: str) -> list[dict]:
        """What the browser reported of this page so far."""
        self.run("0")  # reads what is there
        mine = (event for event in self._browser.events if event.get("sessionId") == self._session)
        return [event["params"] for event in mine if event["method"] == method]

    def go(self, url: str) -> None:
        self.send("Page.navigate", url=url)
        self.wait("location.href !== 'about:blank' && document.readyState === 'complete'")

    def reload(self) -> None:
        """Load the page anew, and wait until the old one is gone."""
        self.run("window.isOld = true")
        self.send("Page.reload")
        end = time.monotonic() + WAIT
        while time.monotonic() < end:
            try:
                if self.run("window.isOld === undefined && document.readyState === 'complete'"):
                    return
            except RuntimeError:
                pass  # between two pages
            time.sleep(0.02)
        raise TimeoutError("the page did not come again")

    def resize(self, width: int, height: int) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def media(self, **features: str) -> None:
        named = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.send("Emulation.setEmulatedMedia", features=named)

    def run(self, script: str):
        """The value of a JavaScript expression, waited for if it is a promise."""
        answer = self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True
        )
        if problem := answer.get("exceptionDetails"):
            raise AssertionError(problem.get("exception", {}).get("description", problem["text"]))
        return answer["result"].get("value")

    def wait(self, script: str, seconds: float = WAIT):
        """The value of the expression once it is true; of an element, true."""
        script = f"(found => found instanceof Node || found)({script})"
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"never true: {script}\n{self.run('document.body.innerText')}"
            time.sleep(0.02)
        return value

    def text(self, selector: str) -> str:
        return self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")

    def count(self, selector: str) -> int:
        return self.run(f"document.querySelectorAll({json.dumps(selector)}).length")

    def middle(self, selector: str) -> tuple[float, float]:
        found = json.dumps(selector)
        self.wait(f"document.querySelector({found})")
        x, y = self.run(
            f"(() => {{ const e = document.querySelector({found}); e.scrollIntoView({{block: 'nearest'}});"
            " const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        return x, y

    def mouse(self, kind: str, x: float, y: float, buttons: int = 1) -> None:
        self.send(
            "Input.dispatchMouseEvent",
            type=kind,
            x=x,
            y=y,
            button="left",
            buttons=buttons,
            clickCount=int(kind != "mouseMoved"),
        )

    def click(self, selector: str) -> None:
        x, y = self.middle(selector)
        self.mouse("mousePressed", x, y)
        self.mouse("mouseReleased", x, y, buttons=0)

    def click_named(self, name: str) -> None:
        """The last button with these words or this label."""
        self.run(
            "[...document.querySelectorAll('button')].filter(b => b.checkVisibility() &&"
            f" [b.textContent, b.ariaLabel].includes({json.dumps(name)})).at(-1).setAttribute('data-named', '')"
        )
        self.click("[data-named]")
        self.run("document.querySelector('[data-named]')?.removeAttribute('data-named')")

    def type(self, text: str) -> None:
        self.send("Input.insertText", text=text)

    def key(self, name: str, **more) -> None:
        """As in "Enter", "Control+Enter", "Alt+ArrowUp"."""
        *held, key = name.split("+")
        code, text = _KEYS.get(key, (ord(key.upper()[0]), key))
        modifiers = sum(_MODIFIERS[each] for each in held)
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        if text and not modifiers:
            common["text"] = text
        self.send("Input.dispatchKeyEvent", type="keyDown", **common, **more)
        self.send("Input.dispatchKeyEvent", type="keyUp", **{k: v for k, v in common.items() if k != "text"})

    def drop(self, selector: str, *files: Path) -> None:
        x, y = self.middle(selector)
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.send("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def allow_clipboard(self) -> None:
        permissions = ["clipboardReadWrite", "clipboardSanitizedWrite"]
        self._browser.send("Browser.grantPermissions", permissions=permissions, browserContextId=self.context)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))


class FakeServer:
    """Serves the page and speaks the protocol; of an answer, the pieces that the test hands to `say` and its like, when it does."""

    def __init__(self):
        self.asked: queue.Queue[dict] = queue.Queue()  # bodies of requests for an answer
        self.key: str | None = None
        self.hides_models = False
        self.refusal: tuple[int, dict, dict] | None = None  # status, error, headers of the next request for an answer
        self.health = {"status": "ok", "running": 0, "queued": 0, "slots": 4, "tokens_per_second": 0.0}
        self.models = [{"id": "tiny", "object": "model"}]
        self.left = threading.Event()  # the page went before the end of an answer
        self.token_requests: list[int] = []
        self._pieces: queue.Queue[bytes | None] = queue.Queue()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def model(self) -> dict:
        return self.models[0]

    @model.setter
    def model(self, model: dict) -> None:
        self.models = [model]

    def close(self) -> None:
        self._pieces.put(None)
        self._server.shutdown()
        self._server.server_close()

    def raw(self, data: bytes) -> None:
        self._pieces.put(data)

    def chunk(self, chunk: dict) -> None:
        self.raw(f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n".encode())

    def begin(self, prompt_ids: list[int]) -> None:
        choice = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        self.chunk({"choices": [choice], "prompt_token_ids": prompt_ids})

    def say(self, text: str, ids: list[int]) -> None:
        self.chunk({"choices": [{"index": 0, "delta": {"content": text, "token_ids": ids}, "finish_reason": None}]})

    def draw(
        self, url: str, done: int, of: int, ids: list[int], *, index: int = 0, codes: list[int] | None = None
    ) -> None:
        picture = {
            "type": "image_url",
            "index": index,
            "image_url": {"url": url},
            "partial": done < of,
            "done": done,
            "of": of,
            **({"codes": codes} if codes else {}),
        }
        self.chunk({"choices": [{"index": 0, "delta": {"images": [picture], "token_ids": ids}, "finish_reason": None}]})

    def give(self, part: dict, done: int, of: int, ids: list[int], *, index: int = 0) -> None:
        """Data of another kind: a part of type `audio_url` or `codes`."""
        media = part | {"index": index, "partial": done < of, "done": done, "of": of}
        self.chunk({"choices": [{"index": 0, "delta": {"media": [media], "token_ids": ids}, "finish_reason": None}]})

    def end(self, reason: str = "stop", tokens: int = 7) -> None:
        self.chunk({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
        self.chunk(
            {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": tokens, "total_tokens": 3 + tokens}}
        )
        self.raw(b"data: [DONE]\n\n")
        self.hang_up()

    def hang_up(self) -> None:
        self._pieces.put(None)

    def request(self) -> dict:
        """The next request for an answer."""
        return self.asked.get(timeout=WAIT)

    def _handler(self):
        fake = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def reply(self, status: int, body: bytes, kind: str = "application/json", headers: dict | None = None):
                self.send_response(status)
                for name, value in {"Content-Type": kind, "Content-Length": len(body), **(headers or {})}.items():
                    self.send_header(name, str(value))
                self.end_headers()
                self.wfile.write(body)

            def allowed(self) -> bool:
                if fake.key is None or self.headers.get("Authorization") == f"Bearer {fake.key}":
                    return True
                error = {"message": "a key is needed", "type": "authentication_error", "param": None, "code": None}
                self.reply(401, json.dumps({"error": error}).encode())
                return False

            def do_GET(self):
                if self.path == "/health":
                    self.reply(200, json.dumps(fake.health).encode())
                elif self.path == "/v1/models":
                    if fake.hides_models:
                        self.reply(503, b'{"error": {"message": "not there yet"}}')
                    elif self.allowed():
                        self.reply(200, json.dumps({"object": "list", "data": fake.models}).encode())
                else:
                    name = "index.html" if self.path == "/" else self.path.removeprefix("/page/")
                    kinds = {
                        ".html": "text/html",
                        ".css": "text/css",
                        ".js": "text/javascript",
                        ".svg": "image/svg+xml",
                    }
                    self.reply(200, (PAGE / name).read_bytes(), kinds[Path(name).suffix])

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if not self.allowed():
                    return
                if self.path == "/v1/tokens":
                    fake.token_requests.append(len(body["ids"]))
                    self.reply(200, json.dumps({"tokens": [describe(id) for id in body["ids"]]}).encode())
                    return
                fake.asked.put(body)
                if fake.refusal:
                    status, error, headers = fake.refusal
                    fake.refusal = None
                    self.reply(status, json.dumps({"error": error}).encode(), headers=headers)
                    return
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()
                self.stream()

            def stream(self):
                while True:
                    try:
                        piece = fake._pieces.get(timeout=0.05)
                    except queue.Empty:
                        if self.connection in select.select([self.connection], [], [], 0)[0]:
                            fake.left.set()  # nothing is sent after a request: what can be read is its end
                            return
                        continue
                    if piece is None:
                        return
                    self.wfile.write(piece)
                    self.wfile.flush()

        return Handler


def describe(id: int) -> dict:
    """Ids below 10 are markers, below 1000 picture codes, from 8000 on codes of calls and from 9000 on moves, all others words."""
    if id >= 8000:
        kind, modality = ("audio", "calls") if id < 9000 else ("codes", "moves")
        return {"id": id, "kind": kind, "modality": modality, "piece": str(id % 1000)}
    kind = "marker" if id < 10 else "image" if id < 1000 else "text"
    return {"id": id, "kind": kind, "piece": f"<m{id}>" if id < 10 else "" if id < 1000 else f" w{id}"}
