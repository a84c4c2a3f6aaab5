"""A loaded model that takes words and data and gives words and data: the engine for Python programs and notebooks.

A prompt and an answer are ordered lists: strings, PIL pictures, and of any other modality a `Segment` in and a `SpanOutput`
out; ids stay inside. A stream gives text as its characters become whole and spans as their codes come.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jax.sharding import Mesh
from PIL import Image

from chameleon_jax.configs import EngineConfig, GenerationConfig
from chameleon_jax.errors import GenerationError
from chameleon_jax.generation.engine import Engine, EngineStream
from chameleon_jax.generation.loading import Run
from chameleon_jax.generation.prompt import Part, SpanOutput, TextOutput, build_request, read_output
from chameleon_jax.generation.reader import OutputReader, Pieces, SpanPiece
from chameleon_jax.generation.requests import Generated, QueueFull, Request
from chameleon_jax.tokenizers.bundle import TokenizerBundle
from chameleon_jax.tokenizers.documents import Segment
from chameleon_jax.tokenizers.images import to_image

Given = str | Image.Image | Segment
Answer = str | Image.Image | SpanOutput
_PLAIN, _ENGINE = GenerationConfig(), EngineConfig()
PARTIAL_EVERY = 128  # codes between two looks at a span under way


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamedSpan:
    """A span of a stream. While it is under way `done` of `of` codes have come, and the first stands in place of the others.

    A run of a modality without markers comes in pieces, each with the codes since the last.
    """

    data: Image.Image | SpanOutput
    done: int
    of: int

    @property
    def partial(self) -> bool:
        return self.done < self.of


class Answers(list[Answer]):
    """An answer in order, and what else is known of it: its ids, why it ended, and log-probabilities if asked for."""

    def __init__(self, parts: Sequence[Answer], output: Generated):
        super().__init__(parts)
        self.ids, self.finish_reason, self.logprobs = output.ids, output.finish_reason, output.logprobs


class Generator:
    """A run (`generation.loading.load_run`) behind an engine. A context manager; `close` frees the engine's thread.

    The run's weights are copied; `donate` them if the run is not used elsewhere.

    `format` (by default what the run was trained on), `image_size`, `logprobs` and `keep` of its methods are those of
    `prompt.build_request`. Methods may be called from several threads.
    """

    def __init__(self, run: Run, config: EngineConfig = _ENGINE, *, mesh: Mesh | None = None, donate: bool = False):
        self.bundle, self._format = run.bundle, run.format
        self.engine = Engine(run.params, run.model, run.bundle.vocab, config, mesh=mesh, donate=donate)
        self._pieces = Pieces(run.bundle)

    def generate(
        self,
        prompt: Sequence[Given],
        config: GenerationConfig = _PLAIN,
        **form: object,
    ) -> Answers:
        """The answer to one prompt, in order. Raises GenerationError for a prompt that cannot be served."""
        return self.generate_batch([prompt], config, **form)[0]

    def generate_batch(
        self,
        prompts: Sequence[Sequence[Given]],
        config: GenerationConfig = _PLAIN,
        **form: object,
    ) -> list[Answers]:
        """The answers to several prompts, which run together, as many as the engine takes; equal prompts draw apart."""
        asked = [self._request(prompt, config, form) for prompt in prompts]
        streams: list[EngineStream] = []
        try:
            for i, request in enumerate(asked):
                streams.append(self._submit(dataclasses.replace(request, row_id=i), streams))
            return [self._answers(stream.result()) for stream in streams]
        finally:
            for stream in streams:
                stream.cancel()  # nothing if it has ended

    def _submit(self, request: Request, before: list[EngineStream]) -> EngineStream:
        """Submit when there is room: where the queue is full, one of those before has to end first."""
        for stream in before:
            with contextlib.suppress(QueueFull):
                return self.engine.stream(request)
            stream.result()
        return self.engine.stream(request)

    def stream(
        self,
        prompt: Sequence[Given],
        config: GenerationConfig = _PLAIN,
        *,
        partial_every: int = PARTIAL_EVERY,
        **form: object,
    ) -> Iterator[str | StreamedSpan]:
        """The answer as it comes. Leaving the iteration cancels the request. `partial_every` 0 gives whole spans only."""
        stream = self.engine.stream(self._request(prompt, config, form))
        reader = OutputReader(self._pieces, partial_every=partial_every)
        try:
            for new in stream:
                yield from map(self._shown, reader.feed(new))
            yield from map(self._shown, reader.finish())
            stream.result()  # raises what went wrong
        finally:
            stream.cancel()

    def close(self) -> None:
        """Finish what runs, and end."""
        self.engine.close()

    def __enter__(self) -> Generator:
        return self

    def __exit__(self, *exception: object) -> None:
        self.engine.close(drain=exception[0] is None)

    def _request(self, prompt: Sequence[Given], config: GenerationConfig, form: dict[str, object]) -> Request:
        if isinstance(prompt, str):
            raise GenerationError("a prompt is a list of strings and pictures: write [text]")
        if not isinstance(prompt, Sequence):
            raise GenerationError(f"a prompt is a list of strings and pictures, not {type(prompt).__name__}")
        form = {"format": self._format} | form
        return build_request([as_part(given, self.bundle) for given in prompt], self.bundle, config, **form)

    def _answers(self, output: Generated) -> Answers:
        parts = read_output(output.ids, self.bundle)
        shown = [
            part.text if isinstance(part, TextOutput) else _picture(part)
            for part in parts
            if isinstance(part, TextOutput) or part.codes is not None  # else the length ended it
        ]
        return Answers(shown, output)

    def _shown(self, piece: object) -> str | StreamedSpan:
        if not isinstance(piece, SpanPiece):
            return piece.text
        codec = self.bundle.codecs.get(piece.modality)
        codes = piece.codes if codec else piece.codes[: piece.done]  # numbers that stand in for others are none
        item = codec.decode(codes[None])[0] if codec else None
        data = SpanOutput(modality=piece.modality, codes=codes, item=item)
        return StreamedSpan(data=_picture(data), done=piece.done, of=piece.of)


def as_part(given: Given, bundle: TokenizerBundle) -> Part:
    """A part of a prompt as `build_request` takes it. Raises GenerationError for a picture where the model has none, and for
    what is no part.
    """
    if isinstance(given, str | Segment):
        return given
    if not isinstance(given, Image.Image):
        raise GenerationError(
            f"a prompt is a list of strings, PIL pictures and Segments; {type(given).__name__} is none of them"
        )
    name, codec = bundle.image_input
    if codec is None:
        raise GenerationError("this model has no pictures")
    return Segment(name, codec.prepare(given))


def _picture(output: SpanOutput) -> Image.Image | SpanOutput:
    """A picture as PIL has it, any other span as it is."""
    is_picture = isinstance(output.item, np.ndarray) and output.item.ndim == 3 and output.item.shape[-1] == 3
    return to_image(output.item) if is_picture else output
