"""The image codec: pictures to a grid of codes and back, with the architecture of the Chameleon VQGAN at any size.

Linen modules describe the two convolutional halves, and everything outside sees pure functions over one nested dict
of arrays. Names of parameters are those of the released file with the dots of list indices turned to underscores
(`encoder.down.0.block.1.norm1.weight` is `encoder/down_0_block_1/norm1/scale`), so that conversion is a rename and a transpose.

Architecture: Esser et al. 2021 (Taming Transformers) and Gafni et al. 2022 (Make-A-Scene) as in facebookresearch/chameleon,
`inference/vqgan.py`. All is float32 at the highest matmul precision: small differences of large sums decide a code.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Container, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jax import lax
from jaxtyping import Array, Float, Int

from chameleon_jax.configs import VQConfig
from chameleon_jax.errors import TokenizerError
from chameleon_jax.tokenizers import codec_files
from chameleon_jax.tokenizers.quantizer import nearest_codes

_NAME = "vqgan"
WEIGHTS, CONFIG = f"{_NAME}.safetensors", f"{_NAME}.json"
Params = dict[str, Any]

_DECODING = ("decoder", "post_quant_conv")  # the parts that turn codes to pixels
_PRECISION = lax.Precision.HIGHEST
_Conv = functools.partial(nn.Conv, padding="SAME", precision=_PRECISION)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Codec:
    """A codec as it is saved: parameters and the config that gives them meaning.

    Releases for understanding pictures keep the encoding half alone: then there is neither "decoder" nor "post_quant_conv".
    """

    params: Params
    config: VQConfig

    @property
    def has_decoder(self) -> bool:
        return "decoder" in self.params


# --- pure functions --------------------------------------------------------------------------------------------------


def init(key: Array, config: VQConfig) -> Params:
    """Fresh parameters: kernels normal with variance 1/fan-in (LeCun et al. 1998), codebook uniform in +-1/codes.

    All kernels come from one draw: a draw for each would take longer to compile than a small codec takes to train.
    """
    flat = traverse_util.flatten_dict(shapes(config))
    kernel_key, codebook_key = jax.random.split(key)
    kernels = [name for name in flat if name[-1] == "kernel"]
    ends = np.cumsum([flat[name].size for name in kernels])
    parts = jnp.split(jax.random.normal(kernel_key, (int(ends[-1]),)), ends[:-1])
    # With their dtype: weakly typed parameters would have a training step compiled once more.
    made = {name: jnp.full(leaf.shape, float(name[-1] == "scale"), leaf.dtype) for name, leaf in flat.items()}
    for name, part in zip(kernels, parts, strict=True):
        shape = flat[name].shape
        made[name] = part.reshape(shape) / np.sqrt(np.prod(shape[:-1]))
    bound = 1 / config.codes
    made["quantize", "embedding"] = jax.random.uniform(
        codebook_key, (config.codes, config.embed_dim), minval=-bound, maxval=bound
    )
    return traverse_util.unflatten_dict(made)


def lacking(names: Iterable[str]) -> frozenset[str]:
    """Decoding parts that files of these dotted names do not have. A decoder needs its first layer, which may be there alone."""
    there = {name.split(".")[0] for name in names}
    return frozenset() if "decoder" in there else frozenset(_DECODING) - there


def shapes(config: VQConfig, *, without: Container[str] = ()) -> Params:
    """The parameters of a codec, but for those parts, as a nested dict of `jax.ShapeDtypeStruct`; nothing is computed."""
    size = config.downsampling  # one code is enough to shape every parameter
    images = jax.ShapeDtypeStruct((1, size, size, config.in_channels), jnp.float32)
    module = _VQGAN(config)
    tree = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, method=_VQGAN.reconstruct)["params"], images)
    return {name: part for name, part in tree.items() if name not in without}


def encode_latents(
    params: Params, images: Float[Array, "B H W 3"], config: VQConfig, *, dropout_key: Array | None = None
) -> Float[Array, "B h w D"]:
    """Continuous latents before the codebook, of pixels in [-1, 1]. Dropout is on where a key is given.

    Raises TokenizerError when a side is not a multiple of `config.downsampling`.
    """
    step = config.downsampling
    if images.shape[1] % step or images.shape[2] % step:
        raise TokenizerError(
            f"pictures of {images.shape[1]}x{images.shape[2]} pixels: sides must be multiples of {step}"
        )
    return _apply(_VQGAN.encode, params, images, config, dropout_key)


def decode_latents(
    params: Params, latents: Float[Array, "B h w D"], config: VQConfig, *, dropout_key: Array | None = None
) -> Float[Array, "B H W 3"]:
    """Pixels, not clamped, of rows of the codebook (or any other latents).

    Raises TokenizerError when the codec has no decoder.
    """
    if "decoder" not in params:
        raise TokenizerError(
            "this image codec has no decoder: add the released one with  python -m experiments.convert ... --vqgan FILE"
        )
    return _apply(_VQGAN.decode, params, latents, config, dropout_key)


def encode(params: Params, images: Float[Array, "B H W 3"], config: VQConfig) -> Int[Array, "B h w"]:
    """Codes of pixels in [-1, 1], row by row."""
    return nearest_codes(encode_latents(params, images, config), codebook(params))


def decode(params: Params, codes: Int[Array, "B h w"], config: VQConfig) -> Float[Array, "B H W 3"]:
    """Pixels of codes, not clamped."""
    return decode_latents(params, codebook(params)[codes], config)


def codebook(params: Params) -> Float[Array, "C D"]:
    """The embedding of every code."""
    return params["quantize"]["embedding"]


def _apply(method, params: Params, inputs: Array, config: VQConfig, dropout_key: Array | None) -> Array:
    training = dropout_key is not None and config.dropout > 0
    rngs = {"dropout": dropout_key} if training else None
    return _VQGAN(config, training=training).apply({"params": params}, inputs, method=method, rngs=rngs)


# --- files -----------------------------------------------------------------------------------------------------------


def save(directory: str | os.PathLike, params: Params, config: VQConfig) -> None:
    """Write `vqgan.json` and `vqgan.safetensors`, each whole or not at all."""
    codec_files.save(directory, _NAME, params, config)


def load(directory: str | os.PathLike) -> Codec:
    """Read what `save` wrote, with or without the decoding half.

    Raises TokenizerError for a file missing or damaged, or tensors that do not fit the config.
    """
    params, config = codec_files.load(
        directory, _NAME, VQConfig, lambda config, there: shapes(config, without=lacking(there))
    )
    return Codec(params=params, config=config)


# --- modules ---------------------------------------------------------------------------------------------------------


class _GroupNorm(nn.Module):
    """Group normalisation with the variance around the mean, in two passes (Wu and He 2018, section 3).

    Sums run over columns first, and rows and channels of a group then: short sums round less, and what is reduced first keeps the
    channels in the lanes of the vector unit, which makes a codec of large pictures a tenth faster on a CPU.
    """

    groups: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))

        def average(values: Float[Array, "B H W C"]) -> Float[Array, "B 1 1 C"]:
            rows = values.mean(axis=2)
            of_group = rows.reshape(*rows.shape[:2], self.groups, -1).mean(axis=(1, 3))
            return of_group.repeat(channels // self.groups, axis=-1)[:, None, None]

        centred = x - average(x)
        return centred * (lax.rsqrt(average(centred**2) + 1e-6) * scale) + bias


def _norm(config: VQConfig, name: str) -> _GroupNorm:
    return _GroupNorm(config.norm_groups, name=name)


class _ResidualBlock(nn.Module):
    """norm, swish, 3x3, norm, swish, dropout, 3x3, and a 1x1 shortcut where the width changes."""

    config: VQConfig
    width: int
    training: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W width"]:
        y = _Conv(self.width, (3, 3), name="conv1")(nn.swish(_norm(self.config, "norm1")(x)))
        y = nn.swish(_norm(self.config, "norm2")(y))
        y = nn.Dropout(self.config.dropout, deterministic=not self.training)(y)
        y = _Conv(self.width, (3, 3), name="conv2")(y)
        if x.shape[-1] != self.width:
            x = _Conv(self.width, (1, 1), name="nin_shortcut")(x)
        return x + y


class _AttentionBlock(nn.Module):
    """One head of full attention over all positions, with a residual."""

    config: VQConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        batch, height, width, channels = x.shape
        normed = _norm(self.config, "norm")(x)
        q, k, v = (_Conv(channels, (1, 1), name=n)(normed).reshape(batch, height * width, channels) for n in "qkv")
        scores = jnp.einsum("btc,bsc->bts", q, k, precision=_PRECISION) * channels**-0.5
        mixed = jnp.einsum("bts,bsc->btc", nn.softmax(scores, axis=-1), v, precision=_PRECISION)
        return x + _Conv(channels, (1, 1), name="proj_out")(mixed.reshape(x.shape))


class _Downsample(nn.Module):
    """Half the sides: one zero pixel right and bottom, then 3x3 with stride 2."""

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H/2 W/2 C"]:
        return _Conv(x.shape[-1], (3, 3), strides=(2, 2), padding=((0, 1), (0, 1)), name="conv")(x)


class _Upsample(nn.Module):
    """Double the sides: every pixel four times, then 3x3."""

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B 2H 2W C"]:
        return _DoublingConv(name="conv")(x)


class _DoublingConv(nn.Module):
    """A 3x3 convolution of the picture with every pixel doubled, without making that picture.

    Of the 3x3 pixels below the kernel only 2x2 differ. Which taps share one depends on whether the row and the column of the output
    are even or odd; so four 2x2 kernels of summed taps on the small picture give the same in 4/9 of the products (Shi et al. 2016,
    "Is the deconvolution layer the same as a convolutional layer?").
    """

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B 2H 2W C"]:
        batch, height, width, channels = x.shape
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, 3, channels, channels))
        bias = self.param("bias", nn.initializers.zeros, (channels,))

        def taps(kernel: Array, odd: int, axis: int) -> Array:
            first, middle, last = jnp.split(kernel, 3, axis)
            return jnp.concatenate([first + middle, last] if odd else [first, middle + last], axis)

        parities = [(row, column) for row in (0, 1) for column in (0, 1)]
        kernels = jnp.concatenate([taps(taps(kernel, row, 0), column, 1) for row, column in parities], axis=-1)
        y = lax.conv_general_dilated(
            x,
            kernels,
            window_strides=(1, 1),
            padding=((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=_PRECISION,
        ).reshape(batch, height + 1, width + 1, 4, channels)
        parts = [y[:, row : row + height, column : column + width, 2 * row + column] for row, column in parities]
        split = jnp.stack(parts, axis=3).reshape(batch, height, width, 2, 2, channels)
        return split.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, channels) + bias


class _Half(nn.Module):
    """What encoder and decoder share: a level of blocks, and the blocks in the middle."""

    config: VQConfig
    training: bool

    def level(self, x: Array, prefix: str, index: int, blocks: int) -> Array:
        config = self.config
        side = config.resolution // config.patch_size // 2**index
        for j in range(blocks):
            x = self.block(x, f"{prefix}_block_{j}", config.channels * config.channel_multipliers[index])
            if side in config.attention_resolutions:
                x = _AttentionBlock(config, name=f"{prefix}_attn_{j}")(x)
        return x

    def block(self, x: Array, name: str, width: int) -> Array:
        return _ResidualBlock(self.config, width, self.training, name=name)(x)

    def middle(self, x: Array) -> Array:
        x = self.block(x, "mid_block_1", x.shape[-1])
        x = _AttentionBlock(self.config, name="mid_attn_1")(x)
        return self.block(x, "mid_block_2", x.shape[-1])

    def finish(self, x: Array, channels: int) -> Array:
        return _Conv(channels, (3, 3), name="conv_out")(nn.swish(_norm(self.config, "norm_out")(x)))


class _Encoder(_Half):
    @nn.compact
    def __call__(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B h w Z"]:
        config = self.config
        x = _Conv(config.channels, (3, 3), name="conv_in")(_fold(images, config.patch_size))
        last = len(config.channel_multipliers) - 1
        for i in range(last + 1):
            x = self.level(x, f"down_{i}", i, config.res_blocks)
            if i < last:
                x = _Downsample(name=f"down_{i}_downsample")(x)
        return self.finish(self.middle(x), config.latent_channels)


class _Decoder(_Half):
    @nn.compact
    def __call__(self, latents: Float[Array, "B h w Z"]) -> Float[Array, "B H W 3"]:
        config = self.config
        x = _Conv(config.channels * config.channel_multipliers[-1], (3, 3), name="conv_in")(latents)
        x = self.middle(x)
        for i in reversed(range(len(config.channel_multipliers))):
            x = self.level(x, f"up_{i}", i, config.res_blocks + 1)
            if i > 0:
                x = _Upsample(name=f"up_{i}_upsample")(x)
        return _unfold(self.finish(x, config.in_channels * config.patch_size**2), config.patch_size)


class _Codebook(nn.Module):
    config: VQConfig

    @nn.compact
    def __call__(self) -> Float[Array, "C D"]:
        return self.param("embedding", nn.initializers.zeros, (self.config.codes, self.config.embed_dim))


class _VQGAN(nn.Module):
    config: VQConfig
    training: bool = False

    def setup(self):
        self.encoder = _Encoder(self.config, self.training)
        self.decoder = _Decoder(self.config, self.training)
        self.quantize = _Codebook(self.config)
        self.quant_conv = _Conv(self.config.embed_dim, (1, 1))
        self.post_quant_conv = _Conv(self.config.latent_channels, (1, 1))

    def encode(self, images: Array) -> Array:
        return self.quant_conv(self.encoder(images))

    def decode(self, latents: Array) -> Array:
        return self.decoder(self.post_quant_conv(latents))

    def reconstruct(self, images: Array) -> Array:
        """Touches every parameter, for `shapes`."""
        latents = self.encode(images)
        return self.decode(self.quantize()[nearest_codes(latents, self.quantize())])


def _fold(images: Float[Array, "B H W C"], size: int) -> Float[Array, "B H/size W/size size*size*C"]:
    """Space to depth: the pixels of a patch become the channels of one position."""
    if size == 1:
        return images
    batch, height, width, channels = images.shape
    patches = images.reshape(batch, height // size, size, width // size, size, channels).transpose(0, 1, 3, 2, 4, 5)
    return patches.reshape(batch, height // size, width // size, size * size * channels)


def _unfold(patches: Float[Array, "B h w size*size*C"], size: int) -> Float[Array, "B h*size w*size C"]:
    """Depth to space: inverse of `_fold`."""
    if size == 1:
        return patches
    batch, height, width, channels = patches.shape
    split = patches.reshape(batch, height, width, size, size, channels // size**2).transpose(0, 1, 3, 2, 4, 5)
    return split.reshape(batch, height * size, width * size, channels // size**2)
