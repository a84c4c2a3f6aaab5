"""A conversation in the terminal: what was said is before the model again, files are told, and Ctrl-C ends it cleanly."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from chameleon_jax.configs import GenerationConfig, SamplingConfig
from chameleon_jax.errors import GenerationError
from chameleon_jax.generation.chat import Chat, talk
from chameleon_jax.generation.output_files import record_of
from tests.tiny_run import make_run


@pytest.fixture(scope="module")
def run():
    return make_run()


@pytest.fixture
def chat(run, tmp_path):
    """chat(format, **settings) -> a Chat of the run, which writes into tmp_path; its engine tells its requests to `seen`."""
    made = []

    def make(format="chat", **settings):
        config = GenerationConfig(**{"max_tokens": 24, "max_spans": {"image": 1}, **settings})
        own = dataclasses.replace(run, params=jax.tree.map(jnp.copy, run.params))
        made.append(Chat(own, config, format, tmp_path, {"step": run.step}))
        stream = made[-1]._engine.stream
        made[-1].seen = []
        made[-1]._engine.stream = lambda request: made[-1].seen.append(request) or stream(request)
        return made[-1]

    yield make
    for one in made:
        one.close()


def follow(chat, *lines):
    """Everything that is written while these lines are typed; an exception among them is raised in place of a line."""
    script, written = iter(lines), []

    def ask(prompt):
        line = next(script, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    talk(chat, ask, written.append)
    return "".join(written)


def test_what_was_said_and_drawn_is_before_the_model_again(run, chat, tmp_path):
    one, vocab = chat(mode="text+image"), run.bundle.vocab
    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    follow(one, "a red heart", f"/image {tmp_path / 'red.png'}", "<image> some words", "/reset", "größe")
    first, second, third = one.seen
    answer = second.prompt[len(first.prompt) :]
    assert np.array_equal(second.prompt[: len(first.prompt)], first.prompt)
    assert (second.prompt == vocab.end_of_turn).sum() == 3 and second.prompt[-1] == vocab.end_of_turn
    begin = vocab.modalities[vocab.row("image")].begin_marker
    assert (answer == begin).sum() >= 1  # the picture of the message at least
    assert (third.prompt == vocab.end_of_turn).sum() == 1 and begin not in third.prompt
    assert [request.row_id for request in one.seen] == [0, 1, 2]
    accounts = [json.loads((tmp_path / f"0{turn}.json").read_text()) for turn in range(3)]
    assert [account["prompt"] for account in accounts] == ["a red heart", "<image> some words", "größe"]


def test_pictures_are_saved_and_their_paths_told(chat, tmp_path):
    lines = ("a red heart", "/seed 7", "a red heart", "/seed x", "/nope", "/help", "/quit", "never read")
    written = follow(chat("completion", mode="image"), *lines)
    assert f"[{tmp_path / '00-0.png'}]\n" in written and f"[{tmp_path / '01-0.png'}]\n" in written
    assert record_of(tmp_path / "01-0.png")["seed"] == 7 and Image.open(tmp_path / "00-0.png").size == (16, 16)
    assert "seed 7\n" in written and "a seed is a whole number" in written
    assert "unknown command /nope; /help lists them" in written and "/image PATH" in written


def test_an_exchange_that_has_no_room_any_more_is_left_out(chat):
    long = chat(mode="text", max_tokens=60, sampling={"text": SamplingConfig(temperature=2.0, top_p=1.0)})
    follow(long, *["some words größe größe 日本語 日本" * 2] * 5)
    sizes = [len(request.prompt) for request in long.seen]
    assert len(sizes) > 5 and sizes[-1] < 192 and not any(size > 192 for size in sizes[-1:])


def test_ctrl_c_stops_an_answer_and_at_the_prompt_the_chat(chat):
    one, written = chat(mode="text"), []
    lines = iter(["some words", "a red heart"])

    def ask(prompt):
        line = next(lines, None)
        if line is None:
            raise KeyboardInterrupt
        return line

    def write(text):
        if len(one.seen) == 1 and not text.endswith("\n"):
            raise KeyboardInterrupt  # as the signal does, in the middle of the first answer
        written.append(text)

    talk(one, ask, write)
    assert "[stopped; this turn is not kept]" in "".join(written)
    assert (one.seen[1].prompt == one._bundle.vocab.end_of_turn).sum() == 1  # nothing of the first turn
    assert len(one._turns) == 2 and written[-1] == "\n"


def test_a_message_that_cannot_be_served_costs_nothing(chat, tmp_path):
    (tmp_path / "torn.png").write_bytes(b"\x89PNG")
    one = chat(mode="text")
    written = follow(one, f"/image {tmp_path / 'torn.png'}", "what", "/image none.png", "word " * 400, "some words")
    assert "error: " in written.partition("there is no file")[0]
    assert "there is no file 'none.png'" in written and written.count("error: ") == 2
    assert len(one._turns) == 2


def test_an_earlier_chat_keeps_its_files_and_a_later_one_says_the_same(chat, tmp_path):
    for number in (0, 1):
        follow(chat("completion", mode="image"), "a red heart")
        assert (tmp_path / f"0{number}-0.png").is_file()
    first, second = (json.loads((tmp_path / f"0{number}.json").read_text()) for number in (0, 1))
    assert {**first, "words": "", "files": []} == {**second, "words": "", "files": []}
    assert np.array_equal(*(np.asarray(Image.open(tmp_path / f"0{number}-0.png")) for number in (0, 1)))


def test_only_a_message_that_is_too_long_costs_an_exchange_and_only_if_it_is_answered(chat, tmp_path):
    one = chat(mode="text")
    list(one.say("some words"))
    before = one._turns
    asked, stream = [], one._engine.stream
    one._engine.stream = lambda request: asked.append(request) or stream(request)
    one.config = dataclasses.replace(one.config, mode="image", max_tokens=2)  # too few for any picture
    with pytest.raises(GenerationError, match="max_tokens 2"):
        list(one.say("a red heart"))
    assert len(asked) == 1 and one._turns is before
    one.config = dataclasses.replace(one.config, mode="text", max_tokens=24)
    answer = one.say("word " * 90)
    next(answer)
    answer.close()  # stopped: what was said before is not forgotten
    assert len(asked) > 2 and one._turns is before
