"""Samples during a run show what the model makes of held-out documents, and change no number of the run."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

from chameleon_jax.checkpoints.restore import restore_subtree
from chameleon_jax.configs import (
    CheckpointConfig,
    DataConfig,
    OptimConfig,
    PretrainConfig,
    SourceConfig,
    StoreConfig,
    TokenizeConfig,
    TrainConfig,
    TransformerConfig,
)
from chameleon_jax.data.pipeline import tokenize
from chameleon_jax.errors import TokenizerError
from chameleon_jax.evaluation.training_samples import TrainingSamples
from chameleon_jax.training import telemetry
from chameleon_jax.training.loop import pretrain
from chameleon_jax.training.samples import Sound
from tests.tiny_run import make_other_run, make_run


def make_store(folder, bundle, records):
    folder.mkdir()
    Image.new("RGB", (16, 16), "red").save(folder / "red.png")
    (folder / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    bundle.save(folder / "tokenizer")
    source = SourceConfig(name="data", kind="jsonl", path=str(folder / "data.jsonl"))
    tokenize(TokenizeConfig(sources=(source,), tokenizer=str(folder / "tokenizer")), folder / "store")
    return str(folder / "store")


def make_config(store, **train):
    shape = {"d_model": 32, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "head_dim": 16, "d_ff": 32}
    settings = {"steps": 6, "batch_size": 8, "log_every": 1, "eval_every": 6, "eval_batches": 1, "peak_flops": 1e12}
    return PretrainConfig(
        model=TransformerConfig(vocab_size=0, max_seq_len=64, compute_dtype="float32", dropout=0.1, **shape),
        data=DataConfig(stores=(StoreConfig(path=store),), seq_len=64),
        train=TrainConfig(**settings, **train),
        optim=OptimConfig(learning_rate=1e-2),
        checkpoint=CheckpointConfig(every_steps=6),
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Pairs of a picture and a caption, in both orders, and a text."""
    pairs = [{"text": "a red heart", "image": "red.png"}] * 30
    return make_store(tmp_path_factory.mktemp("made") / "pairs", make_run().bundle, [*pairs, {"text": "some words"}])


@pytest.fixture(scope="module")
def runs(store, tmp_path_factory):
    """Workdirs of one run without samples and with them, on a mesh of eight devices."""
    plain, sampled = (tmp_path_factory.mktemp(name) for name in ("plain", "sampled"))
    assert pretrain(make_config(store), str(plain)) == 0
    config = make_config(store, sample_every=4)
    assert pretrain(config, str(sampled), sampler=TrainingSamples(config)) == 0
    return plain, sampled


@pytest.mark.slow
def test_the_parameters_and_losses_of_a_run_are_the_same_bits_with_samples_and_without(runs):
    plain, sampled = (restore_subtree(run / "checkpoints", "params").state for run in runs)
    assert all(map(np.array_equal, jax.tree.leaves(plain), jax.tree.leaves(sampled)))
    lines = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs]
    losses = [[(line["step"], line["loss"], line["norm/gradient"]) for line in found] for found in lines]
    assert losses[0] == losses[1] and len(losses[0]) == 6


@pytest.mark.slow
def test_a_run_keeps_pages_of_its_schedule_and_of_its_end(runs):
    plain, sampled = runs
    assert not (plain / "samples").exists()
    assert [page.name for page in sorted((sampled / "samples").iterdir())] == ["0000004.png", "0000006.png"]
    (events,) = (sampled / "tensorboard").iterdir()
    words = events.read_bytes().decode("latin-1")
    assert words.count("**text to image** given: a red heart") == words.count("**image to text** made: ") == 8


def test_samples_are_the_same_draws_each_time_and_lie_in_the_workdir_and_in_tensorboard(store, tmp_path):
    run = make_run(context=64)
    config = make_config(store, sample_every=1, sample_prompts=("some words",))
    sampler = TrainingSamples(dataclasses.replace(config, model=run.model))
    first, again = sampler(run.params, 1), sampler(run.params, 2)
    assert first.words == again.words and first.page.shape == again.page.shape
    assert "**text to image** given: some words" in first.words and "given: a red heart" not in first.words
    assert first.words.count("**image to text** made: ") == 4 and "was: a red heart" in first.words
    writer = telemetry.MetricWriter(tmp_path, resume_step=0, run_config={})
    sound = Sound(file=b"RIFF", rate=1000, seconds=0.5)
    page = writer.write_samples(7, dataclasses.replace(first, sounds={"words_to_calls_0-0": sound}))
    writer.close()
    assert page == tmp_path / "samples" / "0000007.png" and np.array_equal(Image.open(page), first.page)
    assert (tmp_path / "samples" / "0000007-words_to_calls_0-0.wav").read_bytes() == b"RIFF"
    (events,) = (tmp_path / "tensorboard").iterdir()
    held = events.read_bytes()
    assert all(part in held for part in (b"\x89PNG", b"given: some words", b"RIFF", b"audio/wav"))


@pytest.mark.slow
def test_other_modalities_are_sampled_alike(tmp_path):
    run = make_other_run()
    moves = [{"segments": [{"text": "a red heart"}, {"moves": [0, 3, 1]}]}] * 6
    beeps = [{"segments": [{"moves": [2, 2]}, {"beeps": list(range(6)) * 2}]}] * 6
    sampler = TrainingSamples(make_config(make_store(tmp_path / "other", run.bundle, [*moves, *beeps]), sample_every=1))
    sampler._config = dataclasses.replace(sampler._config, model=run.model)
    words = sampler(run.params, 1).words
    for kind in ("words to moves", "moves to words", "moves to beeps", "beeps to moves"):
        assert f"**{kind}** given: " in words
    assert "was: [moves 0 3 1]" in words and "was: [beeps 0 1 2 3 4 5 0 1 2 3 4 5]" in words


def test_a_store_without_its_tokenizer_is_refused_before_training(store, make_store):
    with pytest.raises(TokenizerError, match=r"tokenizer bundle .* does not exist"):
        TrainingSamples(make_config(make_store().path, sample_every=1))
