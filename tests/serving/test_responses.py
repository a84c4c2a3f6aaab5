"""OpenAI's Responses API through the `openai` package: words and pictures both ways, whole and as typed events."""

import base64

import openai
import pytest

from tests.serving.conftest import data_url, running

DRAW = {"tools": [{"type": "image_generation", "partial_images": 2}], "tool_choice": {"type": "image_generation"}}


@pytest.fixture(scope="module")
def client(make_service):
    with running(make_service()) as url, openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client, input="a red heart", **settings):
    extra = {"seed": 3} | settings.pop("extra", {})
    return client.responses.create(model="tiny", input=input, extra_body=extra, **{"max_output_tokens": 30} | settings)


def chat(client, messages, **extra):
    reply = client.chat.completions.create(
        model="tiny", messages=messages, max_tokens=30, extra_body={"seed": 3, **extra}
    )
    return reply.choices[0]


def user(content):
    return {"role": "user", "content": content}


def picture_part(part):
    return {"type": "image_url", "image_url": {"url": part["image_url"]}} if "image_url" in part else {
        "type": "text", "text": part["text"],
    }  # fmt: skip


def test_a_response_says_what_a_chat_says(client):
    reply, same = (
        ask(client, instructions="Be short."),
        [{"role": "system", "content": "Be short."}, user("a red heart")],
    )
    expected = chat(client, same)
    assert reply.output_text == expected.message.content and reply.object == "response"
    assert reply.status == ("incomplete" if expected.finish_reason == "length" else "completed")
    assert (reply.incomplete_details is not None) == (reply.status == "incomplete")
    [item] = reply.output
    assert (item.type, item.role, item.status, item.content[0].type) == (
        "message",
        "assistant",
        "completed",
        "output_text",
    )
    assert reply.usage.total_tokens == reply.usage.input_tokens + reply.usage.output_tokens > 0
    assert reply.usage.output_tokens_details.text_tokens == reply.usage.output_tokens


def test_a_conversation_with_pictures_is_that_of_a_chat(client):
    parts = [{"type": "input_image", "image_url": data_url()}, {"type": "input_text", "text": "What is it?"}]
    drawn = ask(client, **DRAW).output
    assert {item.type for item in drawn} == {"image_generation_call"}
    conversation = [user(parts), {"role": "assistant", "content": "A square."}, drawn[0], user("Again")]
    answer = [{"type": "text", "text": "A square."}]
    answer.append(picture_part({"image_url": f"data:image/png;base64,{drawn[0].result}"}))
    messages = [user([picture_part(part) for part in parts]), {"role": "assistant", "content": answer}, user("Again")]
    assert ask(client, conversation).output_text == chat(client, messages).message.content


def test_words_and_pictures_stand_in_order(client):
    settings = {"extra": {"seed": 5}, "max_output_tokens": 150, "temperature": 50}
    reply = ask(client, tools=[{"type": "image_generation"}], **settings)
    expected = client.chat.completions.create(
        model="tiny",
        messages=[user("a red heart")],
        modalities=["text", "image"],
        max_tokens=150,
        temperature=50,
        extra_body={"seed": 5},
    )
    content = expected.choices[0].message.content
    content = [{"type": "text", "text": content}] if isinstance(content, str) else content
    said = [part.get("text") or part["image_url"]["url"].partition(",")[2] for part in content]
    assert said == [item.content[0].text if item.type == "message" else item.result for item in reply.output]
    assert all(base64.b64decode(item.result)[1:4] == b"PNG" for item in reply.output if item.type != "message")


@pytest.mark.parametrize("settings", [{}, DRAW | {"extra": {"max_images": 1, "return_token_ids": True}}])
def test_a_stream_is_the_response_in_typed_events(client, settings):
    whole = ask(client, **settings)
    events = list(ask(client, stream=True, **settings))
    assert [e.sequence_number for e in events] == list(range(len(events)))
    kinds = [e.type.removeprefix("response.") for e in events]
    assert kinds[:3] == ["created", "in_progress", "output_item.added"] and kinds[-2] == "output_item.done"
    last = events[-1].response
    assert kinds[-1] == last.status == whole.status and last.usage == whole.usage
    if settings:
        names = [kind.partition("call.")[2] for kind in kinds[3:-2]]
        assert names == ["in_progress", "generating", "partial_image", "partial_image", "completed"]
        assert [e.partial_image_index for e in events if e.type.endswith("partial_image")] == [0, 1]
        assert last.output[0].result == whole.output[0].result and len(last.output[0].codes) == 16
    else:
        assert kinds[3] == "content_part.added" and kinds[-4:-2] == ["output_text.done", "content_part.done"]
        assert (
            "".join(e.delta for e in events if e.type.endswith("text.delta")) == whole.output_text == last.output_text
        )
        assert {e.item_id for e in events if hasattr(e, "item_id")} == {last.output[0].id}


def test_what_is_done_otherwise_is_told(client):
    settings = {"input": "a", "extra": {"frequency_penalty": 0.5, "mode": "text"}}
    (note,) = ask(client, **settings).notes
    assert note.startswith("frequency_penalty is not used: ")
    first, *_, last = ask(client, stream=True, **settings)
    assert last.response.notes == [note] and not hasattr(first.response, "notes")


def test_the_clients_own_reader_of_streams_takes_it(client):
    with client.responses.stream(
        model="tiny", input="a red heart", max_output_tokens=30, extra_body={"seed": 3}
    ) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert text == ask(client).output_text
        assert stream.get_final_response().output_text == text


@pytest.mark.parametrize(
    ("settings", "told", "param"),
    [
        ({"previous_response_id": "resp_1"}, "send the whole conversation as input", "previous_response_id"),
        ({"background": True}, "background", "background"),
        ({"tools": [{"type": "web_search"}]}, "does not have it", "tools.0.type"),
        ({"input": []}, "at least 1 item", "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input_image", "input.0.content.0"),
        ({"input": [user("a"), user("b")]}, "a chat goes user, assistant", "messages"),
        ({"extra": {"messages": [user("a")]}}, "'messages' is of /v1/chat/completions", None),
        ({"max_output_tokens": 0}, "greater than or equal to 1", "max_output_tokens"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused_by_name(client, settings, told, param):
    with pytest.raises(openai.BadRequestError, match=told) as error:
        ask(client, **settings)
    assert error.value.param == param
    assert ask(client, store=True).output_text == ask(client, store=False).output_text


def test_nothing_is_stored(client):
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(ask(client, store=True).id)
