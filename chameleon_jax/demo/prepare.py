"""The token stores of the smoke run, made of the written digits: a small tokenizer and tokens, in half a minute."""

from __future__ import annotations

from pathlib import Path

from chameleon_jax.configs import (
    ImageConfig,
    SourceConfig,
    TokenizeConfig,
    TrainTokenizerConfig,
    VQConfig,
    VQTrainConfig,
    text_and_image,
)
from chameleon_jax.data.pipeline import tokenize
from chameleon_jax.tokenizer_training.bundle import train_bundle

CODES = 64
STEPS = 100  # of the codec


def digit_stores(folder: str | Path) -> None:
    """Write `tokenizer`, `store/train` and `store/heldout` beside what `digits.write` wrote to `folder`; goes on after a stop."""
    folder = Path(folder)
    bundle = folder / "tokenizer"
    sources = {
        part: SourceConfig(name=part, kind="folder", path=str(folder / f"{part}.jsonl"))
        for part in ("train", "heldout")
    }
    shape = {"channels": 16, "channel_multipliers": (1,), "res_blocks": 1, "latent_channels": 16, "embed_dim": 8}
    config = TrainTokenizerConfig(
        sources=(sources["train"],),
        eval_sources=(sources["heldout"],),
        vocab=text_and_image(image_codes=CODES, reserved=10, text_tokens=320, codes_per_image=16),
        image=ImageConfig(resolution=8),
        vq=VQConfig(resolution=8, patch_size=2, codes=CODES, norm_groups=4, **shape),
        vq_train=VQTrainConfig(
            steps=STEPS, batch_size=64, learning_rate=3e-3, warmup_steps=10, eval_every=STEPS, dead_code_steps=20
        ),
    )
    train_bundle(config, bundle)
    for part, source in sources.items():
        tokenize(TokenizeConfig(sources=(source,), tokenizer=str(bundle), codec_batch=256), folder / "store" / part)
