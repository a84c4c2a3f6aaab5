"""Training of the image codec: it learns, it resumes bitwise, its codebook follows the latents, and dead codes come back."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chameleon_jax import gin_utils
from chameleon_jax.configs import (
    TrainTokenizerConfig,
    VQConfig,
    VQTrainConfig,
)
from chameleon_jax.errors import CheckpointError, DataError, TokenizerError
from chameleon_jax.tokenizer_training import bundle, codec, codec_step, loop
from chameleon_jax.tokenizers import quantizer, vqgan

create = jax.jit(codec_step.create, static_argnums=(1, 2))
encode_latents = jax.jit(vqgan.encode_latents, static_argnums=2)
CONFIG = VQConfig(
    resolution=8,
    patch_size=4,
    channels=8,
    channel_multipliers=(1,),
    res_blocks=1,
    latent_channels=8,
    embed_dim=4,
    codes=16,
    norm_groups=4,
)
TRAIN = VQTrainConfig(
    steps=40,
    batch_size=8,
    learning_rate=3e-3,
    warmup_steps=2,
    dead_code_steps=3,
    eval_every=10,
    log_every=1,
    flip=True,
    jitter=1,
)


def _images(count=40):
    """Two-coloured squares: few enough kinds of patch for a small codebook."""
    generator = np.random.default_rng(0)
    colours = generator.integers(0, 256, (count, 2, 1, 2, 1, 1), dtype=np.uint8)
    return np.broadcast_to(colours, (count, 2, 4, 2, 4, 3)).reshape(count, 8, 8, 3).copy()


def _lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_training_lowers_the_error_and_reports_it(tmp_path):
    calls = []
    trained = codec.train_codec(_images(), CONFIG, TRAIN, tmp_path, lambda c: calls.append(c) or {"psnr": 1.0})
    losses = [line["l2"] for line in _lines(tmp_path) if "l2" in line]
    assert len(losses) == 40 and np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert len(calls) == 4 and {"step": 40, "eval/psnr": 1.0} in _lines(tmp_path)
    assert trained.steps == 40
    jax.tree.map(np.testing.assert_array_equal, codec.codec_of(trained.state, CONFIG).params, calls[-1].params)


def test_the_first_state_is_typed_as_those_that_follow_so_that_the_step_is_compiled_once():
    pixels = jnp.zeros((TRAIN.batch_size, 8, 8, 3))
    first = jax.eval_shape(lambda x: codec_step.create(x, CONFIG, TRAIN), pixels)
    after, _ = jax.eval_shape(lambda state, x: codec_step.train_step(state, x, CONFIG, TRAIN), first, pixels)
    assert jax.tree.leaves(jax.tree.map(lambda a, b: (a.weak_type, b.weak_type), first, after)).count(True) == 0
    assert jax.tree.map(lambda a: (a.shape, a.dtype), first) == jax.tree.map(lambda a: (a.shape, a.dtype), after)


class _Killed(Exception):
    pass


def test_a_killed_run_goes_on_bitwise_from_its_last_save(tmp_path):
    whole = codec.train_codec(_images(), CONFIG, TRAIN, tmp_path / "whole")

    def die_at_20(found, calls=[]):  # noqa: B006
        calls.append(found)
        if len(calls) == 2:
            raise _Killed
        return {}

    with pytest.raises(_Killed):
        codec.train_codec(_images(), CONFIG, TRAIN, tmp_path / "parts", die_at_20)
    resumed = codec.train_codec(_images(), CONFIG, TRAIN, tmp_path / "parts")
    assert resumed.steps == 30  # the save of step 10 was the last
    jax.tree.map(np.testing.assert_array_equal, resumed.state, whole.state)
    ours, theirs = (
        [line["objective"] for line in _lines(tmp_path / name) if "l2" in line] for name in ("whole", "parts")
    )
    assert ours == theirs and len(ours) == 40
    again = codec.train_codec(_images(), CONFIG, TRAIN, tmp_path / "parts")
    assert again.steps == 0


def test_a_foreign_or_damaged_state_is_refused(tmp_path):
    codec.train_codec(_images(), CONFIG, TRAIN, tmp_path)
    with pytest.raises(CheckpointError, match=r"VQTrainConfig.steps was 40, is 41\): .* delete the file"):
        codec.train_codec(_images(), CONFIG, dataclasses.replace(TRAIN, steps=41), tmp_path)
    with pytest.raises(CheckpointError, match=r"the images changed since .*: use the same sources, or another workdir"):
        codec.train_codec(_images(41), CONFIG, TRAIN, tmp_path)
    codec.train_codec(_images(), CONFIG, dataclasses.replace(TRAIN, log_every=7, eval_every=3, memory_gb=8), tmp_path)
    state = tmp_path / loop.STATE_FILE
    state.write_bytes(state.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="is damaged"):
        codec.train_codec(_images(), CONFIG, TRAIN, tmp_path)


@pytest.mark.parametrize(
    ("codec", "logs", "mark"), [("vqgan", ".", "evaluation.json"), ("sound", "sound", "sound_evaluation.json")]
)
def test_a_bundle_whose_state_was_deleted_was_still_trained_in_its_folder(tmp_path, codec, logs, mark):
    file, data = "gin_configs/runs/three_modalities_tokenizer.gin", f"DATA='{tmp_path}/none'"
    config = gin_utils.load(TrainTokenizerConfig, [file], [data]).config
    (tmp_path / f"{codec}.safetensors").touch()
    with pytest.raises(TokenizerError, match="was not trained in this folder"):
        bundle.train_bundle(config, tmp_path)
    (tmp_path / logs).mkdir(exist_ok=True)
    (tmp_path / logs / mark).touch()
    with pytest.raises(DataError, match="none"):  # goes on to the data
        bundle.train_bundle(config, tmp_path)


def test_pictures_of_another_size_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"40 pictures of shape \(4, 8, 3\)"):
        codec.train_codec(_images()[:, :4], CONFIG, TRAIN, tmp_path)


def test_batches_cover_every_picture_once_an_epoch_and_depend_on_step_alone():
    images = np.arange(40, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    train = dataclasses.replace(TRAIN, batch_size=8)
    epoch = [codec.training_batch(images, train, step)[:, 0, 0, 0] for step in range(5)]
    assert sorted(np.concatenate(epoch)) == list(range(40))
    np.testing.assert_array_equal(codec.training_batch(images, train, 3)[:, 0, 0, 0], epoch[3])
    later = np.concatenate([codec.training_batch(images, train, step)[:, 0, 0, 0] for step in range(5, 10)])
    assert sorted(later) == list(range(40)) and not np.array_equal(later, np.concatenate(epoch))
    assert len(codec.training_batch(images, dataclasses.replace(train, batch_size=100), 0)) == 100


def test_shifts_and_flips_keep_the_pixels_of_the_picture():
    image = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
    padded = np.pad(image[0], ((1, 1), (1, 1), (0, 0)), mode="edge")
    views = {
        v.tobytes() for y in range(3) for x in range(3) for w in [padded[y : y + 8, x : x + 8]] for v in (w, w[:, ::-1])
    }
    # a flip before the shift is a shift the other way after the flip, so both orders give the same 18 views
    batch = codec.training_batch(image, dataclasses.replace(TRAIN, batch_size=64), 0)
    found = {np.ascontiguousarray(picture).tobytes() for picture in batch}
    assert found <= views and len(found) > 9


def _state(train=TRAIN):
    return create(codec.to_pixels(_images()[:8]), CONFIG, train)


def _step(state, train=TRAIN):
    """The state after a step on eight pictures, its metrics, and the latents [32, 4] and codes [32] that the step saw."""
    pixels = codec.to_pixels(_images()[:8])
    latents = np.asarray(encode_latents(state.params, pixels, CONFIG)).reshape(-1, 4)
    codes = np.asarray(quantizer.nearest_codes(latents, vqgan.codebook(state.params)))
    kept = jax.tree.map(jnp.copy, state)  # the step takes the memory of its argument
    after, metrics = codec.jitted_step(kept, _images()[:8], CONFIG, train)
    return after, metrics, latents, codes


def test_codebook_is_the_running_mean_of_the_latents_that_chose_it():
    state = _state()
    after, metrics, latents, codes = _step(state)
    decay = TRAIN.ema_decay
    for code in range(16):
        count = decay + (1 - decay) * np.sum(codes == code)
        total = decay * np.asarray(state.sums)[code] + (1 - decay) * latents[codes == code].sum(axis=0)
        np.testing.assert_allclose(vqgan.codebook(after.params)[code], total / count, rtol=2e-5, atol=1e-6)
    assert metrics["batch_codes"] == len(np.unique(codes))


def test_dead_codes_restart_at_latents_of_the_batch_and_living_ones_stay():
    state = _state()
    book = vqgan.codebook(state.params).at[:4].set(1e3)  # codes that nothing chooses
    state = state.replace(params=state.params | {"quantize": {"embedding": book}}, sums=book)
    for step in range(3):
        state, _, latents, _ = _step(state)
        book = np.asarray(vqgan.codebook(state.params))
        assert (np.abs(book[:4]) > 100).all() == (step < 2)
    nearest = np.abs(book[:4, None] - latents[None]).max(axis=-1).min(axis=1)
    assert nearest.max() < 1e-6 and len(np.unique(book[:4], axis=0)) == 4
    assert not np.asarray(state.idle)[:4].any()


def test_gradient_codebook_moves_and_the_encoder_learns_through_it():
    """Without commitment the encoder's only gradient is the decoder's, by the straight-through estimator."""
    train = dataclasses.replace(TRAIN, codebook="gradient", commitment_weight=0.0, dead_code_steps=0)
    state = _state(train)
    after = _step(state.replace(step=jnp.int32(5)), train)[0]
    after, metrics, _, _ = _step(after, train)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state.params, after.params)
    assert min(jax.tree.leaves(moved["encoder"]["conv_in"])) > 0 and moved["quantize"]["embedding"] > 0
    expected = sum(float(metrics[name]) for name in ("l1", "l2", "codebook"))
    assert float(metrics["objective"]) == pytest.approx(expected, rel=1e-5)


def test_running_mean_codebook_has_no_codebook_term():
    assert codec_step.term_weights(TRAIN) == {"l1": 1.0, "l2": 1.0, "commitment": 0.25}
