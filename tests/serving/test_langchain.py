"""LangChain's `ChatOpenAI` and `OpenAI`, unchanged, against a real server: words, pictures both ways, streams, batches."""

import base64

import numpy as np
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAI

from chameleon_jax.serving import tolerance
from tests.serving.conftest import data_url, read_picture, running

SEEN = HumanMessage([{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": data_url()}}])
PICTURES = {"mode": "image", "max_images": 1}


@pytest.fixture(scope="module")
def settings(make_service):
    """What every client here is given; the server is one started without flags."""
    with running(make_service(content_format="text")) as url:
        yield {"base_url": url + "/v1", "api_key": "none", "model": "tiny", "max_retries": 0, "timeout": 60, "seed": 3}


@pytest.fixture
def chat(settings):
    """chat(**more) -> ChatOpenAI."""
    return lambda **more: ChatOpenAI(**{**settings, "max_tokens": 30, **more})


def joined(chunks):
    """The message that LangChain makes of a stream."""
    first, *others = chunks
    return sum(others, first)


def test_a_chat_is_answered_whole_and_as_a_stream(chat):
    whole = chat().invoke("a red heart")
    assert whole.content and whole.response_metadata["finish_reason"] in ("stop", "length")
    assert whole.response_metadata["model_name"] == "tiny"
    chunks = list(chat(stream_usage=True).stream("a red heart"))
    streamed = joined(chunks)
    assert len(chunks) > 3 and streamed.content == whole.content
    assert streamed.usage_metadata == whole.usage_metadata
    counts = whole.usage_metadata
    assert counts["total_tokens"] == counts["input_tokens"] + counts["output_tokens"] and counts["output_tokens"] > 1


def test_a_batch_is_answered_message_by_message(chat):
    texts = ["a red heart", "some words", "heart"]
    assert [reply.content for reply in chat().batch(texts)] == [chat().invoke(text).content for text in texts]


@pytest.mark.parametrize("block", ["image_url", "image"])
def test_pictures_go_in(chat, block):
    """As OpenAI's part, and as LangChain's own, which it rewrites."""
    url = data_url()
    own = {"type": "image", "base64": url.partition(",")[2], "mime_type": "image/png"}
    part = own if block == "image" else {"type": "image_url", "image_url": {"url": url}}
    words = [{"type": "text", "text": "What is it?"}]
    plain, seen = (chat().invoke([SystemMessage("some words"), HumanMessage(p)]) for p in (words, [*words, part]))
    assert seen.usage_metadata["input_tokens"] - plain.usage_metadata["input_tokens"] == 18
    assert seen.content != plain.content


def drawn_url(chat):
    """The picture that the settings of these tests draw."""
    return chat(extra_body=PICTURES | {"content_format": "parts"}).invoke("a heart").content[0]["image_url"]["url"]


def test_a_drawn_picture_is_a_part_of_the_content(chat):
    reply = chat(extra_body=PICTURES | {"content_format": "parts"}).invoke("a heart")
    assert read_picture(reply.content[0]["image_url"]["url"]).shape == (16, 16, 3)
    back = chat().invoke(["a", reply, "b"])
    assert back.usage_metadata["input_tokens"] > 18


def test_a_drawn_picture_is_streamed_as_markdown(chat):
    llm = chat(extra_body=PICTURES | {"content_format": "markdown"})
    whole, streamed = llm.invoke("a heart"), joined(llm.stream("a heart"))
    assert isinstance(streamed, AIMessage) and streamed.content == whole.content
    (part,) = tolerance.split_markdown(streamed.content)
    assert part["image_url"]["url"] == drawn_url(chat)
    parts = AIMessage([part])
    counts = [chat().invoke(["a", reply, "b"]).usage_metadata["input_tokens"] for reply in (streamed, parts)]
    assert counts[0] == counts[1] > 18


@pytest.mark.parametrize("stream", [False, True])
def test_the_responses_api_gives_pictures_as_blocks_of_langchain(chat, settings, stream):
    llm = ChatOpenAI(
        **{name: value for name, value in settings.items() if name != "seed"},
        use_responses_api=True, store=False, extra_body={"seed": 3, "max_images": 1},
    )  # fmt: skip
    drawing = llm.bind_tools([{"type": "image_generation"}], tool_choice="required")
    reply = joined(drawing.stream("a heart")) if stream else drawing.invoke("a heart")
    (block,) = reply.content_blocks
    assert block["type"] == "image" and block["mime_type"] == "image/png"
    assert np.array_equal(read_picture("data:image/png;base64," + block["base64"]), read_picture(drawn_url(chat)))
    again = llm.invoke(["a", reply, SEEN])
    assert again.usage_metadata["input_tokens"] > 36 and again.text
    assert llm.invoke([SEEN]).usage_metadata["input_tokens"] > 18


def test_stored_pictures_are_asked_for_in_words(settings):
    """By default LangChain sends an id of what OpenAI would have stored."""
    llm = ChatOpenAI(**{name: value for name, value in settings.items() if name != "seed"}, use_responses_api=True)
    reply = llm.bind_tools([{"type": "image_generation"}], tool_choice="required").invoke("a heart")
    assert base64.b64decode(reply.content_blocks[0]["base64"]).startswith(b"\x89PNG")
    with pytest.raises(Exception, match=r"input\.1\.result: is missing; nothing is stored .*store=False"):
        llm.invoke(["a", reply, "b"])


def test_logprobs(chat):
    reply = chat(logprobs=True, top_logprobs=2, max_tokens=5).invoke("a")
    entries = reply.response_metadata["logprobs"]["content"]
    assert len(entries) == reply.usage_metadata["output_tokens"]
    assert all(entry["logprob"] <= 0 and len(entry["top_logprobs"]) == 2 for entry in entries)
    streamed = joined(chat(logprobs=True, top_logprobs=2, max_tokens=5).stream("a"))
    ids = [entry["id"] for entry in streamed.response_metadata["logprobs"]["content"]]
    assert ids == [entry["id"] for entry in entries]


def test_words_end_at_a_stop_string(chat):
    whole = chat().invoke("a red heart").content
    stop = whole[2:4]
    assert chat(stop=[stop]).invoke("a red heart").content == whole[: whole.index(stop)]
    assert joined(chat().stream("a red heart", stop=[stop])).content == whole[: whole.index(stop)]


def test_several_choices_and_settings_that_mean_nothing_here(chat):
    first, second = chat(n=2).generate([[HumanMessage("a")]]).generations[0]
    assert first.text and second.text and first.text != second.text
    settings = {"temperature": 0, "top_p": 0.5, "frequency_penalty": 0.5, "service_tier": "auto", "store": True}
    assert chat(**settings, metadata={"a": "b"}).invoke("a").content


def test_tools_are_offered_in_vain_and_structured_output_is_refused(chat):
    tool = {"type": "function", "function": {"name": "f", "description": "f", "parameters": {"type": "object"}}}
    assert chat().bind_tools([tool]).invoke("a").tool_calls == []
    schema = {"title": "A", "description": "a", "type": "object", "properties": {"x": {"type": "integer"}}}
    with pytest.raises(Exception, match="this server does not have it; leave it out"):
        chat().with_structured_output(schema).invoke("a")


def test_completions(settings):
    llm = OpenAI(**{**settings, "max_tokens": 10})
    whole = llm.invoke("a red")
    assert whole and "".join(llm.stream("a red")) == whole
    assert llm.batch(["a red", "some"])[0] == whole
    result = OpenAI(**{**settings, "max_tokens": 10}, logprobs=2).generate(["a red"])
    assert result.generations[0][0].generation_info["logprobs"]["tokens"]
    assert result.llm_output["token_usage"]["completion_tokens"] == 10
