"""Log-probabilities through the `openai` package, against the model's likelihood of the ids that came."""

import numpy as np
import openai
import pytest

from chameleon_jax.evaluation.likelihood import score
from tests.serving.conftest import running


@pytest.fixture(scope="module")
def client(make_service):
    with running(make_service()) as url, openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client, extra=None, **settings):
    settings = {"model": "tiny", "max_tokens": 40, "seed": 3, "logprobs": True, "top_logprobs": 2} | settings
    extra = {"return_token_ids": True, "mode": "interleaved"} | (extra or {})
    return client.chat.completions.create(
        messages=[{"role": "user", "content": "a red heart"}], extra_body=extra, **settings
    )


@pytest.fixture(scope="module")
def reply(client):
    return ask(client, n=2, extra={"mode": "image", "max_images": 1})


def test_every_id_has_an_entry_and_their_sum_is_the_likelihood(tiny, reply):
    for choice in reply.choices:
        entries = choice.logprobs.content
        assert [entry.id for entry in entries] == choice.token_ids
        sequence = np.array([*reply.prompt_token_ids, *choice.token_ids])
        [expected] = score(tiny.params, tiny.model, [sequence], [len(reply.prompt_token_ids)])
        assert sum(entry.logprob for entry in entries) == pytest.approx(expected, rel=1e-3)
        assert {len(entry.top_logprobs) for entry in entries} == {2}
        assert all(top[0].logprob >= top[1].logprob for top in (entry.top_logprobs for entry in entries))
        assert all(entry.logprob <= entry.top_logprobs[0].logprob for entry in entries)


def test_ids_that_are_no_text_have_names(tiny, reply):
    entries = reply.choices[0].logprobs.content
    image = tiny.bundle.vocab.modalities[tiny.bundle.vocab.row("image")]
    assert [entry.token for entry in entries] == [
        "[begin image]", *[f"<image {entry.id - image.start}>" for entry in entries[1:-1]], "[end image]",
    ]  # fmt: skip
    assert [entry.modality for entry in entries] == ["marker", *["image"] * 16, "marker"]
    assert {entry.bytes for entry in entries} == {None}


def test_a_stream_has_the_entries_of_the_reply(client):
    settings = {"temperature": 3.0, "max_tokens": 60}
    whole = ask(client, **settings).choices[0]
    entries = []
    for chunk in ask(client, stream=True, **settings):
        for choice in chunk.choices:
            ids = getattr(choice.delta, "token_ids", None) or []
            come = choice.logprobs.content if choice.logprobs else []
            assert [entry.id for entry in come] == ids
            entries += come
    assert [entry.model_dump() for entry in entries] == [entry.model_dump() for entry in whole.logprobs.content]
    text = b"".join(bytes(entry.bytes) for entry in entries if entry.modality == "text")
    content = whole.message.content
    parts = [content] if isinstance(content, str) else [part.get("text", "") for part in content]
    assert text.decode(errors="replace") == "".join(parts)


def test_without_alternatives_and_without_asking(client):
    entries = ask(client, top_logprobs=None).choices[0].logprobs.content
    assert entries and all(entry.top_logprobs == [] for entry in entries)
    assert ask(client, logprobs=None, top_logprobs=None).choices[0].logprobs is None


def test_a_completion_has_the_older_form(client):
    settings = {"model": "tiny", "max_tokens": 30, "seed": 1, "prompt": "a red", "logprobs": 3, "temperature": 2.0}
    choice = client.completions.create(extra_body={"return_token_ids": True}, **settings).choices[0]
    found = choice.logprobs
    lists = (found.tokens, found.token_logprobs, found.top_logprobs, found.text_offset, found.token_ids)
    assert {len(values) for values in lists} == {len(choice.token_ids)} and found.token_ids == choice.token_ids
    for i, (token, logprob, top) in enumerate(zip(found.tokens, found.token_logprobs, found.top_logprobs, strict=True)):
        assert top[token] == logprob and len(top) in (3, 4)
        if not token.startswith(("bytes:", "[")):
            # Bytes of a character that never came whole may stand between.
            assert token in choice.text[found.text_offset[i] :][: len(token) + 3]
    tokens, offsets = [], []
    for chunk in client.completions.create(stream=True, **settings):
        if chunk.choices[0].logprobs:
            tokens += chunk.choices[0].logprobs.tokens
            offsets += chunk.choices[0].logprobs.text_offset
    assert (tokens, offsets) == (found.tokens, found.text_offset)


def test_ids_behind_a_stop_string_are_not_told(client):
    whole = ask(client, extra={"mode": "text"}).choices[0]
    stop = whole.message.content[5:7]
    cut = ask(client, extra={"mode": "text"}, stop=stop).choices[0]
    assert len(cut.logprobs.content) == len(cut.token_ids) < len(whole.token_ids)
