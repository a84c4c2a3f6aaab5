"""Any checkpoint of the family, opened: weights, text tokenizer and image codec, wherever its layout keeps them.

A folder is known by the files that only its layout has, and what is opened is the same for every layout. So every
writer takes every source: Meta to ours, ours to Hugging Face, Hugging Face to Meta.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from chameleon_jax.configs import ImageConfig, ModalityConfig, VocabConfig, VQConfig
from chameleon_jax.convert import hf, hf_files, meta, source
from chameleon_jax.convert import vqgan as codec_names
from chameleon_jax.convert.hf import HFWeights
from chameleon_jax.convert.layout import Parameter
from chameleon_jax.convert.meta import MetaWeights
from chameleon_jax.convert.native import NativeWeights
from chameleon_jax.convert.releases import NUMERICS, release
from chameleon_jax.convert.source import WeightSource
from chameleon_jax.convert.tensor_files import TensorFile, open_tensors
from chameleon_jax.errors import ConvertError
from chameleon_jax.tokenizers.bundle import TokenizerBundle
from chameleon_jax.tokenizers.pictures import PictureCodec
from chameleon_jax.tokenizers.text import TextTokenizer
from chameleon_jax.tokenizers.vqgan import Codec
from chameleon_jax.vocab import Vocab
from chameleon_jax.workdir import CHECKPOINTS

_TOKENIZERS = ("text_tokenizer.json", "tokenizer.json")
_CODEC, _CODEC_CONFIG = "vqgan.ckpt", "vqgan.yaml"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What a user may say of a source beyond its folder; None means what the files say.

    `preset` is the release that it must be, `vqgan` and `tokenizer` are files or folders to take these parts from, `dtype` and
    `numerics` change the model, `resolution` is the side of pictures; `without_codec` leaves the codec of the source out: nothing
    but its config is looked at, for the size of pictures.
    """

    preset: str | None = None
    norm_order: str | None = None
    vqgan: Path | None = None
    tokenizer: Path | None = None
    dtype: str | None = None
    numerics: str | None = None
    resolution: int | None = None
    without_codec: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenedRelease:
    """A checkpoint ready to be written in any layout. `codec` or `bundle` are None where the source has no such part.

    A bundle needs a text tokenizer; a codec without one stands in `codec` alone.
    """

    weights: WeightSource
    bundle: TokenizerBundle | None
    codec: Codec | None


def open_release(path: Path, options: Options) -> OpenedRelease:
    """Open a folder of Meta's layout, of Hugging Face's, or a workdir of ours.

    Raises ConvertError for a folder of none of them, and in one line for everything in it that cannot be right.
    """
    if options.without_codec and options.vqgan is not None:
        raise ConvertError("--without_codec leaves the image codec out and --vqgan gives one: drop one of them")
    folder, shape = _sniff(path), None
    if (folder / CHECKPOINTS).is_dir():
        run = NativeWeights(folder, with_codec=not options.without_codec and options.vqgan is None)
        weights: WeightSource = run
        bundle, codec = run.bundle, run.codec
        if options.norm_order not in (None, run.config.norm_order):
            raise ConvertError(f"{path} has norm order '{run.config.norm_order}', '{options.norm_order}' was asked for")
        if options.vqgan is not None:
            codec = _codec_at(options.vqgan, run.report)
    else:
        weights, codec = _open_foreign(folder, options)
        bundle, shape = None, _shape_left_out(folder, weights) if options.without_codec else None
    shape = codec.config if codec else shape
    text = bundle.text if bundle else None
    if options.tokenizer is not None or weights.flavour != NativeWeights.flavour:
        bundle, text = None, _text_tokenizer(folder, options, weights, shape)
    source.check_release(weights, folder, options.preset)
    bundle = _bundle(bundle, text, codec, shape, weights, options) if text is not None else None
    if text is None:
        weights.report.note("no text tokenizer found: give --tokenizer FILE to generate from words")
    if options.without_codec:
        weights.report.note("the image codec was left out, as asked: pictures are neither read nor written")
    elif codec is None:
        weights.report.note("no image codec found: give --vqgan vqgan.ckpt to read and write pictures")
    elif not codec.has_decoder:
        weights.report.note(
            "the image codec has no decoder: pictures can be read, not written; give --vqgan vqgan.ckpt"
        )
    return OpenedRelease(weights=_adjusted(weights, bundle, options), bundle=bundle, codec=codec)


def _sniff(path: Path) -> Path:
    """The folder of the weights: `path` itself or, in a release tree as Meta ships it, the one model below."""
    path = path.absolute()  # what lies beside a relative path is found too; links, as of Hugging Face's cache, stay
    if not path.is_dir():
        raise ConvertError(f"{path} is not a folder")
    if not os.access(path, os.R_OK | os.X_OK):
        raise ConvertError(f"{path} cannot be read: permission denied")
    inner = sorted(path.glob("models/*/params.json")) + sorted(path.glob("data/models/*/params.json"))
    if any((path / name).exists() for name in (CHECKPOINTS, meta.PARAMS, hf.CONFIG)):
        return path
    if len(inner) == 1:
        return inner[0].parent
    if inner:
        raise ConvertError(f"{path} holds {len(inner)} models: give one of them, say {inner[0].parent}")
    raise ConvertError(
        f"{path} is no checkpoint: Meta's layout has {meta.PARAMS}, Hugging Face's {hf.CONFIG}, a workdir of ours checkpoints/"
    )


def _open_foreign(folder: Path, options: Options) -> tuple[WeightSource, Codec | None]:
    if (folder / meta.PARAMS).is_file():
        weights: WeightSource = MetaWeights(folder, options.norm_order)
        stored: Codec | None = None
    else:
        opened = HFWeights(folder, options.norm_order)
        weights, stored = opened, None
        if opened.codec and options.vqgan is None and not options.without_codec:
            shape = codec_names.config_from_hf(opened.values.get("vq_config") or {}, str(folder / hf.CONFIG))
            stored = _codec(opened.codec, shape, folder, opened.report)
        for file, key in opened.codec.values() if stored is None else ():
            opened.report.drop(
                file,
                key,
                f"the codec comes from {options.vqgan}" if options.vqgan else "the codec was left out, as asked",
            )
    place = options.vqgan or _beside(folder, (_CODEC,))
    if stored is None and place is not None and not options.without_codec:
        stored = _codec_at(place, weights.report)
    return weights, stored


def _shape_left_out(folder: Path, weights: WeightSource) -> VQConfig | None:
    """The config of a codec that is not read, which says how large pictures are; None where nothing readable does."""
    place = _beside(folder, (_CODEC_CONFIG,))
    try:
        if isinstance(weights, HFWeights) and (values := weights.values.get("vq_config")):
            return codec_names.config_from_hf(values, str(folder / hf.CONFIG))
        return codec_names.config_from_yaml(_read_yaml(place), str(place)) if place else None
    except ConvertError as error:
        weights.report.note(f"the size of pictures is that of the release, since {error}")
        return None


def _beside(folder: Path, names: tuple[str, ...]) -> Path | None:
    """A file of the release that lies with the weights or, as in Meta's tree, in the folder `tokenizer` some steps up."""
    places = [folder, *(up / "tokenizer" for up in (folder, folder.parent, folder.parent.parent))]
    return next((place / name for place in places for name in names if (place / name).is_file()), None)


def _text_tokenizer(
    folder: Path, options: Options, weights: WeightSource, shape: VQConfig | None
) -> TextTokenizer | None:
    given = options.tokenizer
    if given is not None and given.is_dir():
        given = next((given / name for name in _TOKENIZERS if (given / name).is_file()), given)
    path = given or _beside(folder, _TOKENIZERS)
    if path is None:
        return None
    weights.report.note(f"text tokenizer: {path}")
    return TextTokenizer.load(path, _spans(folder, weights, shape, options))


def _spans(folder: Path, weights: WeightSource, shape: VQConfig | None, options: Options) -> VocabConfig:
    """How images lie in the id space of this release."""
    known = release(options.preset or ("lumina-mgpt-7b" if weights.flavour == "lumina" else "chameleon-7b")).vocab
    pictures = known.of_codec(PictureCodec.kind)
    if pictures.span == "grid":
        return known
    codes = shape.codes_per_image if shape else hf_files.codes_per_image(folder)
    return known.with_row(pictures.name, length=codes or pictures.length)


def _bundle(
    old: TokenizerBundle | None,
    text: TextTokenizer,
    codec: Codec | None,
    shape: VQConfig | None,
    weights: WeightSource,
    options: Options,
) -> TokenizerBundle:
    vocab = text.vocab_config
    pictures, size = vocab.of_codec(PictureCodec.kind), Vocab.from_config(vocab).size
    if options.resolution is not None and pictures.span == "fixed":
        raise ConvertError(
            "--resolution is for pictures of many sizes (Lumina-mGPT): here the codec's resolution rules"
        )
    image = old.pictures.config if old else _image_config(pictures, shape, options)
    if old and options.resolution is not None:
        image = dataclasses.replace(image, resolution=options.resolution)
    if size > weights.config.vocab_size:
        raise ConvertError(
            f"the text tokenizer has {size} ids, the model {weights.config.vocab_size}: they do not belong together"
        )
    codecs = {**(old.codecs if old else {}), pictures.name: PictureCodec(config=image, vqgan=codec)}
    bundle = TokenizerBundle(vocab_config=vocab, text=text, codecs=codecs)
    bundle.check()
    return bundle


def _image_config(pictures: ModalityConfig, shape: VQConfig | None, options: Options) -> ImageConfig:
    known = release(options.preset).image if options.preset else ImageConfig()
    if pictures.span == "grid":
        pixels = pictures.grid_unit * shape.downsampling if shape else known.grid_pixels
        side = options.resolution or known.resolution
        return dataclasses.replace(known, preprocessing="lumina", resolution=side, grid_pixels=pixels)
    return dataclasses.replace(known, resolution=shape.resolution if shape else known.resolution)


# --- codecs ----------------------------------------------------------------------------------------------------------


def _codec_at(path: Path, report: source.Report) -> Codec:
    """A codec from vqgan.ckpt (its yaml beside it), from safetensors (a config.json beside them), or from a folder of either."""
    if path.is_dir():
        names = (_CODEC, "model.safetensors", "diffusion_pytorch_model.safetensors")
        found = next((path / name for name in names if (path / name).is_file()), None)
        if found is None:
            raise ConvertError(f"{path} has none of {', '.join(names)}")
        path = found
    file = open_tensors(path)
    tensors = codec_names.strip_prefix({key: (file, key) for key in file.tensors})
    if not tensors:
        raise ConvertError(f"{path} has no image codec: no tensor encoder.conv_in.weight or the like")
    yaml_file = next((p for p in (path.with_suffix(".yaml"), path.parent / _CODEC_CONFIG) if p.is_file()), None)
    if yaml_file is not None:
        return _codec(tensors, codec_names.config_from_yaml(_read_yaml(yaml_file), str(yaml_file)), path, report)
    config = path.parent / hf.CONFIG
    if path.suffix == ".safetensors" and config.is_file():
        values = hf.read_config(path.parent)
        return _codec(tensors, codec_names.config_from_hf(values.get("vq_config", values), str(config)), path, report)
    report.note(f"{path} has no {_CODEC_CONFIG} beside it: took the shape of Chameleon's codec")
    return _codec(tensors, VQConfig(), path, report)


def _codec(
    tensors: Mapping[str, tuple[TensorFile, str]], config: VQConfig, where: Path, report: source.Report
) -> Codec:
    ignored = codec_names.ignored(tensors)
    arrays = {}
    for name, (file, key) in tensors.items():
        if name in ignored:
            report.drop(file, key, ignored[name])
        else:
            source.check_float(file, key)
            arrays[name] = file.read(key)
            report.use(file, key)
    return Codec(params=codec_names.from_torch(arrays, config, str(where)), config=config)


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConvertError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConvertError(f"{path} is not a mapping of settings")
    return values


# --- changes on the way ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Adjusted:
    """Another source with a changed config, its parameters cast to the dtype that the config names."""

    inner: WeightSource
    config: Any

    @property
    def flavour(self) -> str:
        return self.inner.flavour

    @property
    def report(self) -> source.Report:
        return self.inner.report

    def read(self, parameter: Parameter, layer: int | None) -> np.ndarray:
        return source.cast(self.inner.read(parameter, layer), self.config.param_dtype)


def _adjusted(weights: WeightSource, bundle: TokenizerBundle | None, options: Options) -> WeightSource:
    changes: dict[str, Any] = {}
    if options.dtype is not None:
        changes = {"param_dtype": options.dtype, "compute_dtype": options.dtype}
        if options.dtype == "bfloat16" and weights.config.param_dtype == "float32":
            weights.report.note("weights were rounded from float32 to bfloat16")
    if options.numerics is not None:
        numerics = NUMERICS[options.numerics]
        if numerics.masked_ids:
            if bundle is None or not bundle.pictures:
                raise ConvertError(
                    f"--numerics={options.numerics} masks the ids of image codes, and which these are is said by a text tokenizer "
                    "alone: give --tokenizer FILE"
                )
            pictures = bundle.vocab.modalities[bundle.vocab.row(bundle.image_output[0])]
            numerics = dataclasses.replace(numerics, masked_ids=(pictures.start, pictures.stop))
        changes["numerics"] = numerics
    return _Adjusted(weights, dataclasses.replace(weights.config, **changes)) if changes else weights
