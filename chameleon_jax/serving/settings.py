"""From a request's settings to the engine's: what the client asks for, the server's defaults, and the limits between them."""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
from collections.abc import Iterator

from chameleon_jax.configs import GenerationConfig, GuidanceConfig, SamplingConfig, ServeConfig
from chameleon_jax.errors import ChameleonError, GenerationError, did_you_mean
from chameleon_jax.generation.checks import check_names
from chameleon_jax.generation.grammar import written_rows
from chameleon_jax.generation.prompt import check_decoders, image_grid
from chameleon_jax.serving.errors import bad_request
from chameleon_jax.serving.schema import ChatRequest, CompletionRequest, ImagesRequest, RequestFields
from chameleon_jax.serving.tolerance import at_most
from chameleon_jax.tokenizers.bundle import TokenizerBundle
from chameleon_jax.tokenizers.images import grid_sizes

_SEEDS = 2**31  # an engine takes seeds below it


def choose_mode(request: RequestFields, bundle: TokenizerBundle, default: str = "") -> str:
    """`mode`, or what `modalities` ask for by name or kind; else the default, or text, as clients of text models expect.

    Raises ApiError for a name that is neither a modality of the model nor a kind of data that it has.
    """
    vocab = bundle.vocab
    pictures, _ = bundle.image_output
    if isinstance(request, ImagesRequest):
        if not pictures:
            raise bad_request("this model has no pictures")
        return pictures
    if request.mode:
        return request.mode
    asked = request.modalities if isinstance(request, ChatRequest) else None
    if not asked and default:
        return default
    asked = asked or [vocab.text.name]
    outputs = [modality.name for modality in vocab.modalities if modality.output]
    kinds = {codec.media: name for name, codec in reversed(bundle.codecs.items()) if name in outputs}
    known = {"text": vocab.text.name} | kinds | {name: name for name in outputs}
    if unknown := next((name for name in asked if name not in known), None):
        hint = did_you_mean(unknown, list(known))
        raise bad_request(f"modalities: this model has no '{unknown}'{hint}; it has {', '.join(outputs)}", "modalities")
    names = {known[name] for name in asked}
    return "interleaved" if names == set(outputs) else "+".join(name for name in outputs if name in names)


def choose_format(request: RequestFields, serve: ServeConfig) -> str:
    """How words become a prompt: as asked, else as the server does, but raw for continuations."""
    return request.format or ("completion" if isinstance(request, CompletionRequest) else serve.format)


def can_write(bundle: TokenizerBundle, name: str) -> bool:
    """Whether what a modality writes can be handed out."""
    return name not in bundle.codecs or bundle.codecs[name].can_decode


def parse_size(text: str) -> tuple[int, int]:
    """(width, height) of "WxH", which the schema has checked."""
    width, _, height = text.partition("x")
    return int(width), int(height)


def image_sizes(bundle: TokenizerBundle) -> list[tuple[int, int]]:
    """(width, height) that a picture may be asked for; of a grid those in which pictures go in, which are not all."""
    name, codec = bundle.image_output
    if codec is None:
        return []
    grammar, images = bundle.vocab.modalities[bundle.vocab.row(name)].grammar, codec.config
    if not codec.is_grid:
        return [(images.resolution, images.resolution)]
    sizes, pixels = grid_sizes(images.resolution // images.grid_pixels, images.grid_pixels), images.grid_pixels
    return [
        (width, height)
        for width, height in sizes
        if not grammar.problem(height // pixels * grammar.unit, width // pixels * grammar.unit)
    ]


def token_limit(serve: ServeConfig, context: int) -> int:
    """Most ids that a client may ask for."""
    return min(serve.max_tokens or context, context)


def generation_config(
    request: RequestFields, serve: ServeConfig, context: int, bundle: TokenizerBundle, size: tuple[int, int] | None
) -> GenerationConfig:
    """How an engine with slots of `context` ids continues this request. `size` is (width, height) in pixels of all pictures.

    Raises ApiError for what the server or the model does not have.
    """
    mode, format = choose_mode(request, bundle, serve.mode), choose_format(request, serve)
    most = token_limit(serve, context)
    max_tokens = at_most(request.max_tokens, most, "max_tokens", request.notes)
    if (request.n or 1) > serve.max_choices:
        raise bad_request(f"n: {request.n} is more than the {serve.max_choices} that this server gives", "n")
    if len(request.stop or []) > serve.max_stop:
        raise bad_request(f"stop: {len(request.stop)} strings, {serve.max_stop} are the most", "stop")
    base, vocab = serve.generation, bundle.vocab
    pictures, _ = bundle.image_output
    if not pictures:
        _refuse_settings_of_pictures(request)
    max_spans = base.max_spans | (request.max_spans or {})
    if isinstance(request, ImagesRequest) or request.max_images:
        max_spans |= {pictures: request.max_images or 1}
    with _blaming("mode"):
        check_decoders(bundle, mode)
        written = written_rows(vocab, mode)
    with _blaming("sampling"):
        sampling = _sampling(request, base, bundle)
    with _blaming("max_spans"):
        check_names(vocab, GenerationConfig(mode=mode, max_spans=max_spans))
    try:
        changes = {
            "mode": mode,
            "max_tokens": max_tokens or min(base.max_tokens, most),
            "max_spans": max_spans,
            "stop_at_turn_end": format != "completion" or base.stop_at_turn_end,
            "seed": secrets.randbelow(_SEEDS) if request.seed is None else request.seed % _SEEDS,
            "sampling": sampling,
            "guidance": _guidance(base.guidance, request, format) if any(r in vocab.marked for r in written) else None,
        }
        if size is not None and not _is_the_only_size(size, bundle):
            name, grid = image_grid(size, bundle)
            changes["grids"] = {**base.grids, name: grid}
        made = dataclasses.replace(base, **changes)
        check_names(vocab, made)
        return made
    except ChameleonError as error:
        raise bad_request(str(error)) from None


@contextlib.contextmanager
def _blaming(field: str) -> Iterator[None]:
    """Turns errors into refusals that name a field of the request."""
    try:
        yield
    except ChameleonError as error:
        raise bad_request(f"{field}: {error}", field) from None


def _refuse_settings_of_pictures(request: RequestFields) -> None:
    names = ("max_images", "image_size", "image_temperature", "image_top_p", "image_top_k")
    if given := next((name for name in names if getattr(request, name) is not None), None):
        raise bad_request(f"{given}: this model has no pictures", given)


def _is_the_only_size(size: tuple[int, int], bundle: TokenizerBundle) -> bool:
    pictures = bundle.pictures
    return pictures is not None and not pictures.is_grid and size == (pictures.config.resolution,) * 2


def default_sampling(base: GenerationConfig, bundle: TokenizerBundle) -> dict[str, SamplingConfig]:
    """How each modality is sampled where a request does not say: as the server does, else as the model's table."""
    return {row.name: base.sampling.get(row.name, row.sampling) for row in bundle.vocab_config.modalities}


def _sampling(request: RequestFields, base: GenerationConfig, bundle: TokenizerBundle) -> dict[str, SamplingConfig]:
    """The plain fields are for all modalities, but the penalty for text alone; those of pictures and `sampling` go before them."""
    for name in request.sampling or {}:
        bundle.vocab.row(name, GenerationError)
    pictures, _ = bundle.image_output
    made = {}
    for name, settings in default_sampling(base, bundle).items():
        given = {field: getattr(request, field) for field in ("temperature", "top_p", "top_k")}
        if name == bundle.vocab.text.name:
            given["repetition_penalty"] = request.repetition_penalty
        of_pictures = {field: getattr(request, f"image_{field}") for field in ("temperature", "top_p", "top_k")}
        for more in (of_pictures if name == pictures else {}, dict((request.sampling or {}).get(name, ()))):
            given |= {field: value for field, value in more.items() if value is not None}
        made[name] = dataclasses.replace(settings, **{field: v for field, v in given.items() if v is not None})
    return made


def _guidance(base: GuidanceConfig | None, request: RequestFields, format: str) -> GuidanceConfig | None:
    given = {"text": request.guidance_text, "image": request.guidance_image}
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        return base
    guidance = dataclasses.replace(base or GuidanceConfig(scheme="lumina" if format == "lumina" else "meta"), **given)
    return None if guidance.text == guidance.image == 1 else guidance
