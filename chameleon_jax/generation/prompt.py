"""From words and pictures to a prompt, and from generated ids back to words and pictures.

The one idea: markers are ours. Text is encoded piece by piece and gives text ids only, so nothing that a user types can open an
image, end a turn or end the sequence.

The prompts of the releases are two forms of one stream. A completion is `[bos]` and what is to be continued. A chat is `[bos]` and
turns that each end in `[eot]`, the last one too, so that the model speaks next (facebookresearch/chameleon, its viewer;
GAIR-NLP/anole, `text2image.py`; Alpha-VLLM/Lumina-mGPT, `data/item_processor.py`). In mode `image` the engine writes the
begin-of-image marker behind either: Anole's `[bos] text [eot] [boi]` is a chat of one turn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from chameleon_jax.configs import GenerationConfig
from chameleon_jax.errors import GenerationError
from chameleon_jax.generation.grammar import TokenSpan, split_spans
from chameleon_jax.tokenizers.bundle import TokenizerBundle
from chameleon_jax.tokenizers.code_queue import CodeQueue
from chameleon_jax.vocab import GridSpan, ModalityId

PLACEHOLDER = "<image>"

Pixels = Float[np.ndarray, "H W 3"]  # in [-1, 1], as `tokenizers.images.load_pixels` gives them


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn:
    """What one side says: words as they are, each `<image>` in them one of its pictures; without one the pictures come first."""

    role: Literal["user", "assistant"]
    text: str
    images: Sequence[Pixels] = ()


def build_prompt(text: str, images: Sequence[Pixels], bundle: TokenizerBundle) -> Int[np.ndarray, "n"]:
    """A completion: `[bos]`, then text ids and whole image spans, each `<image>` of the text one of the pictures, in order.

    Without a placeholder the pictures come before the text; without pictures the placeholder is a word like any other.

    Raises GenerationError when there are placeholders, but not as many as pictures.
    """
    return _stream([("the prompt", text, images)], [], bundle)


def build_chat(turns: Sequence[Turn], bundle: TokenizerBundle) -> Int[np.ndarray, "n"]:
    """A chat: `[bos] user [eot] assistant [eot] ... user [eot]`. The answer ends with `GenerationConfig.stop_at_turn_end`.

    Raises GenerationError for turns that do not alternate from user to user, and as `build_prompt` does.
    """
    roles = [turn.role for turn in turns]
    if roles != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
        raise GenerationError(f"a chat goes user, assistant, ..., user; the turns are {', '.join(roles) or 'none'}")
    parts = [(f"turn {i + 1}", turn.text, turn.images) for i, turn in enumerate(turns)]
    return _stream(parts, [bundle.vocab.end_of_turn], bundle)


def build_request(
    text: str,
    images: Sequence[Pixels],
    bundle: TokenizerBundle,
    config: GenerationConfig,
    *,
    format: Literal["completion", "chat", "lumina"] = "completion",
    image_size: tuple[int, int] | None = None,
) -> tuple[Int[np.ndarray, "n"], GenerationConfig]:
    """One user's words and pictures in the format of a release, and the config to continue them with.

    `completion`: `build_prompt`. `chat`: a turn of `build_chat`, answered until the model ends its own. `lumina`: such a chat,
    where with `image_size` (width, height in pixels) the words describe the picture to draw. `image_size` is that of every picture
    that comes out, in all formats.

    Raises GenerationError as `build_prompt` and `image_grid` do, and when the mode asks for pictures that nothing can decode.
    """
    if config.mode != "text" and not (bundle.codec and bundle.codec.has_decoder):
        raise GenerationError(
            f"mode '{config.mode}' may draw pictures, but this tokenizer has no decoder for them: use mode 'text', or add one with"
            "  python -m experiments.convert ... --vqgan FILE"
        )
    if image_size:
        config = dataclasses.replace(config, image_grid=image_grid(image_size, bundle))
    if format == "completion":
        return build_prompt(text, images, bundle), config
    if format == "lumina" and image_size:
        text = image_request(text, image_size)
    prompt = build_chat([Turn(role="user", text=text, images=images)], bundle)
    return prompt, dataclasses.replace(config, stop_at_turn_end=True)


def image_request(prompt: str, size: tuple[int, int]) -> str:
    """The words by which Lumina-mGPT is asked, in a chat, for a picture of `size` (width, height) pixels."""
    return f"Generate an image of {size[0]}x{size[1]} according to the following prompt:\n{prompt}"


def image_grid(size: tuple[int, int], bundle: TokenizerBundle) -> tuple[int, int]:
    """`GenerationConfig.image_grid` of pictures of `size` (width, height) pixels.

    Raises GenerationError when the vocabulary has pictures of one size only, or none of this size.
    """
    grammar, pixels = bundle.vocab.image.grammar, bundle.image_config.grid_pixels
    asked = f"pictures of {size[0]}x{size[1]} pixels"
    if not isinstance(grammar, GridSpan):
        side = bundle.image_config.resolution
        raise GenerationError(f"{asked} are asked for, but this tokenizer has no size but {side}x{side}")
    if size[0] % pixels or size[1] % pixels:
        raise GenerationError(f"{asked} are asked for, but sides are multiples of {pixels}")
    width, height = (side // pixels * grammar.unit for side in size)
    if problem := grammar.problem(height, width):
        raise GenerationError(f"{asked} are {problem}")
    return height, width


def _stream(
    parts: Sequence[tuple[str, str, Sequence[Pixels]]], closing: list[int], bundle: TokenizerBundle
) -> Int[np.ndarray, "n"]:
    """`[bos]`, then each part (its name in errors, words, pictures) and the ids that close it."""
    vocab = bundle.vocab
    texts = [_between_pictures(*part) for part in parts]
    queue = CodeQueue(bundle, batch=1)  # few pictures of perhaps many sizes
    for _, _, images in parts:
        queue.add(images)
    codes = iter(queue.finish())
    ids = [[vocab.bos]]
    for first, *others in texts:
        ids.append(bundle.text.encode(first))
        for text in others:
            ids += [vocab.image_span(next(codes)), bundle.text.encode(text)]
        ids.append(closing)
    return np.concatenate(ids).astype(np.int32)


def _between_pictures(name: str, text: str, images: Sequence[Pixels]) -> list[str]:
    """The text before, between and after the pictures."""
    pieces = text.split(PLACEHOLDER) if len(images) else [text]
    if len(pieces) == 1:
        pieces = [""] * len(images) + pieces
    if len(pieces) != len(images) + 1:
        raise GenerationError(
            f"{name} has {len(pieces) - 1} {PLACEHOLDER} placeholders and {len(images)} pictures; give one for each"
        )
    return pieces


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextOutput:
    """A run of generated text."""

    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageOutput:
    """A generated picture in [-1, 1] (`tokenizers.images.to_image` makes a file of it), or None if its span is not whole."""

    pixels: Pixels | None


def read_output(ids: Int[np.ndarray, "n"], bundle: TokenizerBundle) -> list[TextOutput | ImageOutput]:
    """Words and pictures of generated ids, in order; special ids say nothing, and text of special ids alone is left out.

    Raises TokenizerError when there are pictures and the bundle's codec has no decoder.
    """
    spans = split_spans(ids, bundle.vocab)
    pictures = _decode([span for span in spans if span.modality == ModalityId.IMAGE and span.complete], bundle)
    outputs: list[TextOutput | ImageOutput] = []
    for span in spans:
        if span.modality == ModalityId.IMAGE:
            outputs.append(ImageOutput(pixels=pictures.get(id(span))))
        elif text := bundle.text.decode(span.content):
            outputs.append(TextOutput(text=text))
    return outputs


def _decode(spans: list[TokenSpan], bundle: TokenizerBundle) -> dict[int, Pixels]:
    """The picture of each whole span, by the span's identity; those of one size are decoded together."""
    is_grid = isinstance(bundle.vocab.image.grammar, GridSpan)
    pictures = {}
    for grid in dict.fromkeys(span.grid for span in spans):
        mine = [span for span in spans if span.grid == grid]
        codes = np.stack([bundle.vocab.ids_to_codes(span.content) for span in mine])
        pixels = bundle.decode_images(codes, grid=grid) if is_grid else bundle.decode_images(codes)
        pictures.update((id(span), picture) for span, picture in zip(mine, pixels, strict=True))
    return pictures
