"""From turns of words and other data to a prompt, and from generated ids back to words and data.

Markers are ours. Text is encoded piece by piece and gives text ids only, so nothing that a user types can open a span, end a
turn or end the sequence.

The prompts of the releases are two forms of one stream. A completion is `[bos]` and what is to be continued. A chat is `[bos]`
and turns that each end in `[eot]`, the last one too, so that the model speaks next (facebookresearch/chameleon, its viewer;
GAIR-NLP/anole, `text2image.py`; Alpha-VLLM/Lumina-mGPT, `data/item_processor.py`). Where a mode writes spans alone the engine
begins the first behind either: Anole's `[bos] text [eot] [boi]` is a chat of one turn.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from chameleon_jax.configs import GenerationConfig
from chameleon_jax.errors import GenerationError
from chameleon_jax.generation.grammar import TokenSpan, split_spans, written_rows
from chameleon_jax.generation.keep import Keep
from chameleon_jax.generation.requests import Request
from chameleon_jax.tokenizers.bundle import TokenizerBundle
from chameleon_jax.tokenizers.code_queue import CodeQueue
from chameleon_jax.tokenizers.documents import Segment
from chameleon_jax.vocab import TEXT, GridSpan

Format = Literal["completion", "chat", "lumina"]
Part = str | Segment  # words as they are, or data of a modality


def encode_turns(
    turns: Sequence[Sequence[Part]],
    bundle: TokenizerBundle,
    *,
    format: Format = "completion",
    image_size: tuple[int, int] | None = None,
    queue: CodeQueue | None = None,
) -> Int[np.ndarray, "n"]:
    """The prompt of these turns, each a list of words and data in order: the one builder of prompts.

    `completion` is one turn to continue: `[bos] turn`. `chat` goes from user to user: `[bos] user [eot] assistant [eot] ...
    user [eot]`; the answer ends with `GenerationConfig.stop_at_turn_end`. `lumina` is a chat, where with `image_size` (width,
    height in pixels) the words of the last turn describe the picture to draw.
    A `queue` that several calls share encodes data that come again once.

    Raises GenerationError for another number of turns and for parts of another type, and as `CodeQueue.prepare` does.
    """
    if format == "completion" and len(turns) != 1:
        raise GenerationError(f"a completion continues one turn, not {len(turns)}")
    if len(turns) % 2 == 0:
        raise GenerationError(f"a chat goes user, assistant, ..., user; there are {len(turns)} turns")
    turns = [_joined(parts) for parts in turns]
    for part in itertools.chain.from_iterable(turns):
        if not isinstance(part, str | Segment):
            raise GenerationError(f"a turn is a list of strings and Segments; {type(part).__name__} is none of them")
    if format == "lumina" and image_size:
        turns[-1] = _asking_for_size(turns[-1], image_size)
    vocab, queue = bundle.vocab, queue or CodeQueue(bundle, batch=1)  # few items of perhaps many shapes
    segments = [Segment(vocab.text.name, p) if isinstance(p, str) else p for parts in turns for p in parts]
    for segment in segments:
        vocab.row(segment.modality, GenerationError)
        queue.add(segment.modality, [queue.prepare(segment.modality, segment.data)])
    codes = queue.finish()  # those of earlier calls first
    own = zip(segments, codes[len(codes) - len(segments) :], strict=True)
    spans = (vocab.modalities[vocab.row(s.modality)].span(c) for s, c in own)
    closing = [] if format == "completion" else [vocab.end_of_turn]
    ids = [[vocab.bos]]
    for parts in turns:
        ids += [*itertools.islice(spans, len(parts)), closing]
    return np.concatenate(ids).astype(np.int32)


def place(text: str, media: Sequence[Segment]) -> list[Part]:
    """Words with data in their places: each `<NAME>` of a modality that is given stands for its next piece of data.

    Without places the data come first; without data a `<NAME>` is a word like any other. Raises GenerationError where there are
    places, but not as many as pieces of data of that modality.
    """
    given = {segment.modality: [s for s in media if s.modality == segment.modality] for segment in media}
    words, *rest = re.split(f"<({'|'.join(given)})>", text) if given else [text]
    places, between = rest[::2], rest[1::2]
    if not places:
        return [*media, text] if text else list(media)
    for name, own in given.items():
        if places.count(name) != len(own):
            raise GenerationError(
                f"the prompt has {places.count(name)} <{name}> placeholders and {len(own)} of '{name}'; give one for each"
            )
    queues = {name: iter(own) for name, own in given.items()}
    parts: list[Part] = [words]
    for name, words in zip(places, between, strict=True):
        parts += [next(queues[name]), words]
    return [part for part in parts if part != ""]


def build_request(
    parts: Sequence[Part],
    bundle: TokenizerBundle,
    config: GenerationConfig,
    *,
    format: Format = "completion",
    image_size: tuple[int, int] | None = None,
    logprobs: int | None = None,
    keep: Keep | None = None,
) -> Request:
    """The prompt of one user's turn, what it shows, and the config to continue it with.

    A `chat` is answered until the model ends its turn. `image_size` is that of every picture that comes out, in all formats;
    `logprobs` and `keep` are as in `Request`.

    Raises GenerationError as `encode_turns` and `image_grid` do, and when the mode may write what no codec can decode.
    """
    check_decoders(bundle, config.mode)
    if image_size:
        name, grid = image_grid(image_size, bundle)
        config = dataclasses.replace(config, grids=config.grids | {name: grid})
    if format != "completion":
        config = dataclasses.replace(config, stop_at_turn_end=True)
    parts = [_prepared(part, bundle) for part in parts]
    prompt = encode_turns([parts], bundle, format=format, image_size=image_size)
    seen = perceived_pictures([parts], bundle)
    return Request(prompt=prompt, config=config, pictures=seen, logprobs=logprobs, keep=keep)


def perceived_pictures(turns: Sequence[Sequence[Part]], bundle: TokenizerBundle) -> tuple[np.ndarray, ...]:
    """The pixels of the pictures in patches, in order: `Request.pictures` of the prompt that `encode_turns` makes of the turns.

    Raises DataError for a picture that cannot be used.
    """
    row = bundle.vocab.perceived
    segments = [part for parts in turns for part in parts if isinstance(part, Segment)]
    return tuple(_prepared(segment, bundle).data for segment in segments if row and segment.modality == row.name)


def _prepared(part: Part, bundle: TokenizerBundle) -> Part:
    """Data with a codec as its item, once for all that read it."""
    if isinstance(part, str) or isinstance(part.data, np.ndarray) or part.modality not in bundle.codecs:
        return part
    return dataclasses.replace(part, data=bundle.codecs[part.modality].prepare(part.data))


def check_decoders(bundle: TokenizerBundle, mode: str) -> None:
    """Raise GenerationError where a mode may write spans whose codec cannot decode them, or names no modality."""
    vocab = bundle.vocab
    for name in (vocab.names[row] for row in written_rows(vocab, mode)):
        if name in bundle.codecs and not bundle.codecs[name].can_decode:
            raise GenerationError(
                f"mode '{mode}' may write '{name}', but this tokenizer has no decoder for it: use mode '{vocab.text.name}', or add "
                "one with  python -m experiments.convert ... --vqgan FILE"
            )


def image_request(prompt: str, size: tuple[int, int]) -> str:
    """The words by which Lumina-mGPT is asked, in a chat, for a picture of `size` (width, height) pixels."""
    return f"Generate an image of {size[0]}x{size[1]} according to the following prompt:\n{prompt}"


def image_grid(size: tuple[int, int], bundle: TokenizerBundle) -> tuple[str, tuple[int, int]]:
    """Modality and grid (`GenerationConfig.grids`) of pictures of `size` (width, height) pixels.

    Raises GenerationError when the vocabulary has no pictures, pictures of one size only, or none of this size.
    """
    name, codec = bundle.image_output
    asked = f"pictures of {size[0]}x{size[1]} pixels"
    if codec is None:
        raise GenerationError(f"{asked} are asked for, but this tokenizer has no pictures")
    grammar, pixels = bundle.vocab.modalities[bundle.vocab.row(name)].grammar, codec.config.grid_pixels
    if not isinstance(grammar, GridSpan):
        side = codec.config.resolution
        raise GenerationError(f"{asked} are asked for, but this tokenizer has no size but {side}x{side}")
    if size[0] % pixels or size[1] % pixels:
        raise GenerationError(f"{asked} are asked for, but sides are multiples of {pixels}")
    width, height = (side // pixels * grammar.unit for side in size)
    if problem := grammar.problem(height, width):
        raise GenerationError(f"{asked} are {problem}")
    return name, (height, width)


def _joined(parts: Sequence[Part]) -> list[Part]:
    """Neighbouring words as one: where a client cuts them must not change their ids."""
    joined: list[Part] = []
    for is_words, group in itertools.groupby(parts, lambda part: isinstance(part, str)):
        run = list(group)
        joined += ["".join(run)] if is_words else run
    return joined


def _asking_for_size(parts: list[Part], size: tuple[int, int]) -> list[Part]:
    """The first words of the turn become Lumina-mGPT's request."""
    at = next((i for i, part in enumerate(parts) if isinstance(part, str)), len(parts))
    words = parts[at] if at < len(parts) else ""
    return [*parts[:at], image_request(words, size), *parts[at + 1 :]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextOutput:
    """A run of generated text."""

    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanOutput:
    """Generated data of another modality.

    `codes` are as `Codec.encode` gives them, None if the span is not whole; `item` is what the modality's codec makes of them, None
    without one.
    """

    modality: str
    codes: Int[np.ndarray, "..."] | None = None
    item: Any = None


def read_output(ids: Int[np.ndarray, "n"], bundle: TokenizerBundle) -> list[TextOutput | SpanOutput]:
    """Words and data of generated ids, in order; special ids say nothing, and text of special ids alone is left out.

    Raises TokenizerError when there are spans whose codec has no decoder.
    """
    spans = split_spans(ids, bundle.vocab)
    decoded = _decode(spans, bundle)
    outputs: list[TextOutput | SpanOutput] = []
    for span in spans:
        name = bundle.vocab.names[span.modality]
        if span.modality != TEXT:
            codes = span_codes(span, bundle) if span.complete else None
            outputs.append(SpanOutput(modality=name, codes=codes, item=decoded.get(id(span))))
        elif text := bundle.text.decode(span.content):
            outputs.append(TextOutput(text=text))
    return outputs


def span_codes(span: TokenSpan, bundle: TokenizerBundle) -> Int[np.ndarray, "n"] | Int[np.ndarray, "h w"]:
    """Codes of a whole span, in the shape that its codec gave them."""
    modality = bundle.vocab.modalities[span.modality]
    codes = modality.codes(span.content)
    return codes.reshape(span.grid) if isinstance(modality.grammar, GridSpan) else codes


def _decode(spans: list[TokenSpan], bundle: TokenizerBundle) -> dict[int, Any]:
    """The item of each whole span that has a codec, by the span's identity; those of one size are decoded together."""
    vocab, names = bundle.vocab, bundle.vocab.names
    codecs = {
        row: bundle.codecs[n] for row, n in enumerate(names) if n in bundle.codecs and vocab.modalities[row].output
    }
    whole = [span for span in spans if span.complete and span.modality in codecs]
    items = {}
    for kind in dict.fromkeys((span.modality, span.grid) for span in whole):
        mine = [span for span in whole if (span.modality, span.grid) == kind]
        made = codecs[kind[0]].decode(np.stack([span_codes(span, bundle) for span in mine]))
        items.update((id(span), item) for span, item in zip(mine, made, strict=True))
    return items
