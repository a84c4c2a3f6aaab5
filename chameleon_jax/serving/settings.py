"""From a request's settings to the engine's: what the client asks for, the server's defaults, and the limits between them."""

from __future__ import annotations

import dataclasses
import secrets
from typing import Literal

from chameleon_jax.configs import GenerationConfig, GuidanceConfig, SamplingConfig, ServeConfig
from chameleon_jax.errors import ChameleonError
from chameleon_jax.generation.prompt import image_grid
from chameleon_jax.serving.errors import bad_request
from chameleon_jax.serving.schema import ChatRequest, CompletionRequest, ImagesRequest, RequestFields
from chameleon_jax.tokenizers.bundle import TokenizerBundle

Mode = Literal["text", "image", "interleaved", "unrestricted"]

_SEEDS = 2**31  # an engine takes seeds below it


def choose_mode(request: RequestFields) -> Mode:
    """`mode`, or what `modalities` ask for; text where neither does, as clients of text models expect."""
    if isinstance(request, ImagesRequest):
        return "image"
    if request.mode:
        return request.mode
    asked = set(request.modalities or ["text"]) if isinstance(request, ChatRequest) else {"text"}
    return "interleaved" if len(asked) == 2 else asked.pop()


def choose_format(request: RequestFields, serve: ServeConfig) -> str:
    """How words become a prompt: as asked, else as the server does, but raw for continuations."""
    return request.format or ("completion" if isinstance(request, CompletionRequest) else serve.format)


def can_draw(bundle: TokenizerBundle) -> bool:
    return bundle.codec is not None and bundle.codec.has_decoder


def parse_size(text: str) -> tuple[int, int]:
    """(width, height) of "WxH", which the schema has checked."""
    width, _, height = text.partition("x")
    return int(width), int(height)


def token_limit(serve: ServeConfig, context: int) -> int:
    """Most ids that a client may ask for."""
    return min(serve.max_tokens or context, context)


def generation_config(
    request: RequestFields, serve: ServeConfig, context: int, bundle: TokenizerBundle, size: tuple[int, int] | None
) -> GenerationConfig:
    """How an engine with slots of `context` ids continues this request. `size` is (width, height) in pixels of all pictures.

    Raises ApiError for what the server or the model does not have.
    """
    mode, format = choose_mode(request), choose_format(request, serve)
    if mode != "text" and not can_draw(bundle):
        raise bad_request(
            f"mode '{mode}' may draw pictures, but this model has no decoder for them: use mode 'text'", "mode"
        )
    most = token_limit(serve, context)
    if request.max_tokens is not None and request.max_tokens > most:
        raise bad_request(f"max_tokens: {request.max_tokens} is more than {most}, the most", "max_tokens")
    if (request.n or 1) > serve.max_choices:
        raise bad_request(f"n: {request.n} is more than the {serve.max_choices} that this server gives", "n")
    if len(request.stop or []) > serve.max_stop:
        raise bad_request(f"stop: {len(request.stop)} strings, {serve.max_stop} are the most", "stop")
    base = serve.generation
    changes = {
        "mode": mode,
        "max_tokens": request.max_tokens or min(base.max_tokens, most),
        "max_images": 1 if isinstance(request, ImagesRequest) else request.max_images or base.max_images,
        "stop_at_turn_end": format != "completion" or base.stop_at_turn_end,
        "seed": secrets.randbelow(_SEEDS) if request.seed is None else request.seed % _SEEDS,
        "text": _sampling(base.text, request.temperature, request.top_p, request.top_k, request.repetition_penalty),
        "image": _sampling(
            base.image,
            _first(request.image_temperature, request.temperature),
            _first(request.image_top_p, request.top_p),
            _first(request.image_top_k, request.top_k),
            None,
        ),
        "guidance": None if mode == "text" else _guidance(base.guidance, request, format),
    }
    try:
        if size is not None and not _is_the_only_size(size, bundle):
            changes["image_grid"] = image_grid(size, bundle)
        return dataclasses.replace(base, **changes)
    except ChameleonError as error:
        raise bad_request(str(error)) from None


def _is_the_only_size(size: tuple[int, int], bundle: TokenizerBundle) -> bool:
    side = bundle.image_config.resolution
    return bundle.vocab_config.image_span == "fixed" and size == (side, side)


def _first(*values):
    return next((value for value in values if value is not None), None)


def _sampling(
    base: SamplingConfig, temperature: float | None, top_p: float | None, top_k: int | None, penalty: float | None
) -> SamplingConfig:
    given = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "repetition_penalty": penalty}
    return dataclasses.replace(base, **{name: value for name, value in given.items() if value is not None})


def _guidance(base: GuidanceConfig | None, request: RequestFields, format: str) -> GuidanceConfig | None:
    given = {"text": request.guidance_text, "image": request.guidance_image}
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        return base
    guidance = dataclasses.replace(base or GuidanceConfig(scheme="lumina" if format == "lumina" else "meta"), **given)
    return None if guidance.text == guidance.image == 1 else guidance
