"""Several models in one server, and pages of other sites that may use it."""

import dataclasses

import httpx
import pytest

from chameleon_jax.configs import EngineConfig
from chameleon_jax.serving.app import create_app
from chameleon_jax.serving.metrics import Metrics
from chameleon_jax.serving.server import Server, bind
from chameleon_jax.serving.service import Service
from tests.serving.conftest import SERVE, KeptOpen, running_in_thread

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def two(tiny, engine):
    """A client of one server with two models: `tiny`, and `late`, which is not compiled."""
    metrics = Metrics()
    settings = {"bundle": tiny.bundle, "metrics": metrics, "model": tiny.model}
    late = dataclasses.replace(SERVE, engine=EngineConfig(slots=1, max_queued=1), request_seconds=0.2)
    services = [
        Service(engine=KeptOpen(engine), config=SERVE, model_name="tiny", **settings),
        Service(config=late, model_name="late", **settings),
    ]
    sock = bind(SERVE)
    running = running_in_thread(Server(services, create_app(*services)), sock)
    with running as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def ask(client, **settings):
    return client.post(CHAT, json={"messages": [{"role": "user", "content": "a"}], "max_tokens": 3, **settings})


def test_all_models_are_listed(two):
    listed = two.get("/v1/models").json()["data"]
    assert [model["id"] for model in listed] == ["tiny", "late"]
    assert two.get("/v1/models/late").json() == listed[1]


def test_a_requests_model_answers_it(two):
    assert ask(two, model="tiny").json()["model"] == "tiny" and ask(two).json()["model"] == "tiny"
    late = ask(two, model="late")
    assert late.status_code == 503 and late.headers["retry-after"] and late.json()["error"]["code"] == "compiling"


def test_a_model_that_is_not_there_is_told_with_those_that_are(two):
    reply = ask(two, model="gpt-4o")
    assert reply.status_code == 404 and "this server has 'tiny', 'late'" in reply.json()["error"]["message"]
    assert "did you mean 'late'?" in ask(two, model="lat").json()["error"]["message"]


def test_health_and_metrics_are_of_all(two):
    health = two.get("/health")
    assert health.status_code == 503 and health.json()["status"] == "compiling"
    assert health.json()["models"] == {"tiny": {"status": "ok"}, "late": {"status": "compiling"}}
    assert health.json()["slots"] == 5
    text = two.get("/metrics").text
    assert 'chameleon_slots{model="tiny"} 4.0' in text and 'chameleon_slots{model="late"} 1.0' in text


PAGE = "https://chat.example.org"


def test_a_named_page_may_use_the_api(server):
    url = server(cors_origin=(PAGE,), access={"api_key": "secret"})
    asks = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    asks |= {"Access-Control-Request-Headers": "authorization, x-stainless-os"}
    preflight = httpx.options(url + CHAT, headers=asks)
    assert preflight.status_code == 204 and preflight.headers["access-control-allow-origin"] == PAGE
    assert "x-stainless-os" in preflight.headers["access-control-allow-headers"]
    body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 3}
    without = httpx.post(url + CHAT, json=body, headers={"Origin": PAGE})
    assert without.status_code == 401 and without.headers["access-control-allow-origin"] == PAGE
    answer = httpx.post(url + CHAT, json=body, headers={"Origin": PAGE, "Authorization": "Bearer secret"})
    assert answer.status_code == 200 and answer.headers["vary"] == "origin"


@pytest.mark.parametrize("origin", ["https://other.example.org", "null", "http://chat.example.org"])
def test_no_other_page_may(server, origin):
    url = server(cors_origin=(PAGE,))
    for method in ("OPTIONS", "GET"):
        reply = httpx.request(method, url + "/v1/models", headers={"Origin": origin})
        assert reply.status_code == 403 and "access-control-allow-origin" not in reply.headers
