"""Trains a tokenizer bundle, text pieces and the codecs of its table, and measures each codec on data that it has not seen."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from chameleon_jax.configs import ModalityConfig, TrainTokenizerConfig
from chameleon_jax.data.sources import require_apart_from
from chameleon_jax.errors import DataError, TokenizerError
from chameleon_jax.evaluation import reconstruction
from chameleon_jax.evaluation import sound as sound_measures
from chameleon_jax.files import atomic_write
from chameleon_jax.progress import printable
from chameleon_jax.tokenizer_training import codec as picture_training
from chameleon_jax.tokenizer_training import memory
from chameleon_jax.tokenizer_training import sound as sound_training
from chameleon_jax.tokenizer_training.corpus import Corpus, preparers, read_corpus
from chameleon_jax.tokenizer_training.loop import STATE_FILE, Trained
from chameleon_jax.tokenizers import vqgan
from chameleon_jax.tokenizers.bundle import CODECS, TEXT, TokenizerBundle, codec_folders
from chameleon_jax.tokenizers.codec import Codec
from chameleon_jax.tokenizers.perceived import PatchCodec
from chameleon_jax.tokenizers.pictures import PictureCodec
from chameleon_jax.tokenizers.sound import SoundCodec
from chameleon_jax.tokenizers.text import TextTokenizer, train_bpe
from chameleon_jax.training.signals import EXIT_STOPPED, Stopped, StopRequest
from chameleon_jax.workdir import BUNDLE, VOCAB, open_workdir, require_kind

HOLD_OUT_EVERY = 16  # where no eval_sources are given
TOLD = 3  # records left out, that are named
GRID_IMAGES = 48
GRID_SOUNDS = 20
EVALUATION, SOUND_EVALUATION = "evaluation.json", "sound_evaluation.json"
Stop = Callable[[], bool]


def train_bundle(config: TrainTokenizerConfig, workdir: str | Path) -> int:
    """Train the parts that the config asks for into `workdir`, which is a bundle as soon as all are there.

    Returns the exit code: 0 done, 75 stopped by a signal and saved, to go on when called again.

    Writes evaluation.json and reconstructions.png of pictures beside the codec, and what the training of sounds writes into a
    folder of the modality's name. Raises DataError when the sources lack what is asked for, ConfigError for a part that the
    table lacks, WorkdirError for a workdir among the data.
    """
    workdir = Path(workdir)
    require_kind(workdir, BUNDLE)
    require_apart_from(workdir, (*config.sources, *config.eval_sources))
    with StopRequest() as request, open_workdir(workdir):
        try:
            _train_parts(config, workdir, lambda: request.requested)
        except Stopped:
            return EXIT_STOPPED
    return 0


def _train_parts(config: TrainTokenizerConfig, workdir: Path, stop: Stop) -> None:
    vocab = config.vocab
    wanted = [vocab.names[vocab.row(name)] for name in config.parts] or [r.name for r in vocab.modalities if r.codec]
    _keep_others_codecs(config, workdir, wanted)
    if any(row.codec == PictureCodec.kind and row.name in wanted for row in vocab.modalities):
        memory.check(config.vq, config.vq_train)  # before everything is read
    prepare = {name: make for name, make in preparers(config).items() if name in wanted}
    corpus = read_corpus(config.sources, vocab, prepare, stop)
    for reject in corpus.rejects[:TOLD]:
        print(f"left out: {printable(reject)}")
    if (more := len(corpus.rejects) - TOLD) > 0:
        print(f"left out: and {more:,} more")
    found = [f"{len(items):,} different of '{name}'" for name, items in corpus.items.items()]
    print(", ".join([*found, f"{len(corpus.texts):,} texts, {len(corpus.rejects):,} left out"]))
    held_out = read_corpus(config.eval_sources, vocab, prepare, stop)
    if not config.eval_sources:
        corpus, held_out = corpus.split(HOLD_OUT_EVERY)

    is_wanted = vocab.text.name in wanted
    text = _train_text(config, corpus) if is_wanted else _load_text(config, workdir)
    _keep_others_text(config, workdir, text)
    codecs: dict[str, Codec | None] = {}
    for row, folder in codec_folders(vocab, workdir):
        if row.name in wanted:
            codecs[row.name] = _train(row, config, corpus, held_out, Path(folder), workdir / row.name, stop)
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


def _keep_others_codecs(config: TrainTokenizerConfig, workdir: Path, wanted: list[str]) -> None:
    """Raise TokenizerError for a folder with a codec that no training in it made: one that was copied or converted."""
    for row, folder in codec_folders(config.vocab, workdir):
        is_sound = row.codec == SoundCodec.kind
        logs = workdir / row.name if is_sound else Path(folder)
        marks = (STATE_FILE, SOUND_EVALUATION if is_sound else EVALUATION)  # a state that was damaged may be deleted
        weights = Path(folder) / f"{row.codec}.safetensors"
        if row.name in wanted and weights.exists() and not any((logs / mark).exists() for mark in marks):
            raise TokenizerError(
                f"{weights} was not trained in this folder and would be overwritten: choose another --workdir"
            )


def _keep_others_text(config: TrainTokenizerConfig, workdir: Path, text: TextTokenizer | None) -> None:
    """Raise TokenizerError for a finished bundle of other pieces: what was tokenized with it could not be read any more."""
    if text is None or not (workdir / VOCAB).is_file():
        return
    if TokenizerBundle.load(workdir, with_pictures=False).text.to_json() != text.to_json():
        raise TokenizerError(
            f"{workdir} holds a tokenizer of other texts or another table, whose ids would change: choose another --workdir"
        )


def _train(
    row: ModalityConfig,
    config: TrainTokenizerConfig,
    corpus: Corpus,
    held_out: Corpus,
    folder: Path,
    logs: Path,
    stop: Stop,
) -> Codec:
    """The codec of one row. Raises DataError where there is nothing to train on or nothing held out, Stopped for a signal."""
    if row.codec == PatchCodec.kind:  # nothing of it is trained
        return PatchCodec(config=config.image, patches=row.length)
    items, unseen = corpus.items[row.name], held_out.items[row.name]
    if len(items) == 0 or len(unseen) == 0:
        raise DataError(f"{len(items)} of '{row.name}' to train on and {len(unseen)} held out: both need some")
    if row.codec == SoundCodec.kind:
        return _train_sounds(items, unseen, config, logs, stop)
    return PictureCodec(config=config.image, vqgan=_train_pictures(items, unseen, config, folder, stop))


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
    images: np.ndarray, held_out: np.ndarray, config: TrainTokenizerConfig, folder: Path, stop: Stop
) -> vqgan.Codec:
    during = _evenly(held_out, config.vq_train.eval_images)

    def evaluate(codec: vqgan.Codec) -> dict[str, float]:
        return dataclasses.asdict(reconstruction.evaluate(codec, during))

    trained = picture_training.train_codec(images, config.vq, config.vq_train, folder, evaluate, stop)
    codec = picture_training.codec_of(trained.state, config.vq)
    report = dataclasses.asdict(reconstruction.evaluate(codec, held_out))
    atomic_write(folder / EVALUATION, json.dumps(report, indent=2) + "\n")
    scale, picture = max(1, 64 // config.vq.resolution), folder / "reconstructions.png"
    reconstruction.picture_grid(codec, _evenly(held_out, GRID_IMAGES), scale=scale).save(picture)
    decibels = {"psnr": " dB", "psnr_of_set": " dB"}
    _say(report, decibels | {"ssim": "", "codebook_usage": "", "perplexity": ""}, "images", picture, trained)
    return codec


def _train_sounds(
    waveforms: np.ndarray, held_out: np.ndarray, config: TrainTokenizerConfig, folder: Path, stop: Stop
) -> SoundCodec:
    sound_training.require_sounds(held_out, config.sound, "held out")
    trained = sound_training.train_sound(waveforms, config.sound, config.sound_train, folder, stop)
    codec = sound_training.codec_of(trained.state, config.sound)
    report = dataclasses.asdict(sound_measures.evaluate(codec, held_out))
    atomic_write(folder / SOUND_EVALUATION, json.dumps(report, indent=2) + "\n")
    picture = folder / "sound_reconstructions.png"
    sound_measures.spectrogram_grid(codec, _evenly(held_out, GRID_SOUNDS)).save(picture)
    decibels = {"log_spectral_distance": " dB", "distance_of_spectrum": " dB"}
    _say(report, decibels | {"codebook_usage": "", "perplexity": ""}, "sounds", picture, trained)
    return codec


def _say(report: dict[str, Any], units: dict[str, str], items: str, picture: Path, trained: Trained) -> None:
    """The measures named in `units`, and what training took, on the console."""
    width = max(map(len, units)) + 2
    for name, unit in units.items():
        print(f"  {name:<{width}}{report[name]:10.3f}{unit}")
    print(f"  on {report[items]:,} held-out {items}; look at {picture}")
    print(f"  {trained.steps:,} steps in {trained.seconds:.0f} s, {trained.items_per_second:.1f} {items}/s")


def _evenly(items: np.ndarray, count: int) -> np.ndarray:
    return items[np.linspace(0, len(items) - 1, min(count, len(items))).astype(int)]
