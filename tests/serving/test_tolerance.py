"""What clients ask for that the server does differently: it is done as near as can be, and the reply says so."""

import dataclasses
import json

import httpx
import numpy as np
import openai
import pytest

from chameleon_jax.generation.prompt import encode_turns
from chameleon_jax.serving import schema, tolerance
from chameleon_jax.serving.errors import ApiError
from chameleon_jax.serving.service import Service
from tests.serving.conftest import SERVE, KeptOpen, data_url, read_picture, running
from tests.tiny_run import CONTEXT

CHAT, IMAGES = "/v1/chat/completions", "/v1/images/generations"


@pytest.fixture(scope="module")
def client(tiny, engine):
    config = dataclasses.replace(SERVE, content_format="text")
    service = Service(engine=KeptOpen(engine), bundle=tiny.bundle, config=config, model_name="tiny")
    with running(service) as url, httpx.Client(base_url=url, timeout=60) as client:
        client.service = service
        yield client


def ask(client, content="a red heart", path=CHAT, **settings):
    asked = (
        {"messages": [{"role": "user", "content": content}], "max_tokens": 8} if path == CHAT else {"prompt": content}
    )
    reply = client.post(path, json={**asked, "seed": 3, **settings})
    assert reply.status_code == 200, reply.text
    return reply.json()


def events(client, **body):
    reply = client.post(CHAT, json={"stream": True, "seed": 3, **body})
    assert reply.status_code == 200, reply.text
    lines = [line[6:] for line in reply.text.splitlines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    "settings",
    [
        {"store": True, "metadata": {"chat": 7}, "user": "u1", "service_tier": "auto", "parallel_tool_calls": True},
        {"reasoning_effort": "low", "verbosity": "low", "prompt_cache_key": "k", "safety_identifier": "s"},
        {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "tools": [], "tool_choice": "auto"},
        {"tools": None, "functions": None, "function_call": "none", "response_format": {"type": "text"}},
        {"stream_options": {"include_usage": True, "include_obfuscation": True}},
    ],
)
def test_what_asks_for_nothing_is_passed_over(client, settings):
    reply = ask(client, **settings)
    assert "notes" not in reply and reply["choices"] == ask(client)["choices"]


@pytest.mark.parametrize(
    "settings, told",
    [
        ({"frequency_penalty": 0.5}, "frequency_penalty is not used: "),
        ({"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "auto"}, "tools is not used: "),
        ({"max_tokens": 100_000}, f"max_tokens is {CONTEXT}, the most, instead of 100000"),
        (
            {"mode": "image", "image_size": "1024x1024", "max_tokens": 40},
            "pictures are 16x16, the nearest to 1024x1024",
        ),
    ],
)
def test_what_is_done_otherwise_is_told(client, settings, told):
    (note,) = ask(client, **settings)["notes"]
    assert note.startswith(told)
    body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 8}
    streamed = events(client, **{**body, **settings})
    assert streamed[-1]["notes"] == [note] and not any("notes" in chunk for chunk in streamed[:-1])


def test_pictures_of_another_size_or_kind_are_told(client):
    settings = {"size": "1024x1024", "quality": "hd", "output_format": "jpeg", "response_format": "b64_json"}
    reply = ask(client, path=IMAGES, **settings)
    assert [note.split()[0] for note in reply["notes"]] == ["quality", "output_format", "pictures"]
    assert read_picture("data:image/png;base64," + reply["data"][0]["b64_json"]).shape == (16, 16, 3)


@pytest.mark.parametrize(
    "settings, param",
    [
        ({"tools": [{}], "tool_choice": "required", "frequency_penalty": 1}, "tools"),
        ({"tools": [{}], "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"logit_bias": {"17": -100}}, "logit_bias"),
    ],
)
def test_what_would_mean_something_else_is_refused(settings, param):
    body = {"messages": [{"role": "user", "content": "a"}], **settings}
    with pytest.raises(ApiError, match="does not have it") as error:
        schema.parse(schema.ChatRequest, json.dumps(body).encode())
    assert error.value.param == param


def test_a_long_chat_goes_on_without_its_oldest_messages(client, tiny):
    turns = [["user", f"a red heart {i} " * 6] if i % 2 == 0 else ["assistant", "some words"] for i in range(41)]
    system = {"role": "system", "content": "some words"}
    messages = [system, *({"role": role, "content": content} for role, content in turns)]
    reply = client.post(CHAT, json={"messages": messages, "max_tokens": 8, "seed": 1, "return_token_ids": True}).json()
    (note,) = reply["notes"]
    left_out = int(note.split()[2])
    assert note.endswith(f"of {len(turns)} messages are left out: the chat is longer than the context")

    def prompt(first):
        kept = [[content] for _, content in turns[first:]]
        kept[0].insert(0, "some words\n")
        return encode_turns(kept, tiny.bundle, format="chat").tolist()

    assert reply["prompt_token_ids"] == prompt(left_out) and left_out > 0
    assert len(prompt(left_out)) <= CONTEXT - 8 < len(prompt(left_out - 2))


@pytest.mark.parametrize("count", [3, 21])
def test_a_chat_encodes_each_picture_once(make_service, monkeypatch, count):
    service, encoded = make_service(), []
    _, codec = service.bundle.image_input
    encode = type(codec).encode
    monkeypatch.setattr(type(codec), "encode", lambda self, items: encoded.append(len(items)) or encode(self, items))
    seen = [{"type": "image_url", "image_url": {"url": data_url(color=color)}} for color in ("red", "blue")]
    seen.append({"type": "text", "text": "a red heart " * 6})
    said = [{"role": ("user", "assistant")[i % 2], "content": "some words " * 6} for i in range(count - 1)]
    messages = [*said, {"role": "user", "content": seen}]
    request = schema.parse(schema.ChatRequest, json.dumps({"messages": messages, "max_tokens": 8}).encode())
    (ids,) = service._prepare(request).prompts
    assert encoded == [1, 1] and bool(request.notes) == (count > 3)
    kept = len(messages) - (int(request.notes[0].split()[2]) if request.notes else 0)
    assert np.count_nonzero(ids == service.bundle.vocab.end_of_turn) == kept


def test_a_model_of_documents_continues_the_last_message(make_service):
    body = {"messages": [{"role": role, "content": text} for role, text in (("system", "a"), *TURNS)]}
    service = make_service(format="completion")
    request = schema.parse(schema.ChatRequest, json.dumps(body).encode())
    (ids,) = service._prepare(request).prompts
    assert ids.tolist() == encode_turns([["a\nsome words"]], service.bundle).tolist()
    assert request.notes == ["only the last message is continued: the model was trained on documents, not on chats"]
    asked = schema.parse(schema.ChatRequest, json.dumps(body | {"format": "completion"}).encode())
    with pytest.raises(ApiError, match="continues one user message, not 3"):
        service._prepare(asked)


TURNS = (("user", "a red heart"), ("assistant", "heart"), ("user", "some words"))


def test_what_fits_in_no_way_is_refused(client):
    long = {"role": "user", "content": "a red heart " * CONTEXT}
    reply = client.post(CHAT, json={"messages": [long, {"role": "assistant", "content": "a"}, long]})
    assert reply.status_code == 400 and reply.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("count", [1, 3, 5, 7, 9, 41])
def test_as_few_turns_as_need_be_are_left_out(count):
    for first in range(0, count, 2):
        assert tolerance.first_that_fits(count, first.__le__) == first


def drawn(client, content_format):
    """A reply with pictures among its words, whole and streamed."""
    body = {"messages": [{"role": "user", "content": "a"}], "mode": "interleaved", "max_tokens": 150, "temperature": 50}
    body |= {"content_format": content_format, "seed": 5, "n": 8, "stop": []}
    choices = client.post(CHAT, json=body).json()["choices"]
    return next(c for c in choices if "data:image" in json.dumps(c)), events(client, **body)


def test_content_is_words_with_the_pictures_beside_them(client):
    (parts, _), (text, _) = drawn(client, "parts"), drawn(client, "text")
    words = "".join(part["text"] for part in parts["message"]["content"] if part["type"] == "text")
    assert text["message"]["content"] == words and text["message"]["images"] == parts["message"]["images"]


def test_markdown_shows_pictures_in_their_places_and_comes_back(client):
    """As Open WebUI and LibreChat show them, and send them back."""
    (parts, _), (markdown, chunks) = drawn(client, "parts"), drawn(client, "markdown")
    content = markdown["message"]["content"]
    assert "images" not in markdown["message"]
    mine = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == markdown["index"]]
    assert "".join(choice["delta"].get("content") or "" for choice in mine) == content
    urls = [part["image_url"]["url"] for part in parts["message"]["content"] if part["type"] == "image_url"]
    found = tolerance.split_markdown(content)
    assert [part["image_url"]["url"] for part in found if part["type"] == "image_url"] == urls

    def prompt(answer):
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]
        body = {"messages": [*messages, {"role": "user", "content": "b"}], "max_tokens": 1, "return_token_ids": True}
        return client.post(CHAT, json=body).json()["prompt_token_ids"]

    picture = f"a red\n\n![picture]({urls[0]})\n\n"
    assert prompt(picture) == prompt(
        [{"type": "text", "text": "a red"}, {"type": "image_url", "image_url": {"url": urls[0]}}]
    )


def test_a_users_markdown_is_words():
    body = {"messages": [{"role": "user", "content": f"![a]({data_url()})"}]}
    (message,) = schema.parse(schema.ChatRequest, json.dumps(body).encode()).messages
    assert [part.type for part in message.content] == ["text"]


def test_the_openai_package_reads_text_beside_pictures(client):
    with openai.OpenAI(base_url=str(client.base_url) + "/v1", api_key="none", max_retries=0) as package:
        message = {"role": "user", "content": "a"}
        reply = package.chat.completions.create(model="tiny", messages=[message], modalities=["image"], store=True)  # type: ignore
    assert reply.choices[0].message.content == "" and len(reply.choices[0].message.images) == 1
    assert reply.model_dump_json()
