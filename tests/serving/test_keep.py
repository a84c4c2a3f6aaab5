"""Kept codes of pictures through the `openai` package: a picture's codes come, go back in part, and stand."""

import numpy as np
import openai
import pytest

from chameleon_jax.tokenizers.images import to_image
from tests.serving.conftest import read_picture, running


@pytest.fixture(scope="module")
def client(make_service):
    with running(make_service()) as url, openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0) as client:
        yield client


def draw(client, keep=None, mode="image", content="a red heart", **settings):
    extra = {"mode": mode, "max_images": 1, "return_token_ids": True} | ({"keep": keep} if keep else {})
    return client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": content}], max_tokens=60, extra_body=extra, **settings
    )


@pytest.fixture(scope="module")
def codes(client):
    return draw(client, seed=1).choices[0].message.images[0]["codes"]


def test_codes_of_a_picture_are_those_of_its_ids_and_pixels(tiny, client, codes):
    reply = draw(client, seed=1)
    image = tiny.bundle.vocab.modalities[tiny.bundle.vocab.row("image")]
    ids = np.array(reply.choices[0].token_ids)
    assert codes == image.codes(ids[image.holds(ids)]).tolist() and len(codes) == 16
    message = reply.choices[0].message
    assert message.content[0]["codes"] == codes
    pixels = read_picture(message.images[0]["image_url"]["url"])
    assert np.array_equal(pixels, to_image(tiny.bundle.pictures.decode(np.array(codes)[None])[0]))
    plain = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "a"}], max_tokens=60, extra_body={"mode": "image"}
    )
    assert "codes" not in plain.choices[0].message.images[0]


@pytest.mark.parametrize("modality", [{}, {"modality": "image"}])
def test_kept_codes_stand_and_null_ones_are_drawn(client, codes, modality):
    keep = {"codes": [code if i % 3 else None for i, code in enumerate(codes)]} | modality
    drawn = [choice.message.images[0]["codes"] for choice in draw(client, keep, seed=5, n=4).choices]
    for new in drawn:
        assert [a for i, a in enumerate(new) if i % 3] == [a for i, a in enumerate(codes) if i % 3]
    assert len(set(map(tuple, drawn))) > 1


def test_a_stream_shows_them_too_and_the_message_goes_back(client, codes):
    seen = []
    for chunk in draw(client, {"codes": [None, *codes[1:]]}, seed=2, stream=True):
        for choice in chunk.choices:
            seen += getattr(choice.delta, "images", None) or []
    assert seen[0]["partial"] and len(seen[0]["codes"]) == seen[0]["done"] < 16
    assert seen[-1]["codes"][1:] == codes[1:]
    whole = draw(client, {"codes": [None, *codes[1:]]}, seed=2).choices[0].message
    assert whole.images[0]["codes"] == seen[-1]["codes"]
    assert draw(client, content=whole.content, seed=2).choices[0].message.images


def test_the_images_api_keeps_and_tells_codes(client, codes):
    keep = {"codes": [*codes[:8], *[None] * 8]}
    reply = client.images.generate(prompt="a heart", n=2, extra_body={"keep": keep, "return_token_ids": True})
    assert [image.codes[:8] for image in reply.data] == [codes[:8]] * 2


@pytest.mark.parametrize(
    ("keep", "mode", "told"),
    [
        ({"codes": [1, None]}, "image", "keep: 2 codes of 'image' are kept or left to draw; a span has 16"),
        ({"codes": [16, *[None] * 15]}, "image", "kept code 16 of 'image', number 0, is outside 0..15"),
        ({"codes": [0] * 16}, "image", "all 16 codes of 'image' are kept: leave some to draw"),
        ({"codes": [None] * 16}, "text", "keep: codes are of a picture or another span, and mode 'text' draws none"),
        ({"codes": [None] * 16}, "unrestricted", "mode 'unrestricted' draws none"),
        ({"modality": "image", "codes": [None] * 16}, "text", "mode 'text' writes no such spans"),
        ({"modality": "imgae", "codes": [None] * 16}, "image", "did you mean 'image'"),
        ({"codes": [-1] * 16}, "image", "greater than or equal to 0"),
        ({"codes": []}, "image", "at least 1 item"),
        ({"codes": ["a"]}, "image", "valid integer"),
    ],
)
def test_codes_that_cannot_be_kept_are_refused_by_name(client, keep, mode, told):
    with pytest.raises(openai.BadRequestError, match=told) as error:
        draw(client, keep, mode=mode)
    assert error.value.param.startswith("keep")
