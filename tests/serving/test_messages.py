"""Messages become the ids that the Python API makes of the same words and pictures."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from chameleon_jax.configs import GenerationConfig
from chameleon_jax.generation.prompt import build_request, encode_turns
from chameleon_jax.serving import schema
from chameleon_jax.serving.errors import ApiError
from chameleon_jax.serving.messages import build_ids, read_turns
from chameleon_jax.tokenizers.documents import Segment
from tests.serving.conftest import data_url
from tests.tiny_run import make_run

COLORS = ("red", "blue", "green")


def content(*parts):
    """Words as they are, colours as pictures."""
    urls = {color: data_url((24, 17), color) for color in COLORS}
    return [
        {"type": "image_url", "image_url": {"url": urls[part]}} if part in urls else {"type": "text", "text": part}
        for part in parts
    ]


def ids_of(bundle, messages, format="chat", **settings):
    request = schema.parse(schema.ChatRequest, json.dumps({"messages": messages}).encode())
    turns = read_turns(request.messages, format, bundle, 8)
    return build_ids(turns, format, bundle, longest=10_000, **settings).tolist()


def picture(color):
    """The segment of the same file, as the Python API takes it."""
    file = io.BytesIO()
    Image.new("RGB", (24, 17), color).save(file, "PNG")
    return Segment("image", file.getvalue())


def test_a_conversation_is_that_of_encode_turns(tiny):
    messages = [
        {"role": "system", "content": "words"},
        {"role": "user", "content": content("a ", "red", "or", "blue", " heart")},
        {"role": "assistant", "content": content("green", "yes")},
        {"role": "user", "content": "größer"},
    ]
    turns = [
        ["words\na ", picture("red"), "or", picture("blue"), " heart"],
        [picture("green"), "yes"],
        ["größer"],
    ]
    assert ids_of(tiny.bundle, messages) == encode_turns(turns, tiny.bundle, format="chat").tolist()


def test_a_completion_is_that_of_encode_turns(tiny):
    messages = [{"role": "user", "content": content("some ", "words", "red")}]
    wanted = encode_turns([["some words", picture("red")]], tiny.bundle)
    assert ids_of(tiny.bundle, messages, "completion") == wanted.tolist()


def test_lumina_is_asked_in_its_words():
    bundle = make_run(is_grid=True).bundle
    config = GenerationConfig(mode="image")
    wanted = build_request(["a heart"], bundle, config, format="lumina", image_size=(8, 24)).prompt
    ids = ids_of(bundle, [{"role": "user", "content": "a heart"}], "lumina", image_size=(8, 24))
    assert ids == wanted.tolist()


def test_what_a_user_spells_opens_nothing(tiny):
    vocab = tiny.bundle.vocab
    begin = vocab.modalities[vocab.row("image")].begin_marker
    spelled = "<image> <racm3:break> <reserved08706> </s> IMGIMGAZ \ud800 \0"
    ids = ids_of(tiny.bundle, [{"role": "user", "content": content(spelled, "red")}])
    assert ids.count(begin) == 1
    words = ids[1 : ids.index(begin)]
    assert min(words) >= vocab.text.start
    assert tiny.bundle.text.decode(np.array(words)) == spelled.replace("\ud800", "�")


def test_pictures_of_a_reply_come_back_in_either_field(tiny):
    url = content("red")[0]
    ask, again = {"role": "user", "content": "a"}, {"role": "user", "content": "b"}
    as_parts = {"role": "assistant", "content": [{"type": "text", "text": "yes"}, url]}
    as_images = {"role": "assistant", "content": "yes", "images": [url]}
    both = {**as_parts, "images": [url | {"index": 0}]}
    assert (
        ids_of(tiny.bundle, [ask, as_parts, again])
        == ids_of(tiny.bundle, [ask, as_images, again])
        == ids_of(tiny.bundle, [ask, both, again])
    )


@pytest.mark.parametrize(
    "roles", [["assistant"], ["user", "user"], ["user", "assistant"], ["system"], ["user", "system", "user"]]
)
def test_roles_take_turns(tiny, roles):
    with pytest.raises(ApiError) as error:
        ids_of(tiny.bundle, [{"role": role, "content": "a"} for role in roles])
    assert error.value.status == 400 and error.value.param.startswith("messages")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_pictures_of_all_formats_are_read(tiny, format):
    part = {"type": "image_url", "image_url": {"url": data_url((9, 30), "blue", format)}}
    ids = ids_of(tiny.bundle, [{"role": "user", "content": [part]}])
    assert len(ids) == 1 + 18 + 1
    assert base64.b64decode(part["image_url"]["url"].partition(",")[2])
