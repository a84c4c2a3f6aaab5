"""A tiny random model behind a real engine, as an application and as a server on a free port."""

import asyncio
import base64
import contextlib
import dataclasses
import io
import threading
import time

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi")

from chameleon_jax.configs import EngineConfig, GenerationConfig, SamplingConfig, ServeConfig
from chameleon_jax.generation.engine import Engine
from chameleon_jax.generation.requests import EngineStats, Generated
from chameleon_jax.serving.app import create_app
from chameleon_jax.serving.server import Server, bind
from chameleon_jax.serving.service import Service
from tests.serving import page_driver
from tests.tiny_run import make_run

SERVE = ServeConfig(
    port=0,
    generation=GenerationConfig(
        sampling={name: SamplingConfig(temperature=1.0, top_p=1.0) for name in ("text", "image")}
    ),
    engine=EngineConfig(slots=4, max_queued=8, block=4),
    partial_every=4,
    content_format="parts",
)


@pytest.fixture(scope="session")
def tiny():
    """Parts of a run with pictures of one size."""
    return make_run()


@pytest.fixture(scope="session")
def engine(tiny):
    """One for all tests of this worker: a request leaves nothing behind."""
    with Engine(tiny.params, tiny.model, tiny.bundle.vocab, SERVE.engine) as engine:
        yield engine


class KeptOpen:
    """An engine that a server does not close, since others use it."""

    def __init__(self, engine):
        self._engine = engine

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def close(self, drain=True):
        pass


@pytest.fixture(scope="session")
def make_service(tiny, engine):
    """make_service(**settings) -> Service over the shared engine; `engine`, `bundle` and the base `config` may be given."""

    shared = KeptOpen(engine)

    def make(*, engine=shared, bundle=tiny.bundle, config=SERVE, **settings):
        config = dataclasses.replace(config, **settings)
        return Service(engine=engine, bundle=bundle, config=config, model_name="tiny")

    return make


@contextlib.contextmanager
def running(service, **access):
    """The base URL of a real server in a thread."""
    sock = bind(service.config)
    with running_in_thread(Server([service], create_app(service, **access)), sock) as url:
        yield url


@contextlib.contextmanager
def running_in_thread(server, sock):
    """The base URL of this server while it runs."""
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[sock])), daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        assert not thread.is_alive()


@pytest.fixture
def server(make_service):
    """server(**settings) -> base URL, and the service as an attribute of the function."""
    with contextlib.ExitStack() as stack:

        def start(*, access=None, **settings):
            start.service = make_service(**settings)
            return stack.enter_context(running(start.service, **(access or {})))

        yield start


def data_url(size=(20, 20), color="red", format="PNG", **options):
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, format, **options)
    return f"data:image/{format.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def read_picture(url):
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def wait_until(holds, seconds=20):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.02)


class ScriptedEngine:
    """An engine that says what a test lets it say: `release` lets every request have one more piece. Callbacks come from the
    thread that releases, submits or cancels."""

    def __init__(self, run, pieces, finish_reason="eos"):
        self.model, self.vocab = run.model, run.bundle.vocab
        self.pieces, self.finish_reason = [np.asarray(piece, np.int32) for piece in pieces], finish_reason
        self.requests, self.released, self.lock, self.error = [], 0, threading.RLock(), None

    def release(self, count=1):
        with self.lock:
            self.released += count
            for request in self.requests:
                request.go_on()

    def submit(self, request, on_ids, on_end):
        with self.lock:
            self.requests.append(ScriptedRequest(self, on_ids, on_end))
            self.requests[-1].go_on()
            return self.requests[-1]

    def stats(self):
        running = sum(not request.ended for request in self.requests)
        return EngineStats(
            slots=4, running=running, queued=0, requests=0, tokens=0, tokens_per_second=0.0, cache_bytes=0
        )

    def close(self, drain=True):
        for request in self.requests:
            request.cancel()


class ScriptedRequest:
    def __init__(self, engine, on_ids, on_end):
        self.engine, self.on_ids, self.on_end = engine, on_ids, on_end
        self.ended, self.cancelled, self.said = False, False, []

    def go_on(self):
        """Say what is released, and the end when everything is said or the request is cancelled."""
        pieces, reason = self.engine.pieces, self.engine.finish_reason
        while not (self.ended or self.cancelled) and len(self.said) < min(self.engine.released, len(pieces)):
            self.said.append(pieces[len(self.said)])
            self.on_ids(self.said[-1])
        if not self.ended and (self.cancelled or len(self.said) == len(pieces)):
            self.ended = True
            ids = np.concatenate([np.zeros(0, np.int32), *self.said])
            self.on_end(
                self.engine.error or Generated(ids=ids, finish_reason="cancelled" if self.cancelled else reason)
            )

    def cancel(self):
        with self.engine.lock:
            self.cancelled = True
            self.go_on()


PROGRAM = page_driver.find_browser()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if PROGRAM is None:
        pytest.skip("no Chromium: `apt-get install chromium` brings one")
    browser = page_driver.Browser(PROGRAM, tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


@pytest.fixture
def fake():
    fake = page_driver.FakeServer()
    yield fake
    fake.close()


@pytest.fixture
def open_page(browser, fake):
    """open_page(width, height, features, url) -> the page, ready; every page must end without an error on its console."""
    pages = []

    def open(width=1200, height=850, features=None, is_ready=True, url=None):
        page = browser.open(url or fake.url, width, height, features)
        pages.append(page)
        if is_ready:
            page.wait("document.querySelector('#model').options.length")
        return page

    yield open
    for page in pages:
        assert page.events("Runtime.exceptionThrown") == []
        page.close()


@pytest.fixture
def page(open_page):
    return open_page()


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "red heart.png"
    Image.new("RGB", (32, 24), (220, 20, 40)).save(path)
    return path
