"""The sound codec: short waveforms to one code a time step and back.

A convolutional encoder reads the log spectrogram, one codebook quantises it, a decoder writes the spectrogram again (van den Oord
et al. 2017), and the Griffin-Lim algorithm finds a waveform for it. The encoder looks at few frames, so that a code means a sound
and not a word; the decoder looks further. All is float32 at the highest matmul precision.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jax import lax
from jaxtyping import Array, Float, Int

from chameleon_jax.configs import SoundConfig
from chameleon_jax.errors import TokenizerError
from chameleon_jax.tokenizers import codec_files, spectrum
from chameleon_jax.tokenizers.quantizer import nearest_codes
from chameleon_jax.tokenizers.waveforms import load_waveform, to_wav

_NAME = "sound"
CONFIG, WEIGHTS = f"{_NAME}.json", f"{_NAME}.safetensors"
Params = dict[str, Any]

_SPREAD = 3.0  # log magnitudes are divided by it, to be about -1..1
_PRECISION = lax.Precision.HIGHEST
_Conv = functools.partial(nn.Conv, padding="SAME", precision=_PRECISION)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoundCodec:
    """A codec of WAV files. Items are waveforms [samples] in [-1, 1], mono, at `config.rate`."""

    kind: ClassVar[str] = "sound"
    media: ClassVar[str] = "audio"
    mime: ClassVar[str] = "audio/wav"
    suffix: ClassVar[str] = ".wav"

    params: Params
    config: SoundConfig

    @property
    def codes(self) -> int:
        return self.config.codes

    @property
    def length(self) -> int:
        return self.config.codes_per_sound

    @property
    def can_decode(self) -> bool:
        return True

    def prepare(self, data: bytes) -> Float[np.ndarray, "samples"]:
        """The waveform of a WAV file, trimmed and levelled. Raises DataError with the reason."""
        return load_waveform(data, self.config)

    def encode(self, items: Sequence[np.ndarray] | Float[np.ndarray, "B samples"]) -> Int[np.ndarray, "B n"]:
        """Codes of waveforms as `prepare` gives them. Raises TokenizerError for those of another length."""
        waveforms = np.asarray(items, np.float32)
        if waveforms.ndim != 2 or waveforms.shape[1] != self.config.samples:
            raise TokenizerError(
                f"sounds have shape {waveforms.shape}, the codec wants (batch, {self.config.samples} samples)"
            )
        return np.asarray(_jitted()[0](self.params, waveforms, self.config))

    def decode(self, codes: Int[np.ndarray, "B n"]) -> Float[np.ndarray, "B samples"]:
        """Waveforms. Raises TokenizerError for codes of another number or outside the codebook."""
        codes = np.asarray(codes)
        if codes.ndim != 2 or codes.shape[1] != self.length:
            raise TokenizerError(f"codes have shape {codes.shape}, expected (batch, {self.length})")
        if codes.size and (codes.min() < 0 or codes.max() >= self.codes):
            raise TokenizerError(f"code {int(codes.min())}..{int(codes.max())} is outside 0..{self.codes - 1}")
        return np.asarray(_jitted()[1](self.params, codes.astype(np.int32), self.config))

    def to_file(self, item: Float[np.ndarray, "samples"], *, quick: bool = False) -> bytes:
        """A WAV file of 16 bits."""
        return to_wav(item, self.config.rate)

    def check(self, row: Any) -> None:
        """Raise TokenizerError, naming both numbers, where the codec contradicts its row of the modality table."""
        if row.span != "fixed":
            raise TokenizerError(
                f"tokenizer bundle: sounds have {self.length} codes each and need fixed spans, '{row.name}' has {row.span} ones"
            )

    def describe(self) -> str:
        """What it takes and gives, in one line for people."""
        return f"{self.config.seconds:g} s of sound at {self.config.rate:,} samples a second to {self.length} codes"

    def identity(self) -> Iterator[bytes]:
        """All that decides codes, and how they sound."""
        yield self.config.to_json().encode()
        for path, leaf in sorted(traverse_util.flatten_dict(self.params, sep=".").items()):
            leaf = np.asarray(leaf)
            yield f"{path} {leaf.dtype} {leaf.shape}".encode()
            yield np.ascontiguousarray(leaf).data

    def save(self, directory: str | os.PathLike) -> None:
        """Write `sound.json` and `sound.safetensors`, each whole or not at all."""
        codec_files.save(directory, _NAME, self.params, self.config)

    @classmethod
    def load(cls, directory: str | os.PathLike) -> SoundCodec | None:
        """Read what `save` wrote; None where there is no such file. Raises TokenizerError for damaged ones."""
        if not any(os.path.isfile(os.path.join(directory, name)) for name in (CONFIG, WEIGHTS)):
            return None
        params, config = codec_files.load(directory, _NAME, SoundConfig, lambda config, _: shapes(config))
        return cls(params=params, config=config)


# --- pure functions --------------------------------------------------------------------------------------------------


def init(key: Array, config: SoundConfig) -> Params:
    """Fresh parameters; the codebook is zero until training draws one."""
    frames = jnp.zeros((1, config.frames, config.bins))
    return _Autoencoder(config).init(key, frames)["params"]


def shapes(config: SoundConfig) -> Params:
    """The parameters as a nested dict of `jax.ShapeDtypeStruct`; nothing is computed."""
    return jax.eval_shape(lambda: init(jax.random.key(0), config))


def features(waveforms: Float[Array, "B samples"], config: SoundConfig) -> Float[Array, "B frames bins"]:
    """What the encoder reads and the decoder writes: log magnitudes, about -1..1."""
    return spectrum.log_magnitudes(waveforms, config.hop) / _SPREAD


def encode_latents(params: Params, features: Array, config: SoundConfig) -> Float[Array, "B n D"]:
    """Continuous latents before the codebook."""
    return _Autoencoder(config).apply({"params": params}, features, method=_Autoencoder.encode)


def decode_latents(
    params: Params, latents: Float[Array, "B n D"], config: SoundConfig
) -> Float[Array, "B frames bins"]:
    """Features of rows of the codebook (or any other latents)."""
    return _Autoencoder(config).apply({"params": params}, latents, method=_Autoencoder.decode)


def encode(params: Params, waveforms: Float[Array, "B samples"], config: SoundConfig) -> Int[Array, "B n"]:
    """Codes of waveforms, one a time step."""
    return nearest_codes(encode_latents(params, features(waveforms, config), config), codebook(params))


def decode(params: Params, codes: Int[Array, "B n"], config: SoundConfig) -> Float[Array, "B samples"]:
    """Waveforms of codes, not clamped."""
    return spectrum.waveforms(log_magnitudes(params, codes, config), config.hop, config.phase_steps)


def log_magnitudes(params: Params, codes: Int[Array, "B n"], config: SoundConfig) -> Float[Array, "B frames bins"]:
    """The spectrogram of codes, of which `decode` finds a waveform."""
    return decode_latents(params, codebook(params)[codes], config) * _SPREAD


def codebook(params: Params) -> Float[Array, "C D"]:
    """The embedding of every code."""
    return params["quantize"]["embedding"]


@functools.cache
def _jitted():
    """The codec's two functions, compiled once for each shape; parameters stay an argument, not a constant of the program."""
    return jax.jit(encode, static_argnums=2), jax.jit(decode, static_argnums=2)


# --- modules ---------------------------------------------------------------------------------------------------------


class _Block(nn.Module):
    """A residual of norm, convolution over three time steps, norm, convolution over one."""

    @nn.compact
    def __call__(self, x: Float[Array, "B n C"]) -> Float[Array, "B n C"]:
        y = _Conv(x.shape[-1], (3,), name="conv1")(nn.swish(nn.LayerNorm(name="norm1")(x)))
        return x + _Conv(x.shape[-1], (1,), name="conv2")(nn.swish(nn.LayerNorm(name="norm2")(y)))


class _Half(nn.Module):
    """From one width to another at one time resolution."""

    reach: int  # time steps that the first convolution sees
    channels: int
    blocks: int
    out: int

    @nn.compact
    def __call__(self, x: Float[Array, "B n _"]) -> Float[Array, "B n out"]:
        x = _Conv(self.channels, (self.reach,), name="conv_in")(x)
        for i in range(self.blocks):
            x = _Block(name=f"block_{i}")(x)
        return _Conv(self.out, (1,), name="conv_out")(nn.swish(nn.LayerNorm(name="norm_out")(x)))


class _Codebook(nn.Module):
    config: SoundConfig

    @nn.compact
    def __call__(self) -> Float[Array, "C D"]:
        return self.param("embedding", nn.initializers.zeros, (self.config.codes, self.config.embed_dim))


class _Autoencoder(nn.Module):
    config: SoundConfig

    def setup(self):
        config = self.config
        self.encoder = _Half(1, config.channels, config.encoder_blocks, config.embed_dim)
        self.decoder = _Half(3, config.channels, config.decoder_blocks, config.frames_per_code * config.bins)
        self.quantize = _Codebook(config)

    def encode(self, features: Float[Array, "B frames bins"]) -> Float[Array, "B n D"]:
        """Frames of a code side by side, then one position for each."""
        config = self.config
        return self.encoder(features.reshape(len(features), -1, config.frames_per_code * config.bins))

    def decode(self, latents: Float[Array, "B n D"]) -> Float[Array, "B frames bins"]:
        louder = self.decoder(latents).reshape(len(latents), -1, self.config.bins)
        return louder + spectrum.RANGE[0] / _SPREAD  # than silence, in which training begins and most of a sound lies

    def __call__(self, features: Array) -> Array:
        """Touches every parameter, for `init`."""
        latents = self.encode(features)
        return self.decode(self.quantize()[nearest_codes(latents, self.quantize())])
