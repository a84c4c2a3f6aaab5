"""Hugging Face's layout, in and out: config.json and safetensors (or torch .bin) files with an index, of any vintage.

One set of names hides three forms of rotary rows and QK-norms, and the shapes tell them apart. Transformers has
one norm a head, half-split; Lumina-mGPT one a shard of the original, half-split; Anole's fork one for all, with rows left
interleaved. Sources: huggingface/transformers `models/chameleon`, GAIR-NLP/anole and Alpha-VLLM/Lumina-mGPT (their
`modeling_chameleon.py`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from chameleon_jax.configs import TransformerConfig
from chameleon_jax.convert import layout, source
from chameleon_jax.convert.layout import Parameter
from chameleon_jax.convert.source import Report, WeightSource
from chameleon_jax.convert.tensor_files import TensorFile, open_tensors
from chameleon_jax.errors import ConfigError, ConvertError

CONFIG, CODEC_PREFIX = "config.json", "model.vqmodel."
_ROPE = "rotary_emb.inv_freq"
_SINGLE = ("model.safetensors", "pytorch_model.bin")


class HFWeights:
    """A folder of Hugging Face's layout as a `WeightSource`; `codec` are those of its VQ model, if it has one, by bare name
    with file and key.

    Raises ConvertError, naming file, key, expected and found, for tensors that are missing, of another shape or dtype, or of no
    name that the family has.
    """

    def __init__(self, folder: Path, norm_order: str | None = None):
        self.report = Report()
        self._where = folder / CONFIG
        self.values = read_config(folder)
        self._files = _weight_files(folder)
        self.codec = {
            key.removeprefix(CODEC_PREFIX): (file, key)
            for key, file in self._files.items()
            if key.startswith(CODEC_PREFIX)
        }
        self._vectors = False
        self._interleaved = bool(self.values.get("qk_layernorm"))  # of Anole's fork, which leaves rows as they were
        # Transformers takes a config without swin_norm for one of "pre".
        self.config = self._config(source.norm_order(self.values, self._where, norm_order) or "pre")
        self.flavour = self._flavour()
        self._check()
        if self.config.qk_norm:
            self.config = dataclasses.replace(self.config, qk_norm_groups=self._distinct_groups())

    def read(self, parameter: Parameter, layer: int | None) -> np.ndarray:
        key = parameter.hf.format(layer)
        tensor = self._files[key].read(key)
        if parameter.qk_norm:
            tensor = np.atleast_2d(tensor)
            tensor = tensor[:: len(tensor) // layout.our_shape(parameter, self.config)[0]]
        if parameter.path in ("embed", "head"):
            tensor = tensor[: self.config.vocab_size]
        if self._interleaved:
            tensor = layout.rotary_rows(parameter, tensor, self.config.head_dim, layout.half_split)
        return source.cast(layout.to_ours(parameter, tensor, self.config), self.config.param_dtype)

    def _config(self, norm_order: str) -> TransformerConfig:
        v = self.values
        try:
            dim, heads = int(v["hidden_size"]), int(v["num_attention_heads"])
            kv_heads = int(v.get("num_key_value_heads") or heads)
            dtype = source.exact_dtype(
                file.tensors[key].dtype
                for key, file in self._files.items()
                if not key.startswith(CODEC_PREFIX) and not key.endswith(_ROPE)
            )
            return TransformerConfig(
                vocab_size=int(v["vocab_size"]),
                d_model=dim,
                n_layers=int(v["num_hidden_layers"]),
                n_heads=heads,
                n_kv_heads=kv_heads,
                head_dim=int(v.get("head_dim") or dim // heads),
                d_ff=int(v["intermediate_size"]),
                max_seq_len=int(v.get("max_position_embeddings") or 4096),
                rope_theta=_rope_theta(v, self._where),
                norm_eps=float(v.get("rms_norm_eps", 1e-5)),
                qk_norm_groups=self._norm_rows(heads, kv_heads),
                norm_order=norm_order,
                param_dtype=dtype,
                compute_dtype=dtype,
            )
        except KeyError as error:
            raise ConvertError(f"{self._where} has no {error}: it is not of a Chameleon") from error
        except (TypeError, ValueError, ArithmeticError, ConfigError) as error:
            raise ConvertError(f"{self._where} is no model: {error}") from error

    def _norm_rows(self, heads: int, kv_heads: int) -> int:
        """Groups of heads that QK-norms are stored for, by the shapes of those of layer 0."""
        shapes = {}
        for name, count in (("q", heads), ("k", kv_heads)):
            key = f"model.layers.0.self_attn.{name}_norm.weight"
            if key not in self._files:
                raise ConvertError(f"{self._where.parent} lacks {key}, which {CONFIG} asks for with {count} rows")
            shapes[name] = self._files[key].tensors[key].shape
        if {len(shape) for shape in shapes.values()} == {1}:
            self._interleaved = self._vectors = True  # one vector for all heads: no other converter makes that
            return 1
        rows = {name: (shape or (0,))[0] for name, shape in shapes.items()}
        if (
            {len(shape) for shape in shapes.values()} != {2}
            or min(rows.values()) < 1
            or heads % rows["q"]
            or rows["k"] != min(rows["q"], kv_heads)
        ):
            key = "model.layers.0.self_attn.{q,k}_norm.weight"
            raise ConvertError(
                f"{self._where.parent}: {key} are {list(shapes['q'])} and {list(shapes['k'])}; {CONFIG} has {heads} heads and "
                f"{kv_heads} key/value heads: neither one row a head nor one a group"
            )
        return rows["q"]

    def _flavour(self) -> str:
        if self._interleaved:
            return "anole-fork"
        names = str(self.values.get("architectures")).upper()
        a_row_a_shard = self.config.qk_norm_groups < self.config.n_heads
        return "lumina" if "XLLMX" in names or "mask_image_logits" in self.values or a_row_a_shard else "hf"

    def _check(self) -> None:
        wanted = set()
        for parameter in layout.parameters(self.config):
            shape = layout.torch_shape(parameter, self.config)
            if parameter.qk_norm and self._vectors:
                shape = shape[1:]
            for layer in layout.layers(parameter, self.config):
                key = parameter.hf.format(layer)
                wanted.add(key)
                if key not in self._files:
                    raise ConvertError(f"{self._where.parent} lacks {key}, which {CONFIG} asks for as {list(shape)}")
                file = self._files[key]
                rows = file.tensors[key].shape[:1]
                if parameter.path in ("embed", "head") and rows > shape[:1]:
                    source.expect(file, key, (*rows, *shape[1:]), CONFIG)
                    self.report.drop(file, f"{key}[{shape[0]}:{rows[0]}]", f"{CONFIG} has vocab_size {shape[0]}")
                else:
                    source.expect(file, key, shape, CONFIG)
                self.report.use(file, key)
        unknown = []
        for key in sorted(self._files.keys() - wanted):
            if key.endswith(_ROPE):
                self.report.drop(self._files[key], key, "rotary frequencies are computed from rope_theta")
            elif not key.startswith(CODEC_PREFIX):
                unknown.append((self._files[key], key))
        source.refuse_unknown(unknown)
        groups = self.values.get("model_parallel_size")
        rows = self.config.qk_norm_groups
        if isinstance(groups, int) and rows not in (1, groups, self.config.n_heads):
            self.report.note(
                f"QK-norms have {rows} groups, {CONFIG} says model_parallel_size {groups}: took the tensors' word"
            )

    def _distinct_groups(self) -> int:
        rows = {}
        for name in "qk":
            both = [p for p in layout.parameters(self.config) if f"/{name}_norm/" in p.path]
            rows[name] = np.stack(
                [np.stack([self.read(p, i) for p in both], axis=1) for i in range(self.config.n_layers)]
            )
        return source.equal_groups(rows, self.config)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a Chameleon. Raises ConvertError for one that is damaged, of another model, or of a quantised one."""
    path = folder / CONFIG
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConvertError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ConvertError(f"{path} is not a JSON object")
    kind = str(values.get("model_type", "chameleon"))
    if "chameleon" not in kind:
        raise ConvertError(f"{path} is of a model of type '{kind}', not of a Chameleon")
    if values.get("quantization_config"):
        raise ConvertError(f"{path}: the weights are quantised; take the original ones")
    if values.get("hidden_act") not in (None, "silu"):
        raise ConvertError(f"{path}: hidden_act is {values['hidden_act']!r}, the family has 'silu'")
    for name in ("attention_bias", "mlp_bias"):
        if values.get(name):
            raise ConvertError(f"{path} has {name}: the family has no biases")
    return values


def _rope_theta(values: dict[str, Any], where: Path) -> float:
    """Flat in version 4, nested in version 5."""
    scaling = values.get("rope_parameters") or values.get("rope_scaling") or {}
    plain = isinstance(scaling, dict) and scaling.keys() <= {"rope_type", "type", "rope_theta"}
    if not plain or scaling.get("rope_type", scaling.get("type", "default")) != "default":
        raise ConvertError(f"{where} has rotary scaling {scaling}, which the family does not use")
    return float(values.get("rope_theta") or scaling.get("rope_theta") or 10000.0)


def _weight_files(folder: Path) -> dict[str, TensorFile]:
    """Every tensor of the folder with the file that holds it."""
    for name in _SINGLE:
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _indexed(folder, index)
        if (folder / name).is_file():
            file = open_tensors(folder / name)
            return dict.fromkeys(file.tensors, file)
    raise ConvertError(f"{folder} has {CONFIG} but neither {' nor '.join(_SINGLE)} nor an index of them")


def _indexed(folder: Path, index: Path) -> dict[str, TensorFile]:
    try:
        names: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        used = sorted(set(names.values()))
        bad = [name for name in used if Path(name).name != name]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConvertError(f"{index} is no index of tensors: {error}") from error
    if bad:
        raise ConvertError(f"{index} names {bad[0]}, which is not a file of its folder")
    if missing := [name for name in used if not (folder / name).is_file()]:
        raise ConvertError(f"{folder} lacks {missing[0]}, one of {len(used)} files that {index.name} names")
    files = {name: open_tensors(folder / name) for name in used}
    for key, name in names.items():
        if key not in files[name].tensors:
            raise ConvertError(f"{folder / name} lacks {key}, which {index.name} says it holds")
    unlisted = [(file, key) for name, file in files.items() for key in file.tensors if names.get(key) != name]
    if unlisted:
        file, key = unlisted[0]
        raise ConvertError(
            f"{file.path} holds {key}, which {index.name} does not list there: they are not of one checkpoint"
        )
    return {key: files[name] for key, name in names.items()}


# --- out -------------------------------------------------------------------------------------------------------------


def write_weights(
    weights: WeightSource,
    folder: Path,
    extra: dict[str, np.ndarray],
    shard_bytes: int,
    on_bytes: Callable[[int], None] = lambda count: None,
) -> None:
    """Write safetensors of at most `shard_bytes` each (or one tensor) and their index; `extra` goes into the last one."""
    from safetensors.numpy import save_file

    config = weights.config
    groups: list[list[tuple[Parameter, int | None, int]]] = [[]]
    for piece in source.pieces(config):
        if groups[-1] and sum(size for *_, size in groups[-1]) + piece[2] > shard_bytes:
            groups.append([])
        groups[-1].append(piece)
    total, weight_map = sum(array.nbytes for array in extra.values()), {}
    for number, group in enumerate(groups, 1):
        name = "model.safetensors" if len(groups) == 1 else f"model-{number:05}-of-{len(groups):05}.safetensors"
        tensors = {}
        for parameter, layer, size in group:
            tensor = layout.to_torch(parameter, weights.read(parameter, layer), config)
            if parameter.qk_norm:
                heads = config.n_heads if "q_norm" in parameter.path else config.n_kv_heads
                tensor = np.repeat(tensor, heads // len(tensor), axis=0)
            tensors[parameter.hf.format(layer)] = np.ascontiguousarray(tensor)
            on_bytes(size)
        total += sum(tensor.nbytes for tensor in tensors.values())
        if number == len(groups):
            tensors |= extra
        save_file(tensors, folder / name, metadata={"format": "pt"})
        (folder / name).chmod(0o644)  # the library gives it to its owner alone
        weight_map |= dict.fromkeys(tensors, name)
    if len(groups) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def config_values(config: TransformerConfig) -> dict[str, Any]:
    """The part of config.json that says what the transformer is, for versions 4 and 5 of transformers alike."""
    return {
        "architectures": ["ChameleonForConditionalGeneration"],
        "model_type": "chameleon",
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "swin_norm": config.norm_order == "swin",
        "model_parallel_size": config.qk_norm_groups if config.qk_norm_groups < config.n_heads else 1,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": config.param_dtype,
    }
