"""Clients that leave, wait, crowd in or are strangers: slots come free, and everybody else is served."""

import asyncio
import contextlib
import dataclasses
import http.client
import json
import socket
import threading
import time
from urllib.parse import urlsplit

import httpx
import pytest

from chameleon_jax.configs import EngineConfig
from chameleon_jax.errors import GenerationError
from chameleon_jax.generation.engine import Engine
from chameleon_jax.generation.requests import QueueFull
from chameleon_jax.serving import streams
from chameleon_jax.serving.app import create_app
from chameleon_jax.serving.errors import ApiError
from chameleon_jax.serving.jobs import Jobs
from tests.serving.conftest import SERVE, ScriptedEngine, wait_until

CHAT = "/v1/chat/completions"


def chat(**settings):
    return {"messages": [{"role": "user", "content": "hi"}], **settings}


@pytest.fixture
def scripted(tiny):
    """Says "a red heart", a picture and " words", a few ids at a time, as far as it is let."""
    vocab, text = tiny.bundle.vocab, tiny.bundle.text
    picture = vocab.modalities[vocab.row("image")].span(list(range(16)))
    return ScriptedEngine(
        tiny, [text.encode("a red heart"), picture[:9], picture[9:], text.encode(" words"), [vocab.eos]]
    )


def lines(response):
    """Data of the events of a stream, as they come."""
    for line in response.iter_lines():
        if line.startswith("data: "):
            yield line[6:] if line.endswith("[DONE]") else json.loads(line[6:])


class Asgi:
    """One request to the application without a network: the test says when the client takes the answer and when it leaves."""

    def __init__(self, app, body, path=CHAT, is_reading=True):
        self.sent, self.reads, self._left = [], asyncio.Event(), asyncio.Event()
        if is_reading:
            self.reads.set()
        self._incoming = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]
        headers = [(b"content-type", b"application/json"), (b"host", b"localhost")]
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "headers": headers}
        scope |= {"query_string": b"", "http_version": "1.1", "scheme": "http", "root_path": "", "client": ("::1", 1)}
        self.task = asyncio.ensure_future(app({**scope, "state": {}}, self._receive, self._send))

    async def _receive(self):
        if self._incoming:
            return self._incoming.pop()
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message):
        await self.reads.wait()
        self.sent.append(message)

    async def leave(self):
        self._left.set()
        await asyncio.wait_for(self.task, 20)

    @property
    def text(self):
        return b"".join(message.get("body", b"") for message in self.sent).decode()


async def until(holds, seconds=20):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "did not happen"
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("released", [0, 1, 2])
def test_a_client_that_leaves_frees_its_slots(make_service, scripted, stream, released):
    service = make_service(engine=scripted)

    async def run():
        request = Asgi(create_app(service), chat(stream=stream, n=2, mode="interleaved"))
        await until(lambda: len(scripted.requests) == 2)
        scripted.release(released)
        if stream and released:
            await until(lambda: "a red heart" in request.text)
        await request.leave()
        await until(lambda: all(request.cancelled and request.ended for request in scripted.requests))
        return request

    request = asyncio.run(run())
    assert service._in_hand == 0 and not service._open
    assert not any("[DONE]" in message.get("body", b"").decode() for message in request.sent)
    assert service.metrics.disconnects._value.get() == 1


def test_a_client_that_leaves_before_it_is_submitted_leaves_nothing(make_service, scripted):
    service, (entered, go, made) = make_service(engine=scripted), (threading.Event() for _ in range(3))
    prepare = service._prepare

    def slow(request):
        entered.set()
        go.wait(20)
        prepare(request)
        made.set()

    service._prepare = slow

    async def run():
        request = Asgi(create_app(service), chat(stream=True))
        await until(entered.is_set)
        await request.leave()
        go.set()
        await until(made.is_set)

    asyncio.run(run())
    assert scripted.requests == [] and service._in_hand == 0


def test_a_dropped_connection_frees_the_slot_of_a_real_engine(server, tiny):
    config = EngineConfig(slots=1, max_queued=1, block=1)
    with Engine(tiny.params, tiny.model, tiny.bundle.vocab, config) as engine:
        url = server(engine=engine)
        for _ in range(5):
            with httpx.stream("POST", url + CHAT, json=chat(stream=True, max_tokens=180), timeout=60) as response:
                assert next(lines(response))["choices"][0]["delta"]["role"] == "assistant"
            wait_until(lambda: engine.stats().running == engine.stats().queued == 0)
        assert httpx.post(url + CHAT, json=chat(max_tokens=3), timeout=60).status_code == 200


def test_pieces_of_a_stream_come_when_they_are_made(server, scripted):
    url = server(engine=scripted, partial_every=8)
    body = chat(stream=True, mode="interleaved", return_token_ids=True, stream_options={"include_usage": True})
    with httpx.stream("POST", url + CHAT, json=body, timeout=20) as response:
        events = lines(response)
        first = next(events)
        assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""} and first["prompt_token_ids"]
        scripted.release()
        delta = next(events)["choices"][0]["delta"]
        assert delta["content"] == "a red heart" and delta["token_ids"]
        scripted.release()
        (image,) = next(events)["choices"][0]["delta"]["images"]
        assert (image["partial"], image["done"], image["of"], image["index"]) == (True, 8, 16, 0)
        scripted.release()
        (image,) = next(events)["choices"][0]["delta"]["images"]
        assert (image["partial"], image["done"]) == (False, 16)
        scripted.release(2)
        assert next(events)["choices"][0]["delta"]["content"] == " words"
        assert len(next(events)["choices"][0]["delta"]["token_ids"]) == 1
        last = next(events)["choices"][0]
        assert (last["finish_reason"], last["delta"]) == ("stop", {})
        usage = next(events)
        assert usage["choices"] == [] and usage["usage"]["completion_tokens_details"]["image_tokens"] == 17
        assert next(events) == "[DONE]"


def test_a_stream_that_waits_keeps_its_connection(server, scripted, monkeypatch):
    monkeypatch.setattr(streams, "_KEEP_ALIVE_SECONDS", 0.05)
    with httpx.stream("POST", server(engine=scripted) + CHAT, json=chat(stream=True), timeout=20) as response:
        seen = []
        for line in response.iter_lines():
            seen.append(line)
            if seen.count(": waiting") == 3:
                break
        scripted.release(9)


def test_more_than_fit_are_told_when_to_come_back(server, scripted):
    url = server(engine=scripted)  # 4 slots, 8 may wait
    codes = []

    def post():
        codes.append(httpx.post(url + CHAT, json=chat(), timeout=60))

    threads = [threading.Thread(target=post) for _ in range(40)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(codes) == 28)
    scripted.release(9)
    for thread in threads:
        thread.join()
    refused = [response for response in codes if response.status_code == 429]
    assert len(refused) == 28 and {response.status_code for response in codes} == {200, 429}
    assert all(int(response.headers["retry-after"]) >= 1 for response in refused)
    assert refused[0].json()["error"]["type"] == "rate_limit_error"
    assert httpx.get(url + "/health").json()["status"] == "ok"


def test_a_full_engine_takes_all_choices_or_none(server, scripted):
    submit = scripted.submit

    def two(*args, **callbacks):
        if len(scripted.requests) == 2:
            raise QueueFull("2 requests wait already", 4.6)
        return submit(*args, **callbacks)

    scripted.submit = two
    response = httpx.post(server(engine=scripted) + CHAT, json=chat(n=3), timeout=20)
    assert response.status_code == 429 and response.headers["retry-after"] == "5"
    assert len(scripted.requests) == 2 and all(request.cancelled for request in scripted.requests)


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_that_takes_too_long_is_stopped(server, scripted, stream):
    url = server(engine=scripted, request_seconds=0.2)
    response = httpx.post(url + CHAT, json=chat(stream=stream), timeout=20)
    assert response.status_code == (200 if stream else 408)
    assert '"code":"timeout"' in response.text
    wait_until(lambda: all(request.ended for request in scripted.requests))


@pytest.mark.parametrize("stream", [True, False])
def test_an_engine_that_fails_is_a_server_error(server, scripted, stream):
    scripted.error = GenerationError("the model gave logits that are not finite")
    scripted.release(9)
    response = httpx.post(server(engine=scripted) + CHAT, json=chat(stream=stream), timeout=20)
    assert response.status_code == (200 if stream else 500)
    assert '"type":"server_error"' in response.text and "not finite" in response.text


def test_a_body_that_does_not_come_is_not_waited_for(server, scripted):
    url = urlsplit(server(engine=scripted, body_seconds=0.3))
    with socket.create_connection((url.hostname, url.port)) as sock:
        head = (
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
        )
        sock.sendall(head.encode() + b'{"mess')
        sock.settimeout(20)
        assert sock.recv(4096).startswith(b"HTTP/1.1 408 ")
    wait_until(lambda: server.service._in_hand == 0)


def test_what_is_no_http_is_told_so(server, scripted):
    url = urlsplit(server(engine=scripted))
    for head in (b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n"):
        with socket.create_connection((url.hostname, url.port)) as sock:
            sock.sendall(head)
            sock.settimeout(20)
            answer = b"".join(iter(lambda: sock.recv(4096), b""))
        assert answer.startswith(b"HTTP/1.1 400 ") and json.loads(answer.partition(b"\r\n\r\n")[2])["error"]


def test_a_connection_that_asks_nothing_is_closed(server, scripted, monkeypatch):
    monkeypatch.setattr("chameleon_jax.serving.server._HEADER_SECONDS", 0.2)
    url = urlsplit(server(engine=scripted))
    with socket.create_connection((url.hostname, url.port)) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: ")
        sock.settimeout(20)
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""


def test_a_length_that_lies_is_refused_unread(server, scripted):
    url = urlsplit(server(engine=scripted))
    for length in (10**12, int("9" * 19)):
        connection = http.client.HTTPConnection(url.hostname, url.port, timeout=20)
        connection.putrequest("POST", CHAT)
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(length))
        connection.endheaders(b"{")
        assert connection.getresponse().status == 413
        connection.close()


def test_a_client_that_does_not_read_is_dropped(server, tiny):
    vocab = tiny.bundle.vocab
    picture = vocab.modalities[vocab.row("image")].span(list(range(16)))
    engine = ScriptedEngine(tiny, [picture] * 40_000)
    engine.release(10**6)
    url = urlsplit(server(engine=engine, idle_seconds=0.5))
    body = json.dumps(chat(stream=True, mode="interleaved", partial_every=1)).encode()
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect((url.hostname, url.port))
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        sock.sendall(head.encode() + body)
        wait_until(lambda: engine.requests and engine.requests[0].cancelled, seconds=60)
        wait_until(lambda: server.service._in_hand == 0)
    assert server.service.metrics.disconnects._value.get() == 1


def test_strangers_need_the_key(server, scripted):
    url = server(engine=scripted, access={"api_key": "secret"})
    for path in ("/v1/models", "/metrics", "/v1/nothing"):
        assert httpx.get(url + path).status_code == 401
        for wrong in ("Bearer wrong", "Bearer", "Basic secret", "secret", "Bearer secret2", "Bearer sécret"):
            response = httpx.get(url + path, headers={"authorization": wrong.encode()})
            assert response.status_code == 401 and response.json()["error"]["code"] == "invalid_api_key"
    assert httpx.post(url + CHAT, json=chat()).status_code == 401 and not scripted.requests
    assert httpx.get(url + "/health").status_code == httpx.get(url + "/").status_code == 200
    assert httpx.get(url + "/v1/models", headers={"authorization": "Bearer secret"}).status_code == 200


def test_pages_of_other_sites_are_not_answered(server, scripted):
    url = server(engine=scripted)
    assert httpx.get(url + "/health", headers={"origin": "https://evil.example"}).status_code == 403
    for host in (
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "[",
        "[::1",
        "127.0.0.1@evil.example",
        "",
    ):
        assert httpx.get(url + "/health", headers={"host": host}).status_code == 403
    for host in ("localhost", "127.0.0.1:1", "[::1]:8000"):
        assert httpx.get(url + "/health", headers={"host": host}).status_code == 200
    assert httpx.get(url + "/health", headers={"origin": "http://["}).status_code == 403
    assert httpx.get(url + "/health", headers={"origin": url}).status_code == 200
    assert "access-control-allow-origin" not in httpx.get(url + "/health", headers={"origin": url}).headers
    open_url = server(engine=scripted, access={"insecure": True})
    assert httpx.get(open_url + "/health", headers={"host": "my.cluster"}).status_code == 200


def test_the_page_is_served_with_its_files(server, scripted):
    from chameleon_jax.serving.app import PAGE

    url = server(engine=scripted)
    page = httpx.get(url + "/")
    assert page.status_code == 200
    if not (PAGE / "index.html").is_file():
        pytest.skip("there is no page")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for file in PAGE.iterdir():
        assert httpx.get(f"{url}/page/{file.name}").status_code == (404 if file.name == "index.html" else 200)


def test_numbers_for_an_operator(server, scripted):
    url = server(engine=scripted)
    scripted.release(9)
    httpx.post(url + CHAT, json=chat(mode="interleaved"))
    httpx.post(url + "/v1/nothing")
    text = httpx.get(url + "/metrics").text
    assert 'chameleon_responses_total{path="/v1/chat/completions",status="200"} 1.0' in text
    assert 'chameleon_responses_total{path="other",status="404"} 1.0' in text
    assert 'chameleon_spans_total{modality="image"} 1.0' in text and 'chameleon_slots{model="tiny"} 4.0' in text
    health = httpx.get(url + "/health").json()
    assert {"status", "running", "queued", "tokens_per_second", "slots"} <= set(health)


def test_a_failed_engine_is_not_healthy(server, engine, monkeypatch):
    url = server()
    stats = dataclasses.replace(engine.stats(), failed="RuntimeError: out of memory")
    monkeypatch.setattr(server.service.engine, "stats", lambda: stats, raising=False)
    answer = httpx.get(url + "/health")
    assert (answer.status_code, answer.json()["status"]) == (503, "failed")


def threads():
    """All but those of the service's two pools, of two threads each, which start when they are first needed."""
    return {thread for thread in threading.enumerate() if not thread.name.startswith(("prompts_", "pictures_"))}


def test_open_requests_take_no_threads(server, tiny, monkeypatch):
    """Forty wait and stream in the threads of eight, and all are answered."""
    config = EngineConfig(slots=4, max_queued=40, block=2)
    body = chat(stream=True, max_tokens=12, mode="unrestricted")
    with Engine(tiny.params, tiny.model, tiny.bundle.vocab, config) as engine, contextlib.ExitStack() as at_end:
        url = server(engine=engine, config=dataclasses.replace(SERVE, engine=config))
        go, step, of_eight, more = threading.Event(), engine._scheduler.step, set(), set()
        at_end.callback(go.set)
        monkeypatch.setattr(engine._scheduler, "step", lambda: go.wait(60) and step())

        async def run():
            async def ask(seed):
                async with client.stream("POST", url + CHAT, json=body | {"seed": seed}) as response:
                    async for line in response.aiter_lines():
                        last = line or last
                        more.update(threads() - of_eight if go.is_set() else ())
                return last

            async def ask_all(seeds):
                asked = [asyncio.ensure_future(ask(seed)) for seed in seeds]
                await until(lambda: engine.stats().running + engine.stats().queued == seeds.stop)
                return asked

            async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=None)) as client:
                answers = await ask_all(range(8))
                of_eight.update(threads())
                answers += await ask_all(range(8, 40))
                assert server.service._in_hand == 40 and threads() <= of_eight
                go.set()
                assert await asyncio.gather(*answers) == ["data: [DONE]"] * 40
                assert not more

        asyncio.run(run())


def test_a_client_that_reads_slowly_holds_up_nobody(make_service, engine):
    """Its answer waits for it, whole; its slots and the other clients do not."""
    body = chat(stream=True, max_tokens=60, seed=3, n=4, return_token_ids=True)

    async def run():
        app, before = create_app(make_service()), engine.stats().requests
        slow = Asgi(app, body, is_reading=False)
        await until(lambda: engine.stats().requests == before + 4)
        quick = Asgi(app, body)
        await asyncio.wait_for(quick.task, 60)
        await until(lambda: engine.stats().running == engine.stats().queued == 0)
        assert not slow.sent and not slow.task.done()
        slow.reads.set()
        await asyncio.wait_for(slow.task, 60)
        return choices(slow), choices(quick)

    def choices(request):
        """Ids and end of each choice; how the events of several interleave depends on when blocks end."""
        found = {i: [] for i in range(4)}
        for line in request.text.splitlines():
            for choice in json.loads(line[6:])["choices"] if line.startswith("data: {") else []:
                found[choice["index"]] += [*choice["delta"].get("token_ids", []), choice["finish_reason"]]
        return {i: [item for item in items if item is not None] for i, items in found.items()}

    slow, quick = asyncio.run(run())
    assert slow == quick and all(items[-1] in ("stop", "length") for items in slow.values())


@pytest.mark.parametrize("how", ["late", "failed"])
def test_a_reader_that_lags_behind_hears_of_the_end_at_once(scripted, how):
    scripted.release(9)  # all is there at once

    async def read():
        jobs = Jobs(scripted, [None], 0.3 if how == "late" else 60)
        pieces = jobs.pieces()
        await anext(pieces)
        if how == "late":
            await asyncio.sleep(0.4)
        else:
            jobs.fail(ApiError(503, "the server stops"))
        with pytest.raises(ApiError) as error:
            await anext(pieces)
        assert error.value.status == (408 if how == "late" else 503)

    asyncio.run(read())
