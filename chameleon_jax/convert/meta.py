"""Meta's layout, in and out: params.json and consolidated*.pth, cut over any number of model-parallel ranks.

A rank's file is a slice of each torch tensor along one axis of the table in `layout`, with rotary rows
interleaved and its own QK-norms; reading joins, writing cuts. Names and cuts: facebookresearch/chameleon
`inference/{loader,transformer}.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from chameleon_jax.configs import TransformerConfig
from chameleon_jax.convert import layout, source
from chameleon_jax.convert import vqgan as codec_names
from chameleon_jax.convert.layout import Parameter
from chameleon_jax.convert.releases import release
from chameleon_jax.convert.source import Report, WeightSource
from chameleon_jax.convert.tensor_files import TensorFile, open_tensors, require_torch
from chameleon_jax.errors import ConfigError, ConvertError
from chameleon_jax.tokenizers.vqgan import Codec

PARAMS, CONSOLIDATED_PARAMS, CHECKLIST = "params.json", "consolidate_params.json", "checklist.chk"
_SHARD = re.compile(r"consolidated(?:\.(\d\d))?\.pth")
_ROPE = "rope.freqs"
_CONTEXT = 4096  # no file says it

# Meta's runtime joins these when it loads; a state that was saved from it has the joined names, rows in this order.
_FUSED = {
    "attention.wqkv": ("attention.wq", "attention.wk", "attention.wv"),
    "feed_forward.w13": ("feed_forward.w1", "feed_forward.w3"),
}


class MetaWeights:
    """A folder of Meta's layout as a `WeightSource`.

    Raises ConvertError, naming file, key, expected and found, for a tensor that is missing or of another shape, for a missing
    shard and for shards of different models.
    """

    flavour = "meta"

    def __init__(self, folder: Path, norm_order: str | None = None):
        self.report = Report()
        self._where = folder / PARAMS
        self._shards = [open_tensors(path) for path in shard_files(folder)]
        values = _read_params(folder)
        if (folder / CHECKLIST).is_file():
            self.report.note(
                f"{CHECKLIST} was not looked at: check the files with  cd {folder} && md5sum -c {CHECKLIST}"
            )
        said = source.norm_order(values, self._where, norm_order)
        self.config = self._config(values, said or "pre")
        if said is None:
            self.config = dataclasses.replace(self.config, norm_order=self._norm_order_of_release())
        self._check()
        # The cheapest sign of shards of two models, before gigabytes are written.
        self.read(next(p for p in layout.parameters(self.config) if p.path == "norm"), None)
        if self.config.qk_norm:
            self.config = dataclasses.replace(self.config, qk_norm_groups=self._distinct_groups())

    def read(self, parameter: Parameter, layer: int | None) -> np.ndarray:
        parts = [self._part(shard, parameter, layer) for shard in self._shards]
        if parameter.shard_axis is None:
            for rank, part in enumerate(parts):
                if not np.array_equal(part.view(np.uint8), parts[0].view(np.uint8)):
                    raise self._mixed(parameter.meta.format(layer), rank)
            tensor = parts[0]
        elif parameter.qk_norm:
            tensor = np.stack(parts)[:: len(parts) // _groups(parameter, self.config)]
        else:
            tensor = np.concatenate(parts, parameter.shard_axis) if len(parts) > 1 else parts[0]
        tensor = layout.rotary_rows(parameter, tensor, self.config.head_dim, layout.half_split)
        return source.cast(layout.to_ours(parameter, tensor, self.config), self.config.param_dtype)

    def _config(self, values: dict[str, Any], norm_order: str) -> TransformerConfig:
        file, ranks = self._shards[0], len(self._shards)
        embed = file.tensors.get("tok_embeddings.weight")
        if embed is None or len(embed.shape) != 2:
            raise ConvertError(f"{file.path} has no matrix tok_embeddings.weight: it is not of Meta's layout")
        try:
            dim, heads = int(values["dim"]), int(values["n_heads"])
            if embed.shape[1] * ranks != dim:
                missing = "" if embed.shape[1] * ranks > dim else f"consolidated.{ranks:02}.pth is missing, or "
                raise ConvertError(
                    f"{file.path.parent}: tok_embeddings.weight is {embed} in each of {ranks} shards, {PARAMS} says dim {dim}: "
                    f"{missing}the weights are of a model of another size"
                )
            kv_heads = values.get("n_kv_heads")
            multiplier = values.get("ffn_dim_multiplier")
            vocabulary = int(values.get("vocab_size") or -1)
            dtype = source.exact_dtype(
                info.dtype for shard in self._shards for key, info in shard.tensors.items() if key != _ROPE
            )
            return TransformerConfig(
                vocab_size=embed.shape[0] if vocabulary < 1 else vocabulary,
                d_model=dim,
                n_layers=int(values["n_layers"]),
                n_heads=heads,
                n_kv_heads=heads if kv_heads is None else int(kv_heads),
                head_dim=dim // heads,
                d_ff=layout.ffn_width(dim, int(values.get("multiple_of") or 256), multiplier and float(multiplier)),
                max_seq_len=int(values.get("max_seq_len") or _CONTEXT),
                rope_theta=float(values.get("rope_theta") or 10000.0),
                norm_eps=float(values.get("norm_eps", 1e-5)),
                qk_norm=bool(values.get("qk_normalization", True)),
                qk_norm_groups=ranks,
                norm_order=norm_order,
                param_dtype=dtype,
                compute_dtype=dtype,
            )
        except KeyError as error:
            raise ConvertError(f"{self._where} has no {error}") from error
        except (TypeError, ValueError, ArithmeticError, ConfigError) as error:
            raise ConvertError(f"{self._where} with {ranks} shards is no model: {error}") from error

    def _norm_order_of_release(self) -> str:
        """Neither names nor shapes show it, and the wrong one gives a model that loads and says nonsense: no default then."""
        name = source.release_of_size(self.config)
        if name is None:
            raise ConvertError(
                f"{self._where} has no swin_norm, and its size is of no release that would tell: say --norm_order=pre (as the 7B) "
                "or --norm_order=swin (as the 34B)"
            )
        order = release(name).model.norm_order
        self.report.note(f"{PARAMS} has no swin_norm: took norm order '{order}' of {name}, which has the same size")
        return order

    def _check(self) -> None:
        """Every tensor that will be read has its shape; every other one is known."""
        ranks = len(self._shards)
        wanted = set()
        for parameter in layout.parameters(self.config):
            shape = list(layout.torch_shape(parameter, self.config))
            if parameter.qk_norm:
                shape = [self.config.head_dim]
            elif parameter.shard_axis is not None:
                if shape[parameter.shard_axis] % ranks:
                    raise ConvertError(
                        f"{parameter.meta} of {shape} cannot be cut into {ranks} shards: shards are missing"
                    )
                shape[parameter.shard_axis] //= ranks
            for layer in layout.layers(parameter, self.config):
                key = parameter.meta.format(layer)
                wanted.add(key)
                for shard in self._shards:
                    fused = self._fused(shard, key)
                    if fused is None:
                        source.expect(shard, key, tuple(shape), PARAMS)
                        self.report.use(shard, key)
                        continue
                    whole, siblings = fused
                    wanted.add(whole)
                    rows = sum(self._rows(sibling) for sibling in siblings)
                    source.expect(shard, whole, (rows, shape[1]), PARAMS)
                    self.report.use(shard, whole)
        unknown = []
        for shard in self._shards:
            for key in shard.tensors.keys() - wanted:
                if key == _ROPE:
                    self.report.drop(shard, key, "rotary frequencies are computed from rope_theta")
                else:
                    unknown.append((shard, key))
            for key in shard.empty:
                self.report.drop(shard, key, "it has no tensor")
        source.refuse_unknown(sorted(unknown, key=lambda found: found[1]))

    def _distinct_groups(self) -> int:
        rows = {}
        for name in "qk":
            both = [p for p in layout.parameters(self.config) if f"/{name}_norm/" in p.path]
            stacked = [
                np.stack([np.stack([self._part(shard, p, layer) for p in both]) for shard in self._shards])
                for layer in range(self.config.n_layers)
            ]
            rows[name] = np.stack(stacked)
        return source.equal_groups(rows, self.config)

    def _part(self, shard: TensorFile, parameter: Parameter, layer: int | None) -> np.ndarray:
        key = parameter.meta.format(layer)
        fused = self._fused(shard, key)
        if fused is None:
            return shard.read(key)
        whole, siblings = fused
        start = sum(self._rows(sibling) for sibling in siblings[: siblings.index(key)])
        return shard.read(whole)[start : start + self._rows(key)]

    def _fused(self, shard: TensorFile, key: str) -> tuple[str, list[str]] | None:
        """The joined tensor that holds `key`, and the keys that it holds in order; None where `key` is a tensor of its own."""
        if key in shard.tensors:
            return None
        for whole, parts in _FUSED.items():
            for part in parts:
                if f".{part}." in key:
                    joined = key.replace(part, whole)
                    return (joined, [key.replace(part, p) for p in parts]) if joined in shard.tensors else None
        return None

    def _rows(self, key: str) -> int:
        """Rows of a matrix in one shard."""
        name = re.sub(r"layers\.\d+\.", "layers.{}.", key)
        parameter = next(p for p in layout.parameters(self.config) if p.meta == name)
        return layout.torch_shape(parameter, self.config)[0] // len(self._shards)

    def _mixed(self, key: str, rank: int) -> ConvertError:
        names = " and ".join(shard.path.name for shard in (self._shards[0], self._shards[rank]))
        return ConvertError(
            f"{self._shards[0].path.parent}: {names} hold different {key}: they are not shards of one model"
        )


def shard_files(folder: Path) -> list[Path]:
    """The weight files of a folder in order of rank. Raises ConvertError for none, a missing one, or two kinds."""
    found = {match[1]: path for path in folder.iterdir() if (match := _SHARD.fullmatch(path.name))}
    if not found:
        raise ConvertError(f"{folder} has {PARAMS} but no consolidated*.pth")
    if None in found and len(found) > 1:
        raise ConvertError(
            f"{folder} has consolidated.pth and consolidated.NN.pth: remove what does not belong to the model"
        )
    if None in found:
        return [found[None]]
    ranks = [f"{rank:02}" for rank in range(1 + max(map(int, found)))]
    if missing := [rank for rank in ranks if rank not in found]:
        raise ConvertError(f"{folder} lacks consolidated.{missing[0]}.pth, one of {len(ranks)} shards")
    return [found[rank] for rank in ranks]


def _read_params(folder: Path) -> dict[str, Any]:
    """Precedence as in Meta's loader: consolidate_params.json over `model` of params.json over params.json itself."""
    levels = []
    for name in (PARAMS, CONSOLIDATED_PARAMS):
        path = folder / name
        if name == CONSOLIDATED_PARAMS and not path.is_file():
            continue
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConvertError(f"{path} cannot be read: {error}") from error
        if not isinstance(values, dict):
            raise ConvertError(f"{path} is not a JSON object")
        inner = values.get("model")
        levels += [values, inner if isinstance(inner, dict) else {}]
    said = {str(level["swin_norm"]) for level in levels if level.get("swin_norm") is not None}
    if len(said) > 1:
        raise ConvertError(
            f"{folder}: swin_norm is both true and false in {PARAMS} (and {CONSOLIDATED_PARAMS}, if there)"
        )
    return functools.reduce(lambda a, b: a | {k: v for k, v in b.items() if v is not None}, levels, {})


def _groups(parameter: Parameter, config: TransformerConfig) -> int:
    return layout.our_shape(parameter, config)[0]


# --- out -------------------------------------------------------------------------------------------------------------


def default_shards(config: TransformerConfig) -> int:
    """As many ranks as QK-norm has groups, which is what the releases have."""
    return config.qk_norm_groups if config.qk_norm else 1


def check_shards(config: TransformerConfig, shards: int) -> None:
    """Raise ConvertError where a model cannot be cut into so many ranks, or not be written in this layout at all."""
    require_torch("writing .pth files")
    if config.n_heads * config.head_dim != config.d_model:
        raise ConvertError(
            f"{config.n_heads} heads of {config.head_dim} are not d_model {config.d_model}, which Meta's layout takes for granted"
        )
    for name in ("n_kv_heads", "d_ff", "vocab_size", "d_model"):
        if getattr(config, name) % shards:
            raise ConvertError(f"{name} {getattr(config, name)} cannot be cut into {shards} shards")
    if config.qk_norm and shards % config.qk_norm_groups:
        raise ConvertError(
            f"QK-norm has {config.qk_norm_groups} groups of heads and Meta's layout one a shard: {shards} shards cannot hold them, "
            f"export with --shards {config.qk_norm_groups} or to Hugging Face's layout"
        )


def write_weights(
    weights: WeightSource, folder: Path, shards: int, on_bytes: Callable[[int], None] = lambda count: None
) -> None:
    """Write params.json, consolidate_params.json, consolidated*.pth and checklist.chk.

    Every parameter is read once, and its parts go to a scratch file a rank, from which torch writes the shards one after the other:
    memory stays small, and since each scratch file is deleted when its shard is there, the disk needs room for one more shard.
    """
    config = weights.config
    check_shards(config, shards)
    multiple_of, multiplier = layout.ffn_rule(config.d_model, config.d_ff)
    model = {
        "dim": config.d_model,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "n_kv_heads": config.n_kv_heads,
        "vocab_size": config.vocab_size,
        "multiple_of": multiple_of,
        "ffn_dim_multiplier": multiplier,
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "qk_normalization": config.qk_norm,
        "swin_norm": config.norm_order == "swin",
    }
    text = json.dumps({"model": model, "model_parallel_size": shards}, indent=2) + "\n"
    (folder / PARAMS).write_text(text, encoding="utf-8")
    (folder / CONSOLIDATED_PARAMS).write_text(json.dumps(model, indent=2) + "\n", encoding="utf-8")
    names = ["consolidated.pth"] if shards == 1 else [f"consolidated.{rank:02}.pth" for rank in range(shards)]
    with contextlib.ExitStack() as stack:
        scratch = [
            stack.enter_context(tempfile.NamedTemporaryFile(dir=folder, prefix=".scratch-")) for _ in range(shards)
        ]
        for parameter, layer, size in source.pieces(config):
            for part, file in zip(
                _cut(parameter, weights.read(parameter, layer), config, shards), scratch, strict=True
            ):
                np.ascontiguousarray(part).tofile(file)
            on_bytes(size)
        for name, file in zip(names, scratch, strict=True):
            file.flush()
            _write_shard(folder / name, Path(file.name), config, shards)
            file.close()
    write_checklist(folder, [PARAMS, CONSOLIDATED_PARAMS, *names])


def _write_shard(path: Path, scratch: Path, config: TransformerConfig, shards: int) -> None:
    """One rank's .pth, of the parts that lie in its scratch file in the order of `source.pieces`."""
    import torch

    dtype = getattr(torch, config.param_dtype)
    memory = torch.from_file(str(scratch), shared=False, size=scratch.stat().st_size // dtype.itemsize, dtype=dtype)
    state, at = {}, 0
    for parameter, layer, _ in source.pieces(config):
        shape = _shape_in_shard(parameter, config, shards)
        state[parameter.meta.format(layer)] = memory[at : at + math.prod(shape)].view(shape)
        at += math.prod(shape)
    # Meta's loader wants this key to be there, and does not read it.
    steps = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    state[_ROPE] = config.rope_theta**-steps
    torch.save(state, path)  # all are views of one storage, which is written once


def _shape_in_shard(parameter: Parameter, config: TransformerConfig, shards: int) -> tuple[int, ...]:
    if parameter.qk_norm:
        return (config.head_dim,)
    shape = list(layout.torch_shape(parameter, config))
    if parameter.shard_axis is not None:
        shape[parameter.shard_axis] //= shards
    return tuple(shape)


def _cut(parameter: Parameter, array: np.ndarray, config: TransformerConfig, shards: int) -> list[np.ndarray]:
    """The part of each rank."""
    tensor = layout.rotary_rows(
        parameter, layout.to_torch(parameter, array, config), config.head_dim, layout.interleaved
    )
    if parameter.qk_norm:
        return [tensor[rank * len(tensor) // shards] for rank in range(shards)]
    if parameter.shard_axis is None:
        return [tensor] * shards
    return np.split(tensor, shards, parameter.shard_axis)


def write_checklist(folder: Path, names: list[str]) -> None:
    """Meta's checklist.chk: a line `md5  name` for each file."""
    lines = []
    for name in names:
        with open(folder / name, "rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'md5').hexdigest()}  {name}\n")
    (folder / CHECKLIST).write_text("".join(lines), encoding="utf-8")


def write_codec(codec: Codec, folder: Path) -> None:
    """Write vqgan.ckpt, a torch file with `state_dict`, and vqgan.yaml."""
    import torch
    import yaml

    tensors = codec_names.to_torch(codec.params, codec.config)
    state = {name: torch.from_numpy(np.ascontiguousarray(tensor)) for name, tensor in tensors.items()}
    torch.save({"state_dict": state}, folder / "vqgan.ckpt")
    text = yaml.safe_dump(codec_names.config_to_yaml(codec.config), sort_keys=False)
    (folder / "vqgan.yaml").write_text(text, encoding="utf-8")
