"""The image codec between our tree and the released files: names, axes and config, of Meta's layout and of Hugging Face's.

Our paths are the released names with the dots of list indices turned to underscores, so the shapes of our own tree
are the whole table; one function renames, one transposes, and what a file has beyond that is either known baggage or a mistake.
Names: facebookresearch/chameleon `inference/vqgan.py`; Hugging Face keeps them below `model.vqmodel.` and drops the decoder.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from typing import Any, TypeVar

import ml_dtypes
import numpy as np
from flax import traverse_util
from jaxtyping import Shaped

from chameleon_jax.configs import VQConfig
from chameleon_jax.errors import ConfigError, ConvertError
from chameleon_jax.tokenizers import vqgan
from chameleon_jax.tokenizers.vqgan import Params

PREFIXES = ("model.vqmodel.", "vqmodel.")
NORM_GROUPS = 32  # written into both foreign programs

_Value = TypeVar("_Value")
_PARTS = ("encoder", "decoder", "quant_conv", "post_quant_conv", "quantize")
_FLOATS = tuple(np.dtype(kind) for kind in (np.float32, np.float16, ml_dtypes.bfloat16))
# A name that matches is no part of the codec: the first reason holds.
_BAGGAGE = (
    (r"(^|\.)perceptual|lpips", "network of the perceptual loss, for training only"),
    (r"^loss\.", "loss and discriminator, for training only"),
    (r"(^|[._])ema([._]|$)|^quantize\.(?!embedding\.weight$)", "moving averages of training"),
)
_YAML = {"embed_dim": "embed_dim", "n_embed": "codes"}
_YAML_DDCONFIG = {
    "z_channels": "latent_channels",
    "resolution": "resolution",
    "in_channels": "in_channels",
    "ch": "channels",
    "ch_mult": "channel_multipliers",
    "num_res_blocks": "res_blocks",
    "attn_resolutions": "attention_resolutions",
    "dropout": "dropout",
}
_HF = {
    "embed_dim": "embed_dim",
    "num_embeddings": "codes",
    "latent_channels": "latent_channels",
    "resolution": "resolution",
    "in_channels": "in_channels",
    "base_channels": "channels",
    "channel_multiplier": "channel_multipliers",
    "num_res_blocks": "res_blocks",
    "attn_resolutions": "attention_resolutions",
    "dropout": "dropout",
}


# --- tensors ---------------------------------------------------------------------------------------------------------


def strip_prefix(tensors: Mapping[str, _Value]) -> dict[str, _Value]:
    """The entries of the codec by their bare names; none where the file has no codec.

    Bare are `encoder.conv_in.weight` and so on. A file that names any tensor below `model.vqmodel.` or `vqmodel.` has its codec
    there; otherwise the whole file is taken for one, if it has an encoder.
    """
    for prefix in PREFIXES:
        if found := {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}:
            return found
    return dict(tensors) if any(name.startswith("encoder.") for name in tensors) else {}


def ignored(names: Iterable[str]) -> dict[str, str]:
    """The bare names that `from_torch` leaves out, each with the reason. All others are used, or are an error there."""
    found = {}
    for name in names:
        reason = next((reason for pattern, reason in _BAGGAGE if re.search(pattern, name)), None)
        if reason is None and name.split(".")[0] not in _PARTS:
            reason = "not a part of the codec"
        if reason is not None:
            found[name] = reason
    return found


def from_torch(tensors: Mapping[str, Shaped[np.ndarray, "..."]], config: VQConfig, where: str) -> Params:
    """Our tree, float32, of tensors under Meta's bare names (see `strip_prefix`), with the decoder if they have one.

    `where` names the source in errors. Narrower floats are widened, which is exact. Raises ConvertError for a tensor that is
    missing, of another shape, no float of at most 32 bits, or a part of the codec that the config does not ask for.
    """
    table = _table(config, vqgan.lacking(tensors))
    left_out = ignored(tensors)
    known = {name for name, _ in table.values()}
    if extra := next((name for name in tensors if name not in known and name not in left_out), None):
        raise ConvertError(
            f"{where} has {extra} {list(np.shape(tensors[extra]))}, but its config does not ask for it: "
            "tensors and config do not belong together"
        )
    made = {}
    for path, (name, shape) in table.items():
        if name not in tensors:
            raise ConvertError(f"{where} lacks {name}, expected {list(shape)}, found nothing")
        tensor = tensors[name]
        if tensor.shape != shape:
            raise ConvertError(f"{where}: {name} is {list(tensor.shape)}, expected {list(shape)}")
        if tensor.dtype not in _FLOATS:
            raise ConvertError(f"{where}: {name} is {tensor.dtype}, expected {', '.join(map(str, _FLOATS))}")
        turned = tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor
        made[path] = np.array(turned, np.float32, order="C")
    return traverse_util.unflatten_dict(made)


def to_torch(params: Params, config: VQConfig) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Inverse of `from_torch`: float32 tensors under Meta's bare names. Raises ConvertError for a codec that only we can run."""
    check_foreign(config)
    flat = traverse_util.flatten_dict(params)
    made = {}
    for path, (name, _) in _table(config, vqgan.lacking(params)).items():
        array = np.asarray(flat[path], np.float32)
        made[name] = np.array(array.transpose(3, 2, 0, 1) if array.ndim == 4 else array, order="C")
    return made


def _table(config: VQConfig, without: Container[str] = ()) -> dict[tuple[str, ...], tuple[str, tuple[int, ...]]]:
    """Path in our tree -> bare name and torch shape."""
    flat = traverse_util.flatten_dict(vqgan.shapes(config, without=without))
    return {path: (_torch_name(path), _torch_shape(leaf.shape)) for path, leaf in flat.items()}


def _torch_name(path: tuple[str, ...]) -> str:
    name = re.sub(r"\b(down|up)_(\d+)_(block|attn)_(\d+)\b", r"\1.\2.\3.\4", ".".join(path))
    name = re.sub(r"\b(down|up)_(\d+)_(downsample|upsample)\b", r"\1.\2.\3", name)
    name = re.sub(r"\bmid_(block|attn)_", r"mid.\1_", name)
    return re.sub(r"\.(kernel|scale)$", ".weight", re.sub(r"\.embedding$", ".embedding.weight", name))


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape


# --- configs ---------------------------------------------------------------------------------------------------------


def config_from_yaml(values: Mapping[str, Any], where: str) -> VQConfig:
    """The config in Meta's vqgan.yaml, below `model.params`; missing fields have the released values.

    Raises ConvertError for a field of another type, and for variants that are not built: twice the latents (`double_z`), other
    attention than full, resampling without a convolution.
    """
    params = _section(_section(values, "model", where), "params", where)
    ddconfig = _section(params, "ddconfig", where)
    _only(ddconfig, "double_z", (False,), where)
    _only(ddconfig, "attn_type", ("vanilla",), where)
    _only(ddconfig, "resamp_with_conv", (True,), where)
    config = _config(_renamed(params, _YAML) | _renamed(ddconfig, _YAML_DDCONFIG), where)
    _only(ddconfig, "out_ch", (config.in_channels,), where)
    return config


def config_to_yaml(config: VQConfig) -> dict[str, Any]:
    """Inverse of `config_from_yaml`, with every field."""
    check_foreign(config)
    values = config.to_dict()
    ddconfig = {"double_z": False, "out_ch": config.in_channels} | _named(values, _YAML_DDCONFIG)
    return {"model": {"params": _named(values, _YAML) | {"ddconfig": ddconfig}}}


def config_from_hf(values: Mapping[str, Any], where: str) -> VQConfig:
    """The config in `vq_config` of Hugging Face's config.json (`ChameleonVQVAEConfig`); errors as `config_from_yaml`.

    Forks of Transformers, Anole's among them, say some of it by Meta's names (`z_channels`, `double_z`): these are read too.
    """
    for name in ("double_latent", "double_z"):
        _only(values, name, (False,), where)
    _only(values, "attn_type", ("vanilla",), where)
    _only(values, "resamp_with_conv", (True,), where)
    metas = {ours: theirs for theirs, ours in (_YAML | _YAML_DDCONFIG).items()}
    for name, ours in _HF.items():
        one, other = values.get(name), values.get(metas[ours])
        if one is not None and other is not None and one != other:
            raise ConvertError(f"{where}: {name} is {one!r} but {metas[ours]}, another name for it, is {other!r}")
    return _config(_renamed(values, _YAML | _YAML_DDCONFIG) | _renamed(values, _HF), where)


def config_to_hf(config: VQConfig) -> dict[str, Any]:
    """Inverse of `config_from_hf`, with every field."""
    check_foreign(config)
    fixed = {"model_type": "chameleon_vqgan", "double_latent": False, "attn_type": "vanilla"}
    return fixed | _named(config.to_dict(), _HF)


def _renamed(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Their fields under our names; one that is empty there means our default."""
    return {ours: values[theirs] for theirs, ours in names.items() if values.get(theirs) is not None}


def _named(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {theirs: values[ours] for theirs, ours in names.items()}


def _section(values: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    found = values.get(name) or {}
    if not isinstance(found, Mapping):
        raise ConvertError(f"{where}: {name} is {found!r}, expected a mapping of settings")
    return found


def _only(values: Mapping[str, Any], name: str, supported: tuple[Any, ...], where: str) -> None:
    if values.get(name, supported[0]) not in supported:
        wanted = " or ".join(map(repr, supported))
        raise ConvertError(f"{where}: {name} is {values[name]!r}, and only {wanted} is supported")


def _config(values: dict[str, Any], where: str) -> VQConfig:
    try:
        return VQConfig.from_dict(values | {"norm_groups": NORM_GROUPS})
    except ConfigError as error:
        raise ConvertError(f"{where}: {error}") from error


def check_foreign(config: VQConfig) -> None:
    """Raise ConvertError for a codec that no layout but ours can hold."""
    if config.patch_size > 1:
        raise ConvertError(
            f"a codec with patch_size {config.patch_size} cannot be exported, since other programs fold no pixels: "
            "--without_codec leaves it out"
        )
    if config.norm_groups != NORM_GROUPS:
        raise ConvertError(
            f"a codec with norm_groups {config.norm_groups} cannot be exported: other programs have {NORM_GROUPS}"
        )
