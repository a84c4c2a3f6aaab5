"""A model before and when it begins to answer: its programs, what counts as traffic, and how long requests are said to take."""

import dataclasses
import time

import httpx
import numpy as np
import pytest

from chameleon_jax.configs import EngineConfig, GenerationConfig
from chameleon_jax.generation import lanes
from chameleon_jax.generation.engine import Engine
from chameleon_jax.generation.requests import Request
from chameleon_jax.serving.models import Models
from chameleon_jax.serving.service import Service
from chameleon_jax.serving.startup import warm_up
from tests.serving.conftest import SERVE, KeptOpen, running


@pytest.fixture
def unopened(tiny):
    """unopened(name, engine=config) -> a service whose engine has not come."""

    def make(name="tiny", **settings):
        config = dataclasses.replace(SERVE, **settings)
        return Service(bundle=tiny.bundle, config=config, model=tiny.model, model_name=name)

    return make


def test_all_programs_are_there_and_nobody_has_asked_for_anything(tiny, unopened):
    config = EngineConfig(slots=3, block=4, context=64)  # like those of no other test: nothing is compiled
    service, before = unopened(engine=config), lanes.stop._cache_size()
    with Engine(tiny.params, tiny.model, tiny.bundle.vocab, config) as engine:
        warm_up(engine, service.bundle, service.context, "tiny")
        service.open(engine)
        assert (service.stats().requests, service.stats().tokens) == (0, 0)
        assert lanes.stop._cache_size() == before + 1
        blocks = lanes.run_block._cache_size()
        vocab = tiny.bundle.vocab
        config = GenerationConfig(mode=vocab.text.name, max_tokens=2)
        prompt = np.full(30, vocab.text.start)
        told = engine.stream(Request(prompt=prompt, config=config, logprobs=3)).result()
        assert lanes.run_block._cache_size() == blocks
        assert (service.stats().requests, service.stats().tokens) == (1, len(told.ids))


def test_a_server_that_stops_before_it_has_compiled_is_not_well(unopened, engine):
    service = unopened()
    service.draining = True
    with running(service) as url:
        health = httpx.get(url + "/health")
        assert health.status_code == 503 and health.json()["status"] == "draining"
        service.open(KeptOpen(engine))
        assert httpx.get(url + "/health").status_code == 200


def test_the_time_to_wait_is_that_of_requests_of_the_model(unopened):
    first, second = unopened("first"), unopened("second")
    models, expected = Models([first, second]), second._seconds
    with models.admit() as place:
        place.move(second)
        time.sleep(0.3)
    assert first._seconds == expected > second._seconds >= 0.9 * expected + 0.03
    with models.admit():  # whose model is never known, as that of a request that is refused
        pass
    assert first._seconds == expected
