"""Trains a tokenizer bundle: text pieces, image codec, or both, and measures the codec on pictures it has not seen."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from chameleon_jax.configs import TrainTokenizerConfig
from chameleon_jax.errors import DataError
from chameleon_jax.evaluation import reconstruction
from chameleon_jax.tokenizer_training.codec import train_codec
from chameleon_jax.tokenizer_training.corpus import Corpus, read_corpus
from chameleon_jax.tokenizers import vqgan
from chameleon_jax.tokenizers.bundle import TokenizerBundle
from chameleon_jax.tokenizers.text import TextTokenizer, train_bpe

HOLD_OUT_EVERY = 16  # where no eval_sources are given
GRID_IMAGES = 48


def train_bundle(config: TrainTokenizerConfig, workdir: str | Path) -> None:
    """Train the parts that the config asks for into `workdir`, which is a bundle as soon as both parts are there.

    Writes evaluation.json and reconstructions.png beside the codec. Raises DataError when the sources lack what is asked for.
    """
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    corpus = read_corpus(config.sources, config.image, config.vocab)
    for reject in corpus.rejects[:3]:
        print(f"left out: {reject}")
    print(f"{len(corpus.images):,} different pictures, {len(corpus.texts):,} texts, {len(corpus.rejects):,} left out")
    text = _train_text(config, corpus) if config.parts != "image" else _load_text(config, workdir)
    codec = _train_image(config, corpus, workdir) if config.parts != "text" else _load_codec(workdir)
    if text is not None and codec is not None:
        bundle = TokenizerBundle.of_pictures(text=text, images=config.image, vqgan=codec)
        bundle.save(workdir)
        print(f"tokenizer bundle: {workdir}, {bundle.vocab.size:,} ids ({text.vocab_config.text.ids:,} text pieces)")
    elif text is not None:
        text.save(workdir / "tokenizer.json")
        print(f"{workdir} has no image codec yet: run again with parts 'image'")
    else:
        vqgan.save(workdir, codec.params, codec.config)
        print(f"{workdir} has no text tokenizer yet: run again with parts 'text'")


def _train_text(config: TrainTokenizerConfig, corpus: Corpus) -> TextTokenizer:
    if not corpus.texts:
        raise DataError("the sources hold no text; for a codec alone, set TrainTokenizerConfig.parts = 'image'")
    return train_bpe(corpus.texts, config.vocab)


def _load_text(config: TrainTokenizerConfig, workdir: Path) -> TextTokenizer | None:
    path = workdir / "tokenizer.json"
    return TextTokenizer.load(path, config.vocab) if path.exists() else None


def _load_codec(workdir: Path) -> vqgan.Codec | None:
    return vqgan.load(workdir) if (workdir / vqgan.CONFIG).exists() else None


def _train_image(config: TrainTokenizerConfig, corpus: Corpus, workdir: Path) -> vqgan.Codec:
    held_out = read_corpus(config.eval_sources, config.image, config.vocab)
    if not config.eval_sources:
        corpus, held_out = corpus.split(HOLD_OUT_EVERY)
    if len(corpus.images) == 0 or len(held_out.images) == 0:
        raise DataError(
            f"{len(corpus.images)} pictures to train on and {len(held_out.images)} held out: both need some"
        )
    during = _evenly(held_out.images, config.vq_train.eval_images)

    def evaluate(codec: vqgan.Codec) -> dict[str, float]:
        return dataclasses.asdict(reconstruction.evaluate(codec, during))

    trained = train_codec(corpus.images, config.vq, config.vq_train, workdir, evaluate)
    report = dataclasses.asdict(reconstruction.evaluate(trained.codec, held_out.images))
    (workdir / "evaluation.json").write_text(json.dumps(report, indent=2) + "\n")
    grid = reconstruction.picture_grid(
        trained.codec, _evenly(held_out.images, GRID_IMAGES), scale=max(1, 64 // config.vq.resolution)
    )
    grid.save(workdir / "reconstructions.png")
    for name, unit in (
        ("psnr", " dB"),
        ("psnr_of_set", " dB"),
        ("ssim", ""),
        ("codebook_usage", ""),
        ("perplexity", ""),
    ):
        print(f"  {name:<16}{report[name]:10.3f}{unit}")
    print(f"  on {report['images']:,} held-out pictures; look at {workdir / 'reconstructions.png'}")
    print(f"  {trained.steps:,} steps in {trained.seconds:.0f} s, {trained.images_per_second:.1f} pictures/s")
    return trained.codec


def _evenly(images: np.ndarray, count: int) -> np.ndarray:
    return images[np.linspace(0, len(images) - 1, min(count, len(images))).astype(int)]
