"""A server of a model without text and image: words, moves, beeps, drawings and calls in and out, streamed and whole."""

import base64
import io
import json

import httpx
import numpy as np
import pytest
from PIL import Image

from chameleon_jax.configs import EngineConfig, ServeConfig
from chameleon_jax.generation.engine import Engine
from chameleon_jax.generation.prompt import TextOutput, encode_turns, read_output
from chameleon_jax.serving.service import Service
from chameleon_jax.tokenizers.documents import Segment
from chameleon_jax.tokenizers.waveforms import read, to_wav
from tests.serving.conftest import running
from tests.tiny_run import SOUND, make_other_run

CHAT = "/v1/chat/completions"
NAMES = ["words", "moves", "beeps", "drawings", "calls"]
BEEPS, MOVES = [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2], [4, 0, 0, 3]
WILD = {name: {"temperature": 50.0, "top_p": 1.0} for name in NAMES}


@pytest.fixture(scope="module")
def run():
    return make_other_run()


@pytest.fixture(scope="module")
def client(run):
    config = ServeConfig(port=0, content_format="parts", engine=EngineConfig(slots=4, max_queued=8, block=4))
    engine = Engine(run.params, run.model, run.bundle.vocab, config.engine)
    service = Service(engine=engine, bundle=run.bundle, config=config, model_name="other")
    with running(service) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def wav():
    return to_wav(0.3 * np.sin(np.arange(SOUND.samples) * 0.7).astype(np.float32), SOUND.rate)


def png():
    file = io.BytesIO()
    Image.new("RGB", (8, 24), "red").save(file, "PNG")
    return file.getvalue()


def url(kind, data):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def ask(client, content="a red heart", **settings):
    body = {"messages": [{"role": "user", "content": content}], "seed": 3, "return_token_ids": True, "sampling": WILD}
    reply = client.post(CHAT, json=body | settings)
    assert reply.status_code == 200, reply.text
    return reply.json()


def streamed(client, **settings):
    """(delta, choice) of every event of one choice's stream."""
    body = {"messages": [{"role": "user", "content": "a red heart"}], "seed": 3, "sampling": WILD, "stream": True}
    with client.stream("POST", CHAT, json=body | {"return_token_ids": True} | settings) as response:
        events = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]
    return [choice["delta"] for event in events for choice in event["choices"]]


def test_the_model_is_described_by_its_table(client):
    (model,) = client.get("/v1/models").json()["data"]
    rows = {row["name"]: row for row in model["chameleon"]["modalities"]}
    assert list(rows) == NAMES and all(row["reads"] and row["writes"] for row in rows.values())
    assert [row["media"] for row in rows.values()] == ["text", "codes", "codes", "image", "audio"]
    assert (rows["beeps"]["span"], rows["beeps"]["length"], rows["beeps"]["ids"]) == ("fixed", 12, 10)
    assert rows["moves"]["span"] == "free" and rows["drawings"]["size_step"] == 8
    assert model["chameleon"]["modes"] == [*NAMES, "interleaved", "unrestricted"]
    assert set(model["defaults"]["sampling"]) == set(NAMES) and "8x16" in model["image_sizes"]


def test_data_of_all_kinds_go_in_and_the_words_are_the_default(client, run):
    audio = base64.b64encode(wav()).decode()
    content = [
        {"type": "text", "text": "a "},
        {"type": "codes", "modality": "beeps", "codes": BEEPS},
        {"type": "image_url", "image_url": {"url": url("image/png", png())}},
        {"type": "codes", "modality": "moves", "codes": MOVES},
        {"type": "audio_url", "audio_url": {"url": url("audio/x-wav", wav())}},
        {"type": "input_audio", "input_audio": {"data": audio, "format": "wav"}, "modality": "calls"},
    ]
    reply = ask(client, content, max_tokens=12)
    call = Segment("calls", wav())
    data = [Segment("beeps", BEEPS), Segment("drawings", png()), Segment("moves", MOVES), call, call]
    wanted = encode_turns([["a ", *data]], run.bundle, format="chat")
    assert reply["prompt_token_ids"] == wanted.tolist()
    (choice,) = reply["choices"]
    assert isinstance(choice["message"]["content"], str)
    held = np.array(choice["token_ids"])
    text = run.bundle.vocab.text
    assert (text.holds(held) | (held < text.start)).all()


@pytest.mark.parametrize(
    "settings, media",
    [
        ({"mode": "moves", "max_tokens": 30}, {"moves"}),
        ({"mode": "words+moves", "max_tokens": 30}, {"words", "moves"}),
        ({"modalities": ["beeps"]}, {"beeps"}),
        ({"modalities": ["audio"]}, {"calls"}),
        ({"modalities": ["image"]}, {"drawings"}),
        ({"modalities": ["image", "beeps"], "max_spans": {"beeps": 2, "drawings": 2}, "max_tokens": 120}, {"drawings", "beeps"}),
    ],
)  # fmt: skip
def test_answers_are_what_their_ids_say_whole_and_streamed(client, run, settings, media):
    settings = {"max_spans": {"beeps": 1, "drawings": 1, "calls": 1}, "max_tokens": 100} | settings
    for seed in range(20):  # some end at once, and some in words alone
        settings["seed"] = seed
        reply = ask(client, **settings)
        (choice,) = reply["choices"]
        if isinstance(choice["message"]["content"], list):
            break
    outputs = read_output(np.array(choice["token_ids"]), run.bundle)
    outputs = [output for output in outputs if isinstance(output, TextOutput) or output.codes is not None]
    content = choice["message"]["content"]
    assert len(content) == len(outputs) >= 1 and {p.get("modality", "words") for p in content} <= media
    for part, output in zip(content, outputs, strict=True):
        if part["type"] == "text":
            assert part["text"] == output.text
        elif part["type"] == "codes":
            assert part == {"type": "codes", "modality": output.modality, "codes": output.codes.tolist()}
        elif part["type"] == "audio_url":
            head, _, data = part["audio_url"]["url"].partition(",")
            samples, rate = read(base64.b64decode(data), 30)
            assert head == "data:audio/wav;base64" and rate == SOUND.rate
            np.testing.assert_allclose(samples, np.clip(output.item, -1, 1), atol=1e-3)
        else:
            picture = Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].partition(",")[2])))
            assert picture.size == output.item.shape[1::-1]
    details = reply["usage"]["completion_tokens_details"]
    assert set(details) == {"text_tokens", "moves_tokens", "beeps_tokens", "image_tokens", "audio_tokens"}
    assert sum(details.values()) == reply["usage"]["completion_tokens"] == len(choice["token_ids"])

    parts, ids = [], []
    for delta in streamed(client, partial_every=5, **settings):
        ids += delta.get("token_ids", [])
        for text in [delta["content"]] if delta.get("content") else []:
            if parts and parts[-1]["type"] == "text":
                parts[-1]["text"] += text
            else:
                parts.append({"type": "text", "text": text})
        for part in delta.get("images", []) + delta.get("media", []):
            index, done, of, partial = (part.pop(name) for name in ("index", "done", "of", "partial"))
            place = (part["modality"], index)
            if parts and parts[-1].get("place") == place and part["type"] == "codes":
                part["codes"] = parts[-1]["codes"][: done - len(part["codes"])] + part["codes"]
            if parts and parts[-1].get("place") == place:
                parts.pop()
            assert partial == (done < of) and (part["type"] != "codes" or len(part["codes"]) == done)
            parts.append(part | {"place": place})
    assert ids == choice["token_ids"]
    assert [{k: v for k, v in part.items() if k != "place"} for part in parts] == content


def test_a_reply_of_codes_goes_back_into_the_conversation(client, run):
    first = ask(client, mode="beeps", max_spans={"beeps": 1})["choices"][0]
    messages = [{"role": "user", "content": "a red heart"}, first["message"], {"role": "user", "content": "b"}]
    (codes,) = first["message"]["content"]
    reply = ask(client, messages=messages, max_tokens=3)
    turns = [["a red heart"], [Segment("beeps", codes["codes"])], ["b"]]
    assert reply["prompt_token_ids"] == encode_turns(turns, run.bundle, format="chat").tolist()
    beside = {
        "role": "assistant",
        "content": "",
        "media": [codes | {"index": 0, "partial": False, "done": 12, "of": 12}],
    }
    again = ask(client, messages=[messages[0], beside, messages[2]], max_tokens=3)
    assert again["prompt_token_ids"] == reply["prompt_token_ids"]


def test_sampling_and_number_of_spans_are_those_of_the_modality(client):
    greedy = {"mode": "beeps", "max_spans": {"beeps": 1}, "n": 4}
    drawn = ask(client, **greedy)["choices"]
    likeliest = ask(client, **greedy | {"sampling": {"beeps": {"temperature": 0}}, "temperature": 9.0})["choices"]
    assert len({str(choice["token_ids"]) for choice in drawn}) == 4
    assert len({str(choice["token_ids"]) for choice in likeliest}) == 1
    three = ask(client, mode="beeps", max_spans={"beeps": 3})["choices"][0]
    assert len(three["message"]["content"]) == 3 and three["finish_reason"] == "stop"


@pytest.mark.parametrize(
    "settings, words, param",
    [
        ({"mode": "drawigns"}, "no mode 'drawigns' (did you mean 'drawings'?)", "mode"),
        ({"mode": "words+image"}, "no mode 'image'; it has words, moves, beeps, drawings, calls", "mode"),
        ({"modalities": ["beps"]}, "no 'beps' (did you mean 'beeps'?)", "modalities"),
        ({"sampling": {"word": {}}}, "did you mean 'words'?", "sampling"),
        ({"max_spans": {"cals": 1}}, "did you mean 'calls'?", "max_spans"),
        ({"mode": "beeps", "max_tokens": 13}, "a span of 'beeps' needs 14", None),
        ({"content": [{"type": "codes", "modality": "bleeps", "codes": BEEPS}]}, "did you mean 'beeps'?",
         "messages.0.content.0.modality"),
        ({"content": [{"type": "codes", "modality": "drawings", "codes": BEEPS}]}, "that are: moves, beeps",
         "messages.0.content.0.modality"),
        ({"content": [{"type": "codes", "modality": "beeps", "codes": [1, 2]}]}, "'beeps'", "messages.0.content.0.codes"),
        ({"content": [{"type": "codes", "modality": "beeps", "codes": [10] * 12}]}, "must be in 0..9",
         "messages.0.content.0.codes"),
        ({"content": [{"type": "codes", "modality": "moves", "codes": [1.5]}]}, "integer", "messages.0.content.0.codes.0"),
        ({"content": [{"type": "audio_url", "audio_url": {"url": url("audio/wav", b"RIFF")}}]}, "not a WAV file",
         "messages.0.content.0.audio_url.url"),
        ({"content": [{"type": "audio_url", "audio_url": {"url": url("image/png", png())}}]}, "'image/png' is not one of audio/wav",
         "messages.0.content.0.audio_url.url"),
        ({"content": [{"type": "audio_url", "audio_url": {"url": "https://a/b.wav"}}]}, "are not fetched",
         "messages.0.content.0.audio_url.url"),
        ({"content": [{"type": "audio_url", "audio_url": {"url": url("audio/wav", wav())}, "modality": "drawings"}]},
         "no modality 'drawings' of sounds", "messages.0.content.0"),
        ({"content": [{"type": "codes", "modality": "moves", "codes": [1]}] * 9}, "9 pictures or other data", "messages"),
    ],
)  # fmt: skip
def test_what_the_model_has_not_is_told_in_a_line(client, settings, words, param):
    content = settings.get("content", "a")
    body = {"messages": [{"role": "user", "content": content}]} | {k: v for k, v in settings.items() if k != "content"}
    reply = client.post(CHAT, json=body)
    error = reply.json()["error"]
    assert reply.status_code == 400 and words in error["message"] and "\n" not in error["message"], error
    assert error["param"] == param


def test_pictures_by_the_images_api_are_drawings(client):
    reply = client.post("/v1/images/generations", json={"prompt": "a", "size": "8x16", "response_format": "url"}).json()
    data = base64.b64decode(reply["data"][0]["url"].partition(",")[2])
    assert Image.open(io.BytesIO(data)).size == (8, 16)
