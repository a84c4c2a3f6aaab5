"""An opened checkpoint to a folder of any layout, whole or not at all, with an account of what was done.

Everything is written into a folder of another name beside the target, which is renamed when the last byte is on disk.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from chameleon_jax.convert import hf, hf_files, meta, native, source
from chameleon_jax.convert import vqgan as codec_names
from chameleon_jax.convert.opening import OpenedRelease
from chameleon_jax.errors import ConvertError
from chameleon_jax.files import new_folder
from chameleon_jax.models import params, transformer
from chameleon_jax.progress import progress
from chameleon_jax.tokenizers import vqgan
from chameleon_jax.tokenizers.vqgan import Codec
from chameleon_jax.workdir import TOKENIZER

Layout = Literal["jax", "hf", "meta"]
REPORT = "convert.json"
_HEADROOM = 64 << 20  # bytes of disk for the small files


@dataclasses.dataclass(frozen=True)
class Written:
    """What a conversion did; the same stands in convert.json of the new folder."""

    flavour: str
    parameters: int
    dtype: str
    bytes: int
    seconds: float
    tensors: int
    dropped: list[dict[str, str]]
    notes: list[str]


def write(
    opened: OpenedRelease, output: Path, layout: Layout, *, shards: int | None = None, shard_bytes: int = 2 << 30
) -> Written:
    """Write a checkpoint as a workdir of ours ("jax"), Hugging Face's folder or Meta's tree.

    `shards` is Meta's number of ranks (as many as QK-norm has groups by default), `shard_bytes` the size of a safetensors file.
    Raises ConvertError, and leaves nothing at `output`, if the place is taken, the disk too small, or the model does not fit
    the layout.
    """
    started, config = time.monotonic(), opened.weights.config
    shards = meta.default_shards(config) if shards is None else shards
    if layout == "meta":
        meta.check_shards(config, shards)
    if layout == "hf" and not config.qk_norm:
        raise ConvertError("Transformers' Chameleon always has QK-norms, this model has none: write it as jax or meta")
    if layout != "jax" and opened.codec is not None:
        codec_names.check_foreign(opened.codec.config)
    size = source.nbytes(config)
    _check_room(output, size + (size // shards if layout == "meta" else 0), opened.codec)
    try:
        with new_folder(output) as folder, progress("Converting", total=max(1, size >> 20), unit="MB") as bar:
            counted = _Megabytes(bar.advance)
            if layout != "jax":
                _note_added(opened)
            if layout == "jax":
                _write_run(opened, folder, counted)
            elif layout == "hf":
                _write_hf(opened, folder, shard_bytes, counted)
            else:
                _write_meta(opened, folder, shards, counted)
            report = opened.weights.report
            written = Written(
                flavour=opened.weights.flavour,
                parameters=params.count(transformer.param_specs(config)),
                dtype=config.param_dtype,
                bytes=size,
                seconds=round(time.monotonic() - started, 1),
                tensors=sum(len(keys) for keys in report.used.values()),
                dropped=report.dropped,
                notes=report.notes,
            )
            account = dataclasses.asdict(written) | {"used": {file: list(keys) for file, keys in report.used.items()}}
            (folder / REPORT).write_text(json.dumps(account, indent=1) + "\n", encoding="utf-8")
    except FileExistsError as error:
        raise ConvertError(f"{error}: give another --output or remove it") from error
    except OSError as error:
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
        raise ConvertError(f"{output} could not be written ({reason}); nothing was left of it") from error
    return written


class _Megabytes:
    """Adds up bytes and hands whole megabytes on."""

    def __init__(self, advance: Callable[[int], None]):
        self._advance, self._bytes = advance, 0

    def __call__(self, count: int) -> None:
        self._bytes += count
        self._advance(self._bytes >> 20)
        self._bytes &= (1 << 20) - 1


def _check_room(output: Path, size: int, codec: Codec | None) -> None:
    place = next(parent for parent in (output.absolute().parent, *output.absolute().parents) if parent.exists())
    needed = size + _HEADROOM + (sum(leaf.nbytes for leaf in jax.tree.leaves(codec.params)) if codec else 0)
    free = shutil.disk_usage(place).free
    if needed > free:
        raise ConvertError(
            f"{output} needs {needed / 1e9:.1f} GB, the disk at {place} has {free / 1e9:.1f} GB left: nothing was written"
        )


def _write_run(opened: OpenedRelease, folder: Path, on_bytes: Callable[[int], None]) -> None:
    native.write_weights(opened.weights, folder, {"converted_from": opened.weights.flavour}, on_bytes)
    if opened.bundle is not None:
        opened.bundle.save(folder / TOKENIZER)
    elif opened.codec is not None:  # a later --tokenizer completes the bundle
        vqgan.save(folder / TOKENIZER, opened.codec.params, opened.codec.config)


def _note_added(opened: OpenedRelease) -> None:
    if opened.bundle is not None and (added := opened.bundle.vocab_config.added):
        opened.weights.report.note(
            f"other layouts have no names for the {len(added)} added ids: their rows are written, no names"
        )


def _write_hf(opened: OpenedRelease, folder: Path, shard_bytes: int, on_bytes: Callable[[int], None]) -> None:
    config, bundle, codec = opened.weights.config, opened.bundle, opened.codec
    values: dict[str, Any] = hf.config_values(config)
    extra: dict[str, np.ndarray] = {}
    if codec is not None:
        values["vq_config"] = codec_names.config_to_hf(codec.config)
        extra = {
            hf.CODEC_PREFIX + name: tensor for name, tensor in codec_names.to_torch(codec.params, codec.config).items()
        }
    values |= {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    if opened.weights.flavour == "lumina" or (bundle is not None and bundle.pictures.is_grid):
        values["mask_image_logits"] = False  # what Lumina-mGPT's config has and Chameleon's has not
    if bundle is not None:
        values["vocabulary_map"] = hf_files.vocabulary_map(bundle.text)
        hf_files.write(folder, bundle, config)
    else:
        values["vocabulary_map"] = hf_files.default_vocabulary_map(config.vocab_size)
        opened.weights.report.note("without a text tokenizer config.json has the names of the released ids only")
    (folder / hf.CONFIG).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    hf.write_weights(opened.weights, folder, extra, shard_bytes, on_bytes)


def _write_meta(opened: OpenedRelease, folder: Path, shards: int, on_bytes: Callable[[int], None]) -> None:
    model = folder / "models" / "model"
    model.mkdir(parents=True)
    meta.write_weights(opened.weights, model, shards, on_bytes)
    tokenizer, names = folder / "tokenizer", []
    tokenizer.mkdir()
    if opened.bundle is not None:
        (tokenizer / "text_tokenizer.json").write_text(hf_files.tokenizer_json(opened.bundle.text), encoding="utf-8")
        names.append("text_tokenizer.json")
    if opened.codec is not None:
        meta.write_codec(opened.codec, tokenizer)
        names += ["vqgan.ckpt", "vqgan.yaml"]
    meta.write_checklist(tokenizer, names)
