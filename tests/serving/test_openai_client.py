"""The `openai` package, unchanged, against a real server: chats, streams, completions, pictures and errors."""

import base64

import numpy as np
import openai
import pytest

from chameleon_jax.generation.prompt import read_output
from chameleon_jax.tokenizers.images import load_pixels, to_image
from tests.serving.conftest import data_url, read_picture
from tests.tiny_run import CONTEXT


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=server() + "/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def ask(client, content="a red heart", extra=None, **settings):
    settings = {"model": "tiny", "max_tokens": 30, "seed": 3, **settings}
    messages = [{"role": "user", "content": content}]
    return client.chat.completions.create(messages=messages, extra_body=extra or {}, **settings)


def test_models_are_listed(client):
    (model,) = client.models.list().data
    assert model.id == "tiny" and client.models.retrieve("tiny").chameleon["context"] == CONTEXT
    assert model.image_sizes == ["16x16"] and model.defaults["temperature"] == 1.0


def test_a_chat_is_answered_in_words(client):
    reply = ask(client, n=2)
    assert [choice.index for choice in reply.choices] == [0, 1]
    first, second = (choice.message for choice in reply.choices)
    assert isinstance(first.content, str) and first.role == "assistant" and first.content != second.content
    assert {choice.finish_reason for choice in reply.choices} <= {"stop", "length"}
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert ask(client, n=2).choices == reply.choices  # the same seed
    assert ask(client, n=2, seed=4).choices != reply.choices


def test_a_stream_says_what_the_whole_reply_says(client):
    whole = ask(client, n=2)
    texts, reasons, usage = ["", ""], [None, None], None
    for chunk in ask(client, n=2, stream=True, stream_options={"include_usage": True}):
        assert chunk.object == "chat.completion.chunk"
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert usage == whole.usage


def test_pictures_come_in_their_places_and_beside(client, tiny):
    settings = {"modalities": ["text", "image"], "max_tokens": 150, "seed": 5, "n": 8, "temperature": 50}  # at random
    reply = ask(client, extra={"return_token_ids": True}, **settings)
    assert sum(len(choice.token_ids) for choice in reply.choices) == reply.usage.completion_tokens
    assert reply.prompt_token_ids[0] == tiny.bundle.vocab.bos
    mixed = [choice for choice in reply.choices if not isinstance(choice.message.content, str)]
    assert 0 < len(mixed) < 8
    for choice in mixed:
        outputs = read_output(np.array(choice.token_ids), tiny.bundle)
        assert len(choice.message.content) == len(outputs) > 1
        for part, output in zip(choice.message.content, outputs, strict=True):
            if part["type"] == "text":
                assert part["text"] == output.text
            else:
                assert np.array_equal(read_picture(part["image_url"]["url"]), to_image(output.item))
        pictures = [part["image_url"]["url"] for part in choice.message.content if part["type"] == "image_url"]
        assert [image["image_url"]["url"] for image in choice.message.images] == pictures
    streamed = [[] for _ in reply.choices]
    for chunk in ask(client, stream=True, extra={"partial_every": 100}, **settings):
        for choice in chunk.choices:
            delta, parts = choice.delta.model_dump(), streamed[choice.index]
            if delta.get("content") and parts and not parts[-1].startswith("data:"):
                parts[-1] += delta["content"]
            elif delta.get("content"):
                parts.append(delta["content"])
            parts += [image["image_url"]["url"] for image in delta.get("images") or []]
    for choice, parts in zip(reply.choices, streamed, strict=True):
        content = choice.message.content
        whole = [content] if isinstance(content, str) else [p.get("text") or p["image_url"]["url"] for p in content]
        assert parts == whole


@pytest.mark.filterwarnings("ignore:Pydantic serializer")  # the client knows no content in parts
def test_a_reply_with_pictures_goes_back_into_the_conversation(client, tiny):
    first = ask(client, extra={"mode": "image", "max_images": 1})
    message = first.choices[0].message.model_dump(exclude_none=True)
    messages = [{"role": "user", "content": "a"}, message, {"role": "user", "content": "b"}]
    again = client.chat.completions.create(
        model="tiny", messages=messages, max_tokens=4, extra_body={"return_token_ids": True}
    )
    ids = np.array(again.prompt_token_ids)
    url = message["images"][0]["image_url"]["url"]
    pixels = load_pixels(base64.b64decode(url.partition(",")[2]), tiny.bundle.pictures.config)
    codes = tiny.bundle.pictures.encode(pixels[None])[0]
    image = tiny.bundle.vocab.modalities[tiny.bundle.vocab.row("image")]
    assert image.codes(ids[image.holds(ids)]).tolist() == codes.tolist()


def test_a_picture_streams_sharper_and_sharper(client):
    seen, finish = [], None
    for chunk in ask(client, stream=True, extra={"mode": "image", "max_images": 1, "partial_every": 5}):
        for choice in chunk.choices:
            seen += getattr(choice.delta, "images", None) or []
            finish = choice.finish_reason or finish
    assert [(image["done"], image["of"], image["partial"]) for image in seen] == [
        (5, 16, True),
        (10, 16, True),
        (15, 16, True),
        (16, 16, False),
    ]
    assert finish == "stop" and {image["index"] for image in seen} == {0}
    pictures = [read_picture(image["image_url"]["url"]) for image in seen]
    whole = ask(client, extra={"mode": "image", "max_images": 1}).choices[0].message.images[0]
    assert np.array_equal(pictures[-1], read_picture(whole["image_url"]["url"]))
    assert not np.array_equal(pictures[0], pictures[-1])


def test_pictures_go_in(client):
    parts = [{"type": "image_url", "image_url": {"url": data_url()}}, {"type": "text", "text": "What is it?"}]
    assert ask(client, parts).usage.prompt_tokens > 18
    assert ask(client, parts).choices != ask(client, [*parts, parts[0]]).choices


def test_ids_of_a_stream_are_those_of_the_reply(client):
    extra = {"return_token_ids": True, "mode": "interleaved"}
    whole = ask(client, max_tokens=100, extra=extra).choices[0]
    ids = []
    for chunk in ask(client, max_tokens=100, stream=True, extra=extra):
        ids += getattr(chunk.choices[0].delta, "token_ids", None) or []
    assert ids == whole.token_ids


def test_words_end_at_a_stop_string(client):
    whole = ask(client, max_tokens=60).choices[0].message.content
    stop = whole[5:7]
    reply = ask(client, max_tokens=60, stop=[stop]).choices[0]
    assert reply.message.content == whole[: whole.index(stop)] and reply.finish_reason == "stop"
    streamed = ask(client, max_tokens=60, stop=stop, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in streamed) == reply.message.content


def test_completions(client):
    settings = {"model": "tiny", "max_tokens": 20, "seed": 1}
    whole = client.completions.create(prompt="a red", **settings)
    assert whole.object == "text_completion" and whole.choices[0].finish_reason in ("stop", "length")
    both = client.completions.create(prompt=["a red", "words"], **settings)
    assert [choice.index for choice in both.choices] == [0, 1] and both.choices[0].text == whole.choices[0].text
    streamed = client.completions.create(prompt="a red", stream=True, **settings)
    assert "".join(chunk.choices[0].text for chunk in streamed) == whole.choices[0].text


def test_images_are_drawn(client):
    reply = client.images.generate(model="tiny", prompt="a heart", n=2, extra_body={"seed": 1})
    pictures = [read_picture(f"data:image/png;base64,{image.b64_json}") for image in reply.data]
    assert len(pictures) == 2 and not np.array_equal(*pictures)
    as_url = client.images.generate(prompt="a heart", size="16x16", response_format="url", extra_body={"seed": 1})
    assert np.array_equal(read_picture(as_url.data[0].url), pictures[0])
    assert reply.usage.output_tokens == 2 * 18


def test_an_image_streams(client):
    events = list(client.images.generate(prompt="a", stream=True, partial_images=2))
    kinds = [event.type.rpartition(".")[2] for event in events]
    assert kinds == ["partial_image", "partial_image", "completed"]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    assert all(read_picture(f"data:image/png;base64,{event.b64_json}").shape == (16, 16, 3) for event in events)


def test_greedy_needs_no_seed(client):
    first, second = (ask(client, temperature=0, seed=seed) for seed in (1, 2))
    assert first.choices == second.choices


def test_a_seed_that_was_drawn_is_told(client):
    first = ask(client, seed=None)
    assert ask(client, seed=first.seed).choices == first.choices


def test_errors_are_the_clients_own(client):
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        ask(client, model="gpt-4o")
    with pytest.raises(openai.BadRequestError) as error:
        ask(client, extra={"temprature": 1})
    assert error.value.param == "temprature" and error.value.code == "unknown_parameter"
    with pytest.raises(openai.BadRequestError, match="a span of 'image' needs 18"):
        ask(client, extra={"mode": "image"}, max_tokens=3)


def test_a_key_is_asked_for(server):
    url = server(access={"api_key": "secret-key"}) + "/v1"
    with pytest.raises(openai.AuthenticationError, match="the API key is wrong"):
        ask(openai.OpenAI(base_url=url, api_key="secret-kex", max_retries=0))
    assert ask(openai.OpenAI(base_url=url, api_key="secret-key", max_retries=0)).choices
