"""A request's settings reach the engine, the server's stand in for those that are missing."""

import dataclasses
import json

import httpx
import pytest

from chameleon_jax.configs import GuidanceConfig, SamplingConfig
from chameleon_jax.errors import GenerationError
from chameleon_jax.serving import schema
from chameleon_jax.serving.settings import choose_mode, generation_config
from tests.serving.conftest import SERVE, read_picture, running
from tests.tiny_run import CONTEXT, make_run

CHAT = "/v1/chat/completions"


def request(kind=schema.ChatRequest, **settings):
    needed = {"prompt": "a"} if kind is not schema.ChatRequest else {"messages": [{"role": "user", "content": "a"}]}
    return schema.parse(kind, json.dumps(needed | settings).encode())


def config_of(tiny, serve=SERVE, size=None, **settings):
    return generation_config(request(**settings), serve, CONTEXT, tiny.bundle, size)


def test_nothing_said_is_the_servers(tiny):
    wanted = dataclasses.replace(SERVE.generation, mode="text", stop_at_turn_end=True, max_tokens=CONTEXT, seed=0)
    first, second = config_of(tiny), config_of(tiny)
    assert dataclasses.replace(first, seed=0) == wanted and first.seed != second.seed


def test_a_continuation_is_raw_unless_asked_otherwise(tiny):
    assert not config_of(tiny, kind=schema.CompletionRequest).stop_at_turn_end
    assert config_of(tiny, kind=schema.CompletionRequest, format="chat").stop_at_turn_end


def test_words_and_pictures_have_settings_of_their_own(tiny):
    both = config_of(tiny, temperature=0.5, top_p=0.8, top_k=7, repetition_penalty=1.2)
    assert both.sampling["text"] == SamplingConfig(temperature=0.5, top_p=0.8, top_k=7, repetition_penalty=1.2)
    assert both.sampling["image"] == SamplingConfig(temperature=0.5, top_p=0.8, top_k=7)
    own = config_of(tiny, temperature=0.5, image_temperature=0, image_top_p=0.7, image_top_k=3)
    assert own.sampling["image"] == SamplingConfig(temperature=0, top_p=0.7, top_k=3)
    assert own.sampling["text"].temperature == 0.5


@pytest.mark.parametrize(
    "settings, mode",
    [
        ({}, "text"),
        ({"modalities": ["text"]}, "text"),
        ({"modalities": ["image"]}, "image"),
        ({"modalities": ["image", "text"]}, "interleaved"),
        ({"modalities": ["text"], "mode": "image"}, "image"),
        ({"kind": schema.CompletionRequest}, "text"),
        ({"kind": schema.ImagesRequest}, "image"),
    ],
)
def test_the_mode_is_said_or_follows_from_the_modalities(tiny, settings, mode):
    assert choose_mode(request(**settings), tiny.bundle) == mode


def test_what_requests_leave_out_is_the_servers(tiny, make_service):
    assert choose_mode(request(), tiny.bundle, "image") == "image"
    assert choose_mode(request(modalities=["text"]), tiny.bundle, "image") == "text"
    assert config_of(tiny, dataclasses.replace(SERVE, mode="interleaved")).mode == "interleaved"
    with pytest.raises(GenerationError, match="did you mean 'image'"):
        make_service(mode="imag")
    assert make_service().config.format == "chat" and make_service(format="lumina").config.format == "lumina"


def test_who_asks_for_a_picture_gets_one(tiny):
    assert config_of(tiny, mode="image").most_spans("image") == 1
    assert config_of(tiny, mode="image", max_images=3).most_spans("image") == 3
    assert config_of(tiny, mode="image", max_spans={"image": 2}).most_spans("image") == 2
    assert config_of(tiny, mode="interleaved").most_spans("image") == 4


def test_guidance_is_turned_on_by_a_scale(tiny):
    def guidance(**settings):
        return config_of(tiny, mode="image", **settings).guidance

    assert guidance() is None and guidance(guidance_text=1, guidance_image=1) is None
    assert guidance(guidance_text=5) == GuidanceConfig(text=5, image=1.2)
    assert guidance(guidance_image=2, format="lumina") == GuidanceConfig(text=3, image=2, scheme="lumina")
    assert config_of(tiny, guidance_text=5).guidance is None  # words are not guided


@pytest.mark.parametrize("seed, used", [(0, 0), (7, 7), (-1, 2**31 - 1), (2**31 + 5, 5), (2**63, 0)])
def test_any_seed_is_taken(tiny, seed, used):
    assert config_of(tiny, seed=seed).seed == used


def test_limits_are_those_of_the_server(tiny):
    assert config_of(tiny, max_completion_tokens=9).max_tokens == 9
    serve = dataclasses.replace(SERVE, max_tokens=50)
    assert config_of(tiny, serve).max_tokens == 50 and config_of(tiny, serve, max_tokens=50).max_tokens == 50


@pytest.mark.parametrize(
    "settings", [{"guidance_text": 5, "guidance_image": 2}, {"repetition_penalty": 5.0}, {"image_top_k": 1}]
)
def test_the_engine_makes_use_of_them(server, settings):
    body = {"messages": [{"role": "user", "content": "a red heart"}], "mode": "image", "max_images": 1, "seed": 1}
    body |= {"return_token_ids": True}
    with httpx.Client(base_url=server(), timeout=60) as client:
        if "repetition_penalty" in settings:
            body |= {"mode": "text", "max_tokens": 60}
        plain = client.post(CHAT, json=body).json()["choices"][0]["token_ids"]
        reply = client.post(CHAT, json=body | settings)
        assert reply.status_code == 200 and reply.json()["choices"][0]["token_ids"] != plain


def test_without_restrictions_whatever_comes_is_answered(server):
    body = {"messages": [{"role": "user", "content": "a"}], "mode": "unrestricted", "temperature": 50, "n": 8}
    body |= {"max_tokens": 150, "return_token_ids": True, "seed": 1}
    with httpx.Client(base_url=server(), timeout=60) as client:
        reply = client.post(CHAT, json=body)
        assert reply.status_code == 200 and len({i for c in reply.json()["choices"] for i in c["token_ids"]}) > 100
        with client.stream("POST", CHAT, json=body | {"stream": True}) as response:
            assert response.read().endswith(b"data: [DONE]\n\n")


def test_pictures_come_in_the_size_that_is_asked_for():
    from chameleon_jax.generation.engine import Engine
    from chameleon_jax.serving.service import Service

    run = make_run(is_grid=True)
    engine = Engine(run.params, run.model, run.bundle.vocab, SERVE.engine)
    service = Service(engine=engine, bundle=run.bundle, config=SERVE, model_name="tiny")
    with running(service) as url, httpx.Client(base_url=url, timeout=60) as client:
        sizes = client.get("/v1/models").json()["data"][0]["image_sizes"]
        assert {"8x32", "16x16", "32x8"} <= set(sizes) and "32x16" not in sizes
        reply = client.post("/v1/images/generations", json={"prompt": "a", "size": "24x8", "response_format": "url"})
        assert read_picture(reply.json()["data"][0]["url"]).shape == (8, 24, 3)
        body = {"messages": [{"role": "user", "content": "a"}], "mode": "image", "max_images": 1, "format": "lumina"}
        reply = client.post(CHAT, json=body | {"image_size": "8x16"}).json()
        assert read_picture(reply["choices"][0]["message"]["images"][0]["image_url"]["url"]).shape == (16, 8, 3)
        reply = client.post(CHAT, json=body | {"stream": True, "partial_every": 1, "image_size": "16x8"})
        sizes = [
            read_picture(image["image_url"]["url"]).shape
            for line in reply.text.splitlines()
            if line.startswith("data: {")
            for choice in json.loads(line[6:])["choices"]
            for image in choice["delta"].get("images", [])
        ]
        assert sizes == [(8, 16, 3)] * 8
        near = client.post(CHAT, json=body | {"image_size": "1000x250"}).json()
        assert near["notes"] == ["pictures are 32x8, the nearest to 1000x250"]
        assert read_picture(near["choices"][0]["message"]["images"][0]["image_url"]["url"]).shape == (8, 32, 3)
