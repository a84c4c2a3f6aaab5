"""Runs of random weights with codecs and tokenizers of their own, for tests from words and data to words and data."""

import jax
import jax.numpy as jnp
import numpy as np

from chameleon_jax.configs import (
    ImageConfig,
    ModalityConfig,
    SoundConfig,
    TransformerConfig,
    VocabConfig,
    VQConfig,
    text_and_image,
)
from chameleon_jax.generation.loading import Run
from chameleon_jax.models import transformer
from chameleon_jax.models.params import map_specs
from chameleon_jax.tokenizers import sound, vqgan
from chameleon_jax.tokenizers.bundle import TokenizerBundle
from chameleon_jax.tokenizers.pictures import PictureCodec
from chameleon_jax.tokenizers.text import train_bpe

CODES, CONTEXT = 16, 192

CODEC = VQConfig(
    resolution=16,
    patch_size=4,
    channels=8,
    channel_multipliers=(1,),
    res_blocks=1,
    latent_channels=8,
    embed_dim=8,
    codes=CODES,
    norm_groups=4,
)


def make_run(is_grid=False, with_codec=True, context=CONTEXT):
    """A model of random weights: pictures of 16 codes of 4x4 pixels, in a grid of up to 16 in units of 8 pixels."""
    spans = {"image_span": "grid", "max_grids": 4, "grid_unit": 2} if is_grid else {}
    vocab = text_and_image(image_codes=CODES, reserved=9, text_tokens=300, codes_per_image=16, **spans)
    text = train_bpe(["a red heart", "some words", "größe größer", "日本語 日本"], vocab)
    bundle = TokenizerBundle.of_pictures(
        images=ImageConfig(
            resolution=16, **({"preprocessing": "lumina", "grid_pixels": 8} if is_grid else {"preprocessing": "meta"})
        ),
        text=text,
        vqgan=vqgan.Codec(params=vqgan.init(jax.random.key(0), CODEC), config=CODEC) if with_codec else None,
    )
    return _with_random_weights(bundle, context)


SOUND = SoundConfig(
    rate=1000,
    seconds=0.32,
    hop=20,
    codes=8,
    embed_dim=4,
    channels=8,
    encoder_blocks=1,
    decoder_blocks=1,
    phase_steps=2,
)

# Another table than text and images: names, order and kinds of spans are its own.
OTHER = VocabConfig(
    modalities=(
        ModalityConfig(name="words", ids=300, span="free", codec="bpe"),
        ModalityConfig(name="moves", ids=5, span="free"),
        ModalityConfig(name="beeps", ids=10, length=12),
        ModalityConfig(name="drawings", ids=CODES, span="grid", length=16, max_grids=4, grid_unit=2, codec="vqgan"),
        ModalityConfig(name="calls", ids=SOUND.codes, length=SOUND.codes_per_sound, codec="sound"),
    ),
    reserved=4,
)


def make_other_run(context=CONTEXT):
    """A model of OTHER: words, moves as they come, beeps of 12 numbers, drawings of many sizes, and calls of 8 codes."""
    text = train_bpe(["a red heart", "some words", "größe größer", "日本語 日本"], OTHER)
    rng = np.random.default_rng(1)
    calls = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(leaf.dtype), sound.shapes(SOUND))
    codecs = {
        "drawings": PictureCodec(
            config=ImageConfig(resolution=16, preprocessing="lumina", grid_pixels=8),
            vqgan=vqgan.Codec(params=vqgan.init(jax.random.key(0), CODEC), config=CODEC),
        ),
        "calls": sound.SoundCodec(params=calls, config=SOUND),
    }
    bundle = TokenizerBundle(vocab_config=text.vocab_config, text=text, codecs=codecs)
    bundle.check()
    return _with_random_weights(bundle, context)


def _with_random_weights(bundle, context):
    shape = {"d_model": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 2, "head_dim": 8, "d_ff": 16}
    model = TransformerConfig(vocab_size=bundle.vocab.size, compute_dtype="float32", max_seq_len=context, **shape)
    rng = np.random.default_rng(0)
    params = map_specs(
        lambda spec: jnp.asarray(rng.normal(size=spec.shape), spec.dtype), transformer.param_specs(model)
    )
    return Run(params=params, model=model, bundle=bundle, step=3, format="completion")
