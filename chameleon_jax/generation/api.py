"""A loaded model that takes words and pictures and gives words and pictures: the engine for Python programs and notebooks.

The one idea: a prompt and an answer are ordered lists of strings and PIL pictures; ids stay inside. A stream gives text as its
characters become whole and pictures as their codes come.
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
from chameleon_jax.generation.prompt import PLACEHOLDER, ImageOutput, build_request, read_output
from chameleon_jax.generation.reader import ImagePiece, OutputReader, Pieces, padded_codes
from chameleon_jax.generation.requests import QueueFull, Request
from chameleon_jax.tokenizers.images import flatten, prepare, to_image

Segment = str | Image.Image
_PLAIN, _ENGINE = GenerationConfig(), EngineConfig()
PARTIAL_EVERY = 128  # codes between two looks at a picture under way


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture of a stream. While it is under way `codes` of `of` have come, and the first stands in place of the others."""

    image: Image.Image
    codes: int
    of: int

    @property
    def partial(self) -> bool:
        return self.codes < self.of


class Generator:
    """A run (`generation.loading.load_run`) behind an engine. A context manager; `close` frees the engine's thread.

    The run's weights are copied; `donate` them if the run is not used elsewhere.

    `format` and `image_size` of its methods are those of `prompt.build_request`. Methods may be called from several threads.
    """

    def __init__(self, run: Run, config: EngineConfig = _ENGINE, *, mesh: Mesh | None = None, donate: bool = False):
        self.bundle = run.bundle
        self.engine = Engine(run.params, run.model, run.bundle.vocab, config, mesh=mesh, donate=donate)
        self._pieces = Pieces(run.bundle)

    def generate(
        self,
        prompt: Sequence[Segment],
        config: GenerationConfig = _PLAIN,
        **form: object,
    ) -> list[Segment]:
        """The answer to one prompt, in order. Raises GenerationError for a prompt that cannot be served."""
        return self.generate_batch([prompt], config, **form)[0]

    def generate_batch(
        self,
        prompts: Sequence[Sequence[Segment]],
        config: GenerationConfig = _PLAIN,
        **form: object,
    ) -> list[list[Segment]]:
        """The answers to several prompts, which run together, as many as the engine takes; equal prompts draw apart."""
        asked = [self._request(prompt, config, form) for prompt in prompts]
        streams: list[EngineStream] = []
        try:
            for i, (ids, wanted) in enumerate(asked):
                streams.append(self._submit(Request(prompt=ids, config=wanted, row_id=i), streams))
            return [self._segments(stream.result().ids) for stream in streams]
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
        prompt: Sequence[Segment],
        config: GenerationConfig = _PLAIN,
        *,
        partial_every: int = PARTIAL_EVERY,
        **form: object,
    ) -> Iterator[str | Picture]:
        """The answer as it comes. Leaving the iteration cancels the request. `partial_every` 0 gives whole pictures only."""
        ids, wanted = self._request(prompt, config, form)
        stream = self.engine.stream(Request(prompt=ids, config=wanted))
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

    def _request(
        self, prompt: Sequence[Segment], config: GenerationConfig, form: dict[str, object]
    ) -> tuple[np.ndarray, GenerationConfig]:
        if isinstance(prompt, str):
            raise GenerationError("a prompt is a list of strings and pictures: write [text]")
        pictures = [
            prepare(flatten(segment, self.bundle.image_config), self.bundle.image_config)
            for segment in prompt
            if not isinstance(segment, str)
        ]
        if pictures and any(PLACEHOLDER in segment for segment in prompt if isinstance(segment, str)):
            raise GenerationError(f"a text holds {PLACEHOLDER}: put the picture itself into the list")
        text = "".join(segment if isinstance(segment, str) else PLACEHOLDER for segment in prompt)
        return build_request(text, pictures, self.bundle, config, **form)

    def _segments(self, ids: np.ndarray) -> list[Segment]:
        parts = read_output(ids, self.bundle)
        return [
            to_image(part.pixels) if isinstance(part, ImageOutput) else part.text
            for part in parts
            if not (isinstance(part, ImageOutput) and part.pixels is None)  # the length ended it: no picture
        ]

    def _shown(self, piece: object) -> str | Picture:
        if not isinstance(piece, ImagePiece):
            return piece.text
        [pixels] = self.bundle.decode_images(padded_codes(piece)[None], grid=piece.grid)
        return Picture(image=to_image(pixels), codes=len(piece.codes), of=piece.of)
