"""A conversation in the terminal: words as they come, pictures and sounds as files whose paths are told.

What was said is kept as ids, so a picture that the model drew is before it again as the codes that it drew. A model of plain
documents has no turns: there each line is a prompt of its own.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from chameleon_jax.configs import EngineConfig, GenerationConfig
from chameleon_jax.errors import ChameleonError, PromptTooLong
from chameleon_jax.generation.asked import config_with, parts_of
from chameleon_jax.generation.engine import Engine, EngineStream
from chameleon_jax.generation.loading import Run
from chameleon_jax.generation.output_files import OutputFiles
from chameleon_jax.generation.prompt import Format, SpanOutput, TextOutput, build_request
from chameleon_jax.generation.reader import OutputReader, Pieces, SpanPiece
from chameleon_jax.generation.requests import Request
from chameleon_jax.progress import count as plural
from chameleon_jax.progress import printable

_CONTEXTS = 3  # lanes of one request with guidance
_BLOCK = 8  # ids between two looks: words come in small pieces
HELP = """\
/image PATH   a picture for the next message; <image> in it says where, else it comes first
/seed N       draw with this seed
/reset        forget what was said
/help         this text
/quit         end; so does Ctrl-D, and Ctrl-C when nothing is being written (else it stops the answer)"""


@dataclasses.dataclass(frozen=True)
class _Turn:
    """Ids of one side, without [bos], and the pixels of the pictures among them that are perceived."""

    ids: np.ndarray
    pictures: tuple[np.ndarray, ...] = ()


class Chat:
    """The conversation. Files go to `folder`, `record` is what they all tell of where they come from."""

    def __init__(self, run: Run, config: GenerationConfig, format: Format, folder: Path, record: dict[str, Any]):
        self.config, self.format = config, format
        self._bundle, self._folder, self._record = run.bundle, folder, record
        self._pieces = Pieces(run.bundle)
        self._turns: list[_Turn] = []
        self._images: list[str] = []
        self._count, self._first = 0, _first_free(folder)
        engine = EngineConfig(slots=_CONTEXTS if config.guidance else 1, block=_BLOCK)
        self._engine = Engine(run.params, run.model, run.bundle.vocab, engine, donate=True)

    def command(self, line: str) -> str | None:
        """Do what a line that begins with / says, and tell it; None to end."""
        name, _, value = line.partition(" ")
        value = value.strip()
        if name == "/quit":
            return None
        if name == "/help":
            return HELP
        if name == "/reset":
            self._turns, self._images = [], []
            return "all is forgotten"
        if name == "/seed":
            if not value.isdecimal() or int(value) >= 2**32:
                return "a seed is a whole number, as in /seed 7"
            self.config = dataclasses.replace(self.config, seed=int(value))
            return f"seed {value}"
        if name == "/image":
            if not Path(value).is_file():
                return f"there is no file '{value}'"
            self._images.append(value)
            return f"{plural(len(self._images), 'picture')} for the next message"
        return f"unknown command {name}; /help lists them"

    def say(self, words: str) -> Iterator[str]:
        """The answer as it comes; leaving the iteration stops it, and then nothing of this turn is kept.

        Raises ChameleonError for a message that cannot be served; the conversation stays as it was.
        """
        images, self._images = self._images, []  # one that cannot be used is not tried again
        parts = parts_of(words, images, (), self._bundle)
        request = build_request(parts, self._bundle, self.config, format=self.format)
        user = _Turn(request.prompt[1:], request.pictures)
        stream, kept = self._stream(user, request.config)
        name, self._count = f"{self._first + self._count:02d}", self._count + 1
        said = {"prompt": words, "image": images, "format": self.format}
        said |= {"seed": self.config.seed, "settings": request.config.to_dict()}
        files = OutputFiles(self._folder, name, self._bundle, {**self._record, **said, "row": self._count - 1})
        reader, ids = OutputReader(self._pieces), []
        try:
            for new in stream:
                ids.append(new)
                yield from self._shown(reader.feed(new), files)
            yield from self._shown(reader.finish(), files)
            stream.result()  # raises what went wrong
            if self.format != "completion":
                self._turns = [*kept, user, _Turn(self._closed(np.concatenate(ids)))]
        finally:
            stream.cancel()
            files.close()

    def close(self) -> None:
        self._engine.close(drain=False)

    def _stream(self, user: _Turn, config: GenerationConfig) -> tuple[EngineStream, list[_Turn]]:
        """The answer to come, and the turns before it: the oldest exchange is left out until the rest has room."""
        kept = self._turns
        while True:
            turns = [*kept, user]
            prompt = np.concatenate([[self._bundle.vocab.bos], *(turn.ids for turn in turns)]).astype(np.int32)
            pictures = tuple(picture for turn in turns for picture in turn.pictures)
            try:
                request = Request(prompt=prompt, config=config, row_id=self._count, pictures=pictures)
                return self._engine.stream(request), kept
            except PromptTooLong:
                if not kept:
                    raise
                kept = kept[2:]

    def _closed(self, ids: np.ndarray) -> np.ndarray:
        """An answer that ends its turn, whatever ended it."""
        vocab = self._bundle.vocab
        ended = len(ids) and ids[-1] in (vocab.eos, vocab.end_of_turn)
        return np.concatenate([ids[:-1] if ended else ids, [vocab.end_of_turn]]).astype(np.int32)

    def _shown(self, pieces: list, files: OutputFiles) -> Iterator[str]:
        for piece in pieces:
            if not isinstance(piece, SpanPiece):
                yield files.add(TextOutput(text=piece.text))
                continue
            codec = self._bundle.codecs.get(piece.modality)
            item = codec.decode(piece.codes[None])[0] if codec else None
            shown = files.add(SpanOutput(modality=piece.modality, codes=piece.codes, item=item))
            yield f"[{self._folder / files.files[-1]}]" if item is not None else shown


def _first_free(folder: Path) -> int:
    """The number after the highest that the outputs in a folder have: an earlier chat's files stay."""
    numbers = (re.match(r"(\d+)(-\d+)*\.\w+$", path.name) for path in folder.glob("*"))
    return max((int(number[1]) + 1 for number in numbers if number), default=0)


def open_chat(run: Run, config: GenerationConfig, flags: Any, folder: Path) -> Chat:
    """The chat that a command's flags ask for. Raises ChameleonError for settings that the model cannot serve."""
    record = {"workdir": str(flags.workdir), "step": run.step}
    return Chat(run, config_with(config, run.bundle, flags), flags.format or run.format, folder, record)


def talk(chat: Chat, ask: Callable[[str], str] = input, write: Callable[[str], Any] | None = None) -> None:
    """Read lines and answer them until the end of the input, /quit or Ctrl-C."""

    def tell(text: str, end: str = "\n") -> None:
        (write or sys.stdout.write)(text + end)
        sys.stdout.flush()

    each = "each line is continued by itself" if chat.format == "completion" else "it remembers what was said"
    tell(f"Write a message; {each}. /help lists commands.")
    try:
        while True:
            try:
                line = ask("> ").strip()
            except EOFError:
                break
            if line.startswith("/"):
                told = chat.command(line)
                if told is None:
                    return
                tell(told)
            elif line:
                _answer(chat, line, tell)
    except KeyboardInterrupt:
        pass
    finally:
        chat.close()
    tell("")


def _answer(chat: Chat, line: str, tell: Callable[..., None]) -> None:
    answer = chat.say(line)
    try:
        for piece in answer:
            tell("\n".join(map(printable, piece.split("\n"))), end="")
        tell("")
    except KeyboardInterrupt:
        tell("\n[stopped; this turn is not kept]")
    except ChameleonError as error:
        tell(f"error: {printable(str(error))}")
    finally:
        answer.close()
