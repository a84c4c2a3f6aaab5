"""Whatever a client sends that cannot be served is its own error: 4xx, an OpenAI error object, and no slot is held."""

import base64
import io
import zlib

import httpx
import pytest
from PIL import Image

from tests.serving.conftest import data_url, running, wait_until
from tests.tiny_run import CONTEXT, make_run

URL = "messages.0.content.0.image_url.url"  # where `picture` has it
CHAT, COMPLETION, IMAGES, TOKENS = "/v1/chat/completions", "/v1/completions", "/v1/images/generations", "/v1/tokens"


def chat(content="hi", **settings):
    return {"messages": [{"role": "user", "content": content}], **settings}


def picture(url):
    return chat([{"type": "image_url", "image_url": {"url": url}}])


def encoded(data, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def many_pixels():
    """A small file of 100 million pixels."""
    file = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(file, "PNG")
    return file.getvalue()


def text_bomb():
    """A picture with a text chunk that unpacks to 100 MB."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    chunk = b"zTXtbomb\0\0" + zlib.compress(bytes(100_000_000), 9)
    length, check = (len(chunk) - 4).to_bytes(4, "big"), zlib.crc32(chunk).to_bytes(4, "big")
    return file.getvalue()[:33] + length + chunk + check + file.getvalue()[33:]


def raw(body, **headers):
    return {"content": body, "headers": {"content-type": "application/json", **headers}}


PICTURES = [{"type": "image_url", "image_url": {"url": data_url()}}] * 8
DEEP = b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}"

# name: (path, JSON or arguments of httpx, status, words of the message, param)
CASES = {
    "no body": (CHAT, raw(b""), 400, "not JSON", None),
    "cut JSON": (CHAT, raw(b'{"messages": ['), 400, "not JSON", None),
    "deep JSON": (CHAT, raw(DEEP), 400, "nested too deeply", None),
    "a list": (CHAT, raw(b"[]"), 400, "must be a JSON object", None),
    "not UTF-8": (CHAT, raw(b'{"model": "\xff"}'), 400, "not UTF-8", None),
    "a long number": (CHAT, raw(b'{"seed": ' + b"9" * 10_000 + b"}"), 400, "not JSON", None),
    "NaN temperature": (CHAT, raw(b'{"messages": [], "temperature": NaN}'), 400, "NaN is no JSON number", None),
    "overflowing temperature": (CHAT, raw(b'{"messages": [], "temperature": 1e999}'), 400, "", None),
    "another type": (CHAT, {"content": b"{}", "headers": {"content-type": "text/plain"}}, 415, "send application/json", None),
    "no type": (CHAT, {"content": b"{}"}, 415, "send application/json", None),
    "100 MB": (CHAT, raw(bytes(100_000_000)), 413, "larger than the 20000000 bytes", None),
    "100 MB in chunks": (CHAT, raw(bytes(1_000_000) for _ in range(100)), 413, "larger than the 20000000 bytes", None),
    "nothing": (CHAT, {}, 400, "messages: is missing", "messages"),
    "no messages": (CHAT, {"messages": []}, 400, "at least 1", "messages"),
    "messages as text": (CHAT, {"messages": "hi"}, 400, "list", "messages"),
    "a message as text": (CHAT, {"messages": ["hi"]}, 400, "messages.0", "messages.0"),
    "unknown role": (CHAT, {"messages": [{"role": "robot", "content": "a"}]}, 400, "'user'", "messages.0.role"),
    "no content": (CHAT, {"messages": [{"role": "user"}]}, 400, "is missing", "messages.0.content"),
    "null content": (CHAT, chat(None), 400, "is null", "messages.0.content"),
    "content as number": (CHAT, chat(3), 400, "a string or a list of parts", "messages.0.content"),
    "unknown part": (CHAT, chat([{"type": "video"}]), 400, "image_url, audio_url, input_audio, codes", "messages.0.content.0"),
    "part without text": (CHAT, chat([{"type": "text"}]), 400, "is missing", "messages.0.content.0.text"),
    "typo": (CHAT, chat(temprature=1), 400, "did you mean 'temperature'?", "temprature"),
    "typo in a part": (CHAT, chat([{"type": "image_url", "image_url": {"urll": ""}}]), 400, "is missing", URL),
    "unknown field of half a character": (CHAT, raw(b'{"messages": [], "\\ud800": 1}'), 400, "", None),
    "negative temperature": (CHAT, chat(temperature=-1), 400, "greater than or equal to 0", "temperature"),
    "temperature as text": (CHAT, chat(temperature="1"), 400, "number", "temperature"),
    "top_p 0": (CHAT, chat(top_p=0), 400, "greater than 0", "top_p"),
    "top_p 2": (CHAT, chat(top_p=2), 400, "less than or equal to 1", "top_p"),
    "max_tokens -1": (CHAT, chat(max_tokens=-1), 400, "greater than or equal to 1", "max_tokens"),
    "max_tokens 0": (CHAT, chat(max_tokens=0), 400, "greater than or equal to 1", "max_tokens"),
    "max_tokens 1e9": (COMPLETION, raw(b'{"prompt": "a", "max_tokens": 1e9}'), 400, "integer", "max_tokens"),
    "max_tokens of 400 digits": (CHAT, chat(max_tokens=10**400), 400, "", "max_tokens"),
    "max_tokens as bool": (CHAT, chat(max_tokens=True), 400, "integer", "max_tokens"),
    "two limits": (CHAT, chat(max_tokens=3, max_completion_tokens=4), 400, "are one setting", None),
    "n 0": (CHAT, chat(n=0), 400, "greater than or equal to 1", "n"),
    "n 1000": (CHAT, chat(n=1000), 400, "more than the 8", "n"),
    "many stop strings": (CHAT, chat(stop=["a"] * 5), 400, "4 are the most", "stop"),
    "empty stop string": (CHAT, chat(stop=""), 400, "at least 1 character", "stop.0"),
    "a seed past 64 bits": (CHAT, chat(seed=10**25), 400, "less than 18446744073709551616", "seed"),
    "a prompt of a number": (COMPLETION, {"prompt": 5}, 400, "must be a string or a list of strings", "prompt"),
    "no user": (CHAT, {"messages": [{"role": "assistant", "content": "hi"}]}, 400, "there is no user message", "messages"),
    "a seed as text": (CHAT, chat(seed="1"), 400, "integer", "seed"),
    "unknown mode": (CHAT, chat(mode="imgae"), 400, "no mode 'imgae' (did you mean 'image'?); it has text", "mode"),
    "mode of two, one unknown": (CHAT, chat(mode="text+video"), 400, "no mode 'video'", "mode"),
    "mode that is empty": (CHAT, chat(mode="+"), 400, "no mode ''", "mode"),
    "unknown modality": (CHAT, chat(modalities=["audio"]), 400, "no 'audio'; it has text, image", "modalities"),
    "misspelt modality": (CHAT, chat(modalities=["imgae"]), 400, "did you mean 'image'?", "modalities"),
    "sampling of no modality": (CHAT, chat(sampling={"txt": {"top_k": 1}}), 400, "did you mean 'text'?", "sampling"),
    "wrong sampling": (CHAT, chat(sampling={"text": {"top_k": -1}}), 400, "greater than or equal to 0", "sampling.text.top_k"),
    "typo in sampling": (CHAT, chat(sampling={"text": {"topk": 1}}), 400, "did you mean 'top_k'?", "sampling.text.topk"),
    "spans of no modality": (CHAT, chat(max_spans={"imag": 1}), 400, "did you mean 'image'?", "max_spans"),
    "spans of text": (CHAT, chat(max_spans={"text": 1}), 400, "no spans to count", "max_spans"),
    "sound for a model without": (
        CHAT, chat([{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]), 400, "reads no sounds",
        "messages.0.content.0",
    ),
    "sound of another form": (
        CHAT, chat([{"type": "input_audio", "input_audio": {"data": "", "format": "mp3"}}]), 400, "'wav'",
        "messages.0.content.0.input_audio.format",
    ),
    "codes of a model without": (
        CHAT, chat([{"type": "codes", "modality": "image", "codes": [1]}]), 400, "'image' is not given in codes",
        "messages.0.content.0.modality",
    ),
    "no modality": (CHAT, chat(modalities=[]), 400, "at least 1", "modalities"),
    "unknown format": (CHAT, chat(format="llama"), 400, "'lumina'", "format"),
    "a tool that must be called": (CHAT, chat(tools=[{}], tool_choice="required"), 400, "does not have it", "tools"),
    "logprobs of a number": (CHAT, chat(logprobs=3), 400, "valid boolean", "logprobs"),
    "too many logprobs": (CHAT, chat(logprobs=True, top_logprobs=21), 400, "less than or equal to 20", "top_logprobs"),
    "alternatives of no logprobs": (CHAT, chat(top_logprobs=2), 400, "top_logprobs needs logprobs: true", None),
    "too many logprobs of a completion": (
        COMPLETION, {"prompt": "a", "logprobs": 21}, 400, "less than or equal to 20", "logprobs",
    ),
    "JSON mode": (CHAT, chat(response_format={"type": "json_object"}), 400, "does not have it", "response_format.type"),
    "unknown model": (CHAT, chat(model="tinny"), 404, "did you mean 'tiny'?", "model"),
    "another model": (COMPLETION, {"prompt": "a", "model": "gpt-4o"}, 404, "this server has 'tiny'", "model"),
    "prompt longer than the context": (CHAT, chat("red " * CONTEXT), 400, f"ids, the context {CONTEXT}", None),
    "prompt of 1 M characters": (COMPLETION, {"prompt": "a" * 1_000_000}, 400, "cannot fit the context", None),
    "no room for an image": (CHAT, chat(mode="image", max_tokens=17), 400, "a span of 'image' needs 18", None),
    "size that is none": (CHAT, chat(image_size="16*16"), 400, "like '512x512'", "image_size"),
    "size of zero": (CHAT, chat(image_size="0x16"), 400, "like '512x512'", "image_size"),
    "http URL": (CHAT, picture("http://127.0.0.1:1/a.png"), 400, "'http:' URLs are not fetched", URL),
    "https URL": (CHAT, picture("HTTPS://example.com/a.png"), 400, "are not fetched", URL),
    "file URL": (CHAT, picture("file:///etc/passwd"), 400, "'file:' URLs are not fetched", URL),
    "ftp URL": (CHAT, picture("ftp://example.com/a.png"), 400, "are not fetched", URL),
    "a path": (CHAT, picture("/etc/passwd"), 400, "are not fetched", URL),
    "invalid base64": (CHAT, picture("data:image/png;base64,@@@@"), 400, "base64 is not valid", URL),
    "base64 of no ASCII": (CHAT, picture("data:image/png;base64,größe"), 400, "base64 is not valid", URL),
    "no base64": (CHAT, picture("data:image/png,abc"), 400, "data:image/png;base64,...", URL),
    "wrong MIME": (CHAT, picture(encoded(b"<html>", "text/html")), 400, "'text/html' is not one of", URL),
    "SVG": (CHAT, picture(encoded(b"<svg/>", "image/svg+xml")), 400, "is not one of", URL),
    "HTML that says PNG": (CHAT, picture(encoded(b"<html><body>")), 400, "HTML page", URL),
    "GIF that says PNG": (CHAT, picture(data_url(format="GIF").replace("gif", "png", 1)), 400, "not an allowed format", URL),
    "empty picture": (CHAT, picture(encoded(b"")), 400, "0 bytes", URL),
    "cut picture": (CHAT, picture(data_url()[:90]), 400, "", URL),
    "1000 pictures": (CHAT, chat(PICTURES * 125), 400, "1000 pictures or other data, this server takes 8", "messages"),
    "nine pictures": (CHAT, chat([*PICTURES, PICTURES[0]]), 400, "9 pictures", "messages"),
    "a picture of 100 megapixels": (CHAT, picture(encoded(many_pixels())), 400, "too large", URL),
    "a picture whose text unpacks to 100 MB": (CHAT, picture(encoded(text_bomb())), 400, "", URL),
    "a system's picture": (CHAT, {"messages": [{"role": "system", "content": PICTURES}]}, 400, "a system message", "messages.0"),
    "no prompt": (COMPLETION, {}, 400, "prompt: is missing", "prompt"),
    "prompt of ids": (COMPLETION, {"prompt": [1, 2]}, 400, "string", "prompt.0"),
    "nine prompts": (COMPLETION, {"prompt": ["a"] * 9}, 400, "8 are the most", None),
    "best_of": (COMPLETION, {"prompt": "a", "best_of": 2}, 400, "does not have it", "best_of"),
    "suffix": (COMPLETION, {"prompt": "a", "suffix": "b"}, 400, "does not have it", "suffix"),
    "image of a size without end": (IMAGES, {"prompt": "a", "size": "1" * 5000 + "x1"}, 400, "'auto' or a width", "size"),
    "two sizes of an image": (IMAGES, {"prompt": "a", "size": "16x16", "image_size": "16x16"}, 400, "one setting", None),
    "a stop string for an image": (IMAGES, {"prompt": "a", "stop": ["b"]}, 400, "stop", "stop"),
    "prompts without end": (COMPLETION, {"prompt": [""] * 100_000}, 400, "100000 prompts of 1 choices", None),
    "words in pieces without end": (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 100_000}]},
        400,
        "100000 characters cannot fit",
        None,
    ),
    "tokens of a text without end": (TOKENS, {"text": "a b " * 100_000}, 400, "at most 200000", "text"),
    "image of no size": (IMAGES, {"prompt": "a", "size": "big"}, 400, "'auto' or a width", "size"),
    "ten images": (IMAGES, {"prompt": "a", "n": 10}, 400, "more than the 8", "n"),
    "ids outside": (TOKENS, {"ids": [0, 10**6]}, 400, "1000000 is not in 0..", "ids"),
    "ids and text": (TOKENS, {"ids": [0], "text": "a"}, 400, "either ids or text", None),
    "ids as text": (TOKENS, {"ids": "0"}, 400, "list", "ids"),
}  # fmt: skip


@pytest.fixture(scope="module")
def shared(tiny, engine):
    """(client, service) of one server for all cases."""
    from chameleon_jax.serving.service import Service
    from tests.serving.conftest import SERVE, KeptOpen

    service = Service(engine=KeptOpen(engine), bundle=tiny.bundle, config=SERVE, model_name="tiny")
    with running(service) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client, service


def check(response, status, words, param):
    assert response.status_code == status, response.text[:300]
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"].endswith("_error")
    assert words in error["message"], error
    assert error["param"] == param or not words, error
    assert len(error["message"]) <= 1000 and "Traceback" not in error["message"]


@pytest.mark.parametrize("name", CASES)
def test_a_bad_request_is_told_what_is_wrong(shared, name):
    client, service = shared
    path, content, status, words, param = CASES[name]
    arguments = content if "content" in content or "headers" in content else {"json": content}
    if name == "100 MB in chunks":
        arguments = raw(bytes(1_000_000) for _ in range(100))
    check(client.post(path, **arguments), status, words, param)
    stats = service.engine.stats()
    assert (stats.running, stats.queued, service._in_hand) == (0, 0, 0)


@pytest.mark.parametrize("path", [CHAT, COMPLETION, IMAGES])
def test_after_all_of_them_a_good_request_is_answered(shared, path):
    body = {"messages": [{"role": "user", "content": "hi"}]} if path == CHAT else {"prompt": "hi"}
    assert shared[0].post(path, json=body).status_code == 200


@pytest.mark.parametrize(
    "method, path, status, words",
    [
        ("GET", CHAT, 405, "does not take GET"),
        ("DELETE", "/health", 405, "does not take DELETE"),
        ("POST", "/v1/chat/completion", 404, "did you mean '/v1/chat/completions'?"),
        ("GET", "/v1/models/other", 404, "does not exist"),
        ("GET", "/../../etc/passwd", 404, "nothing at"),
        ("GET", "/page/%2e%2e/app.py", 404, "nothing at"),
        ("POST", "/docs", 404, "nothing at"),
    ],
)
def test_what_is_not_there_is_told(shared, method, path, status, words):
    response = shared[0].request(method, path)
    assert response.status_code == status and words in response.json()["error"]["message"]


def test_a_model_without_a_decoder_draws_nothing(engine):
    from chameleon_jax.serving.service import Service
    from tests.serving.conftest import SERVE, KeptOpen

    run = make_run(with_codec=False)
    service = Service(engine=KeptOpen(engine), bundle=run.bundle, config=SERVE, model_name="tiny")
    with running(service) as url, httpx.Client(base_url=url, timeout=60) as client:
        check(client.post(IMAGES, json={"prompt": "a"}), 400, "has no decoder", "mode")
        check(client.post(CHAT, json=chat(modalities=["text", "image"])), 400, "has no decoder", "mode")
        check(client.post(CHAT, json=picture(data_url())), 400, "no image codec to read pictures", None)
        assert client.post(CHAT, json=chat()).status_code == 200
        assert client.get("/v1/models").json()["data"][0]["defaults"]["mode"] == "text"


def test_bodies_and_keys_are_not_logged(shared, caplog):
    caplog.set_level("DEBUG")
    client, service = shared
    client.post(CHAT, json=chat("sesame-open", temperature=-1), headers={"authorization": "Bearer sesame-key"})
    client.post(CHAT, json=chat("sesame-open", max_tokens=2), params={"q": "sesame-query"})
    wait_until(lambda: service._in_hand == 0)
    mine = [record.getMessage() for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    assert any("/v1/chat/completions 400" in line for line in mine)
    assert not any("sesame" in line for line in mine)
