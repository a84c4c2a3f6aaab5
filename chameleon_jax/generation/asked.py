"""What a command line, or a line of a file of requests, asks for: settings over those of a config, and a prompt with files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Protocol, get_args

from chameleon_jax.configs import SAMPLING_PRESETS, GenerationConfig, GuidanceConfig
from chameleon_jax.configs.generation import parse_size
from chameleon_jax.errors import DataError, GenerationError, did_you_mean
from chameleon_jax.generation.output_files import read_file
from chameleon_jax.generation.prompt import Format, Part, place
from chameleon_jax.tokenizers.bundle import TokenizerBundle
from chameleon_jax.tokenizers.documents import Segment

_WORDS, _NUMBER, _LIST = (str,), (int, float), (list, str)
LINE_FIELDS: dict[str, tuple[type, ...]] = {
    "prompt": _WORDS,
    "image": _LIST,
    "media": _LIST,
    "format": _WORDS,
    "image_size": _WORDS,
    "count": (int,),
    "mode": _WORDS,
    "max_images": (int,),
    "max_tokens": (int,),
    "seed": (int,),
    "sampling": _WORDS,
    "guidance": _WORDS,
    "temperature": _NUMBER,
    "top_p": _NUMBER,
    "top_k": (int,),
}
_CHOICES = {"format": get_args(Format), "sampling": tuple(SAMPLING_PRESETS), "guidance": ("meta", "lumina")}


class Flags(Protocol):
    """Settings of a command line; None where one is not given. `sampling` and `guidance` name a release."""

    mode: str | None
    max_tokens: int | None
    seed: int | None
    max_images: int | None
    sampling: str | None
    guidance: str | None
    temperature: float | None
    top_p: float | None
    top_k: int | None


def config_with(config: GenerationConfig, bundle: TokenizerBundle, flags: Flags) -> GenerationConfig:
    """The config with what the flags say. Temperature and cuts are those of every modality.

    Raises GenerationError for pictures asked of a model that has none, ConfigError for values that cannot be.
    """

    def given(*names: str) -> dict[str, object]:
        return {name: getattr(flags, name) for name in names if getattr(flags, name) is not None}

    sampling = {}
    for row in bundle.vocab_config.modalities:
        settings = config.sampling.get(row.name, row.sampling)
        if flags.sampling:
            text, others = SAMPLING_PRESETS[flags.sampling]
            settings = text if row.codec == "bpe" else others
        sampling[row.name] = dataclasses.replace(settings, **given("temperature", "top_p", "top_k"))
    changes = given("mode", "max_tokens", "seed") | {"sampling": {**config.sampling, **sampling}}
    if flags.max_images is not None:
        changes["max_spans"] = {**config.max_spans, _pictures(bundle): flags.max_images}
    if flags.guidance:
        changes["guidance"] = dataclasses.replace(config.guidance or GuidanceConfig(), scheme=flags.guidance)
    return dataclasses.replace(config, **changes)


def parts_of(
    prompt: str,
    images: Sequence[str],
    media: Sequence[str],
    bundle: TokenizerBundle,
    read: Callable[[str], bytes] = read_file,
) -> list[Part]:
    """The prompt's words, with picture files and data given as `NAME=FILE`, or as `NAME=0,1,1` without a codec, in their places.

    `read` gives the bytes of a file. Raises GenerationError for files that cannot be read, and for names, numbers and places that
    do not fit.
    """
    segments = [_item(_pictures(bundle, taken_in=True), name, bundle, read) for name in images]
    if images and not any(given.startswith("image=") for given in media):
        # What people write for a picture, whatever the row is called that takes it in.
        prompt = prompt.replace("<image>", f"<{segments[0].modality}>")
    for given in media:
        name, equals, value = given.partition("=")
        if not equals:
            raise GenerationError(f"--media={given}: write --media=NAME=FILE")
        row = bundle.vocab_config.modalities[bundle.vocab.row(name, GenerationError)]
        if row.codec:
            segments.append(_item(name, value, bundle, read))
            continue
        try:
            segments.append(Segment(name, tuple(int(number) for number in value.split(","))))
        except ValueError:
            raise GenerationError(f"--media={given}: '{name}' is numbers like 0,1,1") from None
    _require_given(prompt, {segment.modality for segment in segments}, bundle)
    return place(prompt, segments)


def _require_given(prompt: str, given: set[str], bundle: TokenizerBundle) -> None:
    """Raise GenerationError where the prompt has a place for data of a modality, and none of it is given."""
    pictures, _ = bundle.image_input
    for name in {*bundle.vocab.names[1:], *(["image"] if pictures else [])}:
        if f"<{name}>" in prompt and not given & {name, pictures if name == "image" else name}:
            flag = "--image=FILE" if name in ("image", pictures) else f"--media={name}=FILE"
            raise GenerationError(f"the prompt has a <{name}>, but none is given: add {flag} for each, or leave it out")


def _item(modality: str, name: str, bundle: TokenizerBundle, read: Callable[[str], bytes]) -> Segment:
    """The item of a file, whose name is in the error where the codec cannot take it."""
    try:
        return Segment(modality, bundle.codecs[modality].prepare(read(name)))
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def _pictures(bundle: TokenizerBundle, *, taken_in: bool = False) -> str:
    """The modality of pictures that are drawn, or of those in a prompt."""
    name, _ = bundle.image_input if taken_in else bundle.image_output
    if not name:
        raise GenerationError(f"this model has no pictures; it has {', '.join(bundle.vocab.names)}")
    return name


def lines_of(file: str, flags: SimpleNamespace) -> list[tuple[int, str, SimpleNamespace]]:
    """Number (from 0), place in words and flags of every line: those of the command, with the line's fields in their place.

    Raises GenerationError, with file and line, for one that is no JSON object of `LINE_FIELDS`; blank lines are none.
    """
    lines = read_file(file).decode("utf-8-sig", "replace").splitlines()
    found = []
    for number, line in ((n, line) for n, line in enumerate(lines) if line.strip()):
        where = f"{file} line {number + 1}"
        try:
            fields = json.loads(line)
        except ValueError as error:
            raise GenerationError(f"{where} is not JSON: {error}") from None
        if not isinstance(fields, dict):
            raise GenerationError(f'{where} is no object like {{"prompt": "a red heart"}}')
        for name, value in fields.items():
            if name not in LINE_FIELDS:
                raise GenerationError(f"{where}: unknown field '{name}'{did_you_mean(name, LINE_FIELDS)}")
            wanted = LINE_FIELDS[name]
            if not isinstance(value, wanted) or isinstance(value, bool):
                kinds = " or a ".join(
                    {str: "text", int: "whole number", float: "number", list: "list"}[k] for k in wanted
                )
                raise GenerationError(f"{where}: '{name}' must be a {kinds}, got {value!r}")
        fields |= {name: [fields[name]] for name in ("image", "media") if isinstance(fields.get(name), str)}
        for name, known in _CHOICES.items():
            if name in fields and fields[name] not in known:
                near = did_you_mean(fields[name], known)
                raise GenerationError(f"{where}: {name} '{fields[name]}' is none of {', '.join(known)}{near}")
        if "image_size" in fields:
            try:
                fields["image_size"] = parse_size(fields["image_size"])
            except ValueError as error:
                raise GenerationError(f"{where}: image_size '{fields['image_size']}': {error}") from None
        found.append((number, where, SimpleNamespace(**(vars(flags) | fields))))
    if not found:
        raise GenerationError(f"{file} has no lines: write one request a line, as " + '{"prompt": "a red heart"}')
    return found
