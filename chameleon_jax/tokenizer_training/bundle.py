"""Trains a tokenizer bundle, text pieces and the codecs of its table, and measures each codec on data that it has not seen."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from chameleon_jax.configs import ModalityConfig, TrainTokenizerConfig
from chameleon_jax.errors import DataError
from chameleon_jax.evaluation import reconstruction
from chameleon_jax.tokenizer_training.codec import train_codec
from chameleon_jax.tokenizer_training.corpus import Corpus, preparers, read_corpus
from chameleon_jax.tokenizer_training.sound import train_sound
from chameleon_jax.tokenizers import vqgan
from chameleon_jax.tokenizers.bundle import CODECS, TEXT, TokenizerBundle, codec_folders
from chameleon_jax.tokenizers.codec import Codec
from chameleon_jax.tokenizers.perceived import PatchCodec
from chameleon_jax.tokenizers.pictures import PictureCodec
from chameleon_jax.tokenizers.sound import SoundCodec
from chameleon_jax.tokenizers.text import TextTokenizer, train_bpe
from chameleon_jax.workdir import BUNDLE, require_kind

HOLD_OUT_EVERY = 16  # where no eval_sources are given
GRID_IMAGES = 48


def train_bundle(config: TrainTokenizerConfig, workdir: str | Path) -> None:
    """Train the parts that the config asks for into `workdir`, which is a bundle as soon as all are there.

    Writes evaluation.json and reconstructions.png of pictures beside the codec, and what the training of sounds writes into a
    folder of the modality's name. Raises DataError when the sources lack what is asked for, ConfigError for a part that the
    table lacks.
    """
    workdir, vocab = Path(workdir), config.vocab
    require_kind(workdir, BUNDLE)
    wanted = [vocab.names[vocab.row(name)] for name in config.parts] or [r.name for r in vocab.modalities if r.codec]
    workdir.mkdir(parents=True, exist_ok=True)
    prepare = {name: make for name, make in preparers(config).items() if name in wanted}
    corpus = read_corpus(config.sources, vocab, prepare)
    for reject in corpus.rejects[:3]:
        print(f"left out: {reject}")
    found = [f"{len(items):,} different of '{name}'" for name, items in corpus.items.items()]
    print(", ".join([*found, f"{len(corpus.texts):,} texts, {len(corpus.rejects):,} left out"]))
    held_out = read_corpus(config.eval_sources, vocab, prepare)
    if not config.eval_sources:
        corpus, held_out = corpus.split(HOLD_OUT_EVERY)

    is_wanted = vocab.text.name in wanted
    text = _train_text(config, corpus) if is_wanted else _load_text(config, workdir)
    codecs: dict[str, Codec | None] = {}
    for row, folder in codec_folders(vocab, workdir):
        if row.name in wanted:
            codecs[row.name] = _train(row, config, corpus, held_out, Path(folder), workdir / row.name)
            codecs[row.name].save(folder)
        else:
            codecs[row.name] = CODECS[row.codec].load(folder)
    missing = [name for name, part in {vocab.text.name: text, **codecs}.items() if part is None]
    if not missing:
        bundle = TokenizerBundle(vocab_config=text.vocab_config, text=text, codecs=codecs)
        bundle.save(workdir)
        print(f"tokenizer bundle: {workdir}, {bundle.vocab.size:,} ids ({text.vocab_config.text.ids:,} text pieces)")
        return
    if text is not None:
        text.save(workdir / TEXT)
    lacking = ", ".join(f"'{name}'" for name in missing)
    print(f"{workdir} has nothing for {lacking} yet: run again with parts = [{lacking}]")


def _train(
    row: ModalityConfig, config: TrainTokenizerConfig, corpus: Corpus, held_out: Corpus, folder: Path, logs: Path
) -> Codec:
    """The codec of one row. Raises DataError where there is nothing to train on or nothing held out."""
    if row.codec == PatchCodec.kind:  # nothing of it is trained
        return PatchCodec(config=config.image, patches=row.length)
    items, unseen = corpus.items[row.name], held_out.items[row.name]
    if len(items) == 0 or len(unseen) == 0:
        raise DataError(f"{len(items)} of '{row.name}' to train on and {len(unseen)} held out: both need some")
    if row.codec == SoundCodec.kind:
        return train_sound(items, unseen, config.sound, config.sound_train, logs).codec
    return PictureCodec(config=config.image, vqgan=_train_pictures(items, unseen, config, folder))


def _train_text(config: TrainTokenizerConfig, corpus: Corpus) -> TextTokenizer:
    if not corpus.texts:
        raise DataError(
            "the sources hold no text; for codecs alone, name them in TrainTokenizerConfig.parts without "
            f"'{config.vocab.text.name}'"
        )
    return train_bpe(corpus.texts, config.vocab)


def _load_text(config: TrainTokenizerConfig, workdir: Path) -> TextTokenizer | None:
    path = workdir / TEXT
    return TextTokenizer.load(path, config.vocab) if path.exists() else None


def _train_pictures(
    images: np.ndarray, held_out: np.ndarray, config: TrainTokenizerConfig, workdir: Path
) -> vqgan.Codec:
    during = _evenly(held_out, config.vq_train.eval_images)

    def evaluate(codec: vqgan.Codec) -> dict[str, float]:
        return dataclasses.asdict(reconstruction.evaluate(codec, during))

    trained = train_codec(images, config.vq, config.vq_train, workdir, evaluate)
    report = dataclasses.asdict(reconstruction.evaluate(trained.codec, held_out))
    (workdir / "evaluation.json").write_text(json.dumps(report, indent=2) + "\n")
    grid = reconstruction.picture_grid(
        trained.codec, _evenly(held_out, GRID_IMAGES), scale=max(1, 64 // config.vq.resolution)
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
