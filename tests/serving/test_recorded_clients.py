"""Requests that Open WebUI and LibreChat really sent (`recorded/`), answered with what their code reads."""

import base64
import dataclasses
import json
from pathlib import Path

import httpx
import pytest

from tests.serving.conftest import SERVE, running

REQUESTS = [
    pytest.param(request["path"], request["body"], id=f"{file.stem}: {request['name']}")
    for file in sorted((Path(__file__).parent / "recorded").glob("*.json"))
    for request in json.loads(file.read_text())["requests"]
]


@pytest.fixture(scope="module")
def client(make_service):
    base = dataclasses.replace(SERVE.generation, max_tokens=20)
    service = make_service(content_format="text", format="chat", generation=base)
    with running(service) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.mark.parametrize("path, body", REQUESTS)
def test_a_recorded_request_is_answered(client, path, body):
    reply = client.post(path, json=body)
    if "response_format" in body and "chat" in path:  # LibreChat's titles by structured output
        assert reply.status_code == 400 and reply.json()["error"]["param"].startswith("response_format")
        return
    assert reply.status_code == 200, reply.text
    lines = [line[6:] for line in reply.text.splitlines() if line.startswith("data: ")]
    if path == "/v1/images/generations":
        pictures = [base64.b64decode(picture["b64_json"]) for picture in reply.json()["data"]]
        assert len(pictures) == body["n"] and all(picture.startswith(b"\x89PNG") for picture in pictures)
    elif path == "/v1/responses":
        assert json.loads(lines[-2])["type"] in ("response.completed", "response.incomplete")
    elif not body.get("stream"):
        assert isinstance(reply.json()["choices"][0]["message"]["content"], str)
    else:
        chunks = [json.loads(line) for line in lines[:-1]]
        choices = [choice for chunk in chunks for choice in chunk["choices"]]
        assert choices[0]["delta"]["role"] == "assistant" and any(choice["finish_reason"] for choice in choices)
        words = "".join(choice["delta"].get("content") or "" for choice in choices)
        assert ("![picture](data:image/png;base64," in words) == (body.get("content_format") == "markdown")
        assert not body.get("stream_options") or chunks[-1]["usage"]["prompt_tokens"] > 1
