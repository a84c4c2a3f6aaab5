"""The memory of a step, estimated from shapes, against what XLA plans for the compiled step; and runs that cannot fit."""

import dataclasses
import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from chameleon_jax.configs import (
    DataConfig,
    LossConfig,
    MeshConfig,
    PretrainConfig,
    StoreConfig,
    TrainableConfig,
    TrainConfig,
    TransformerConfig,
    VQConfig,
    VQTrainConfig,
    text_and_image,
)
from chameleon_jax.data.batch import Batch
from chameleon_jax.errors import ConfigError
from chameleon_jax.parallel.device_memory import device_memory, host_memory, in_words
from chameleon_jax.parallel.mesh import make_mesh
from chameleon_jax.tokenizer_training import codec, codec_step
from chameleon_jax.tokenizer_training import memory as codec_memory
from chameleon_jax.training import memory, state, step
from chameleon_jax.training.pretraining import PretrainTask
from chameleon_jax.training.task import Recipe

SMALL = {"vocab_size": 1024, "d_model": 128, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "head_dim": 32, "d_ff": 344}
VOCAB = text_and_image(image_codes=256, reserved=10, text_tokens=400, codes_per_image=16)


def recipe(batch=8, microbatches=1, seq_len=256, chunk=1024, memory_gb=0.0, trainable=("*",), **model):
    config = PretrainConfig(
        model=TransformerConfig(**{**SMALL, **model}),
        data=DataConfig(stores=(StoreConfig(path="none"),), seq_len=seq_len),
        train=TrainConfig(steps=10, batch_size=batch, microbatches=microbatches, memory_gb=memory_gb),
        loss=LossConfig(chunk=chunk),
        trainable=TrainableConfig(parameters=trainable),
    )
    return Recipe.of(PretrainTask(config=config, vocab=VOCAB), config)


def planned(compiled):
    """Bytes on one device: arguments, results that take no argument's place, and what lives in between."""
    found = compiled.memory_analysis()
    parts = found.argument_size_in_bytes, found.output_size_in_bytes, found.temp_size_in_bytes
    return sum(parts) - found.alias_size_in_bytes


def compiled_step(recipe, mesh):
    config = recipe.config
    ids, real = (
        jax.ShapeDtypeStruct((config.train.batch_size, config.data.seq_len), t) for t in (jnp.int32, jnp.float32)
    )
    names = {field.name: ids for field in dataclasses.fields(Batch)} | {"loss_weights": real, "pictures": None}
    with jax.set_mesh(mesh):
        make = step.compiled_train_step(recipe, mesh, statistics=False)
        return make.lower(state.abstract(recipe, mesh), Batch(**names)).compile()


@functools.cache
def alone(**settings):
    """(estimate, what XLA plans) of these settings on one device."""
    mesh, of = make_mesh(MeshConfig(), jax.devices()[:1]), recipe(**settings)
    return memory.estimate(of, mesh).total, planned(compiled_step(of, mesh))


PLAIN = {"batch": 16}
SHAPES = {
    "activations": PLAIN,
    "long rows of which most is computed again": {"batch": 2, "seq_len": 1024, "remat": "dots"},
    "a large vocabulary": {"batch": 4, "seq_len": 128, "vocab_size": 32768, "chunk": 512},
    "parameters alone, most of them frozen": {"batch": 2, "seq_len": 16, "d_ff": 4096, "trainable": ("head",)},
}
SLOW = ("a large vocabulary", "parameters alone, most of them frozen")


@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.slow) if c in SLOW else c for c in SHAPES])
def test_the_estimate_is_near_what_xla_plans(case):
    estimate, needed = alone(**SHAPES[case])
    assert 1 / memory.REFUSED < estimate / needed < memory.REFUSED


@pytest.mark.slow
def test_a_mesh_divides_state_and_activations():
    mesh, of = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)), recipe(batch=32, n_layers=1)
    ratio = memory.estimate(of, mesh).total / planned(compiled_step(of, mesh))
    assert 0.5 < ratio < memory.REFUSED


@pytest.mark.slow
def test_the_estimate_of_a_codec_is_near_what_xla_plans():
    config = VQConfig(
        resolution=32, patch_size=2, channels=16, channel_multipliers=(1, 2), res_blocks=1, latent_channels=32, embed_dim=8,
        codes=64, norm_groups=8,
    )  # fmt: skip
    train = VQTrainConfig(steps=10, batch_size=16)
    images = jax.ShapeDtypeStruct((16, config.resolution, config.resolution, 3), jnp.uint8)
    real = jax.ShapeDtypeStruct(images.shape, jnp.float32)
    begin = jax.eval_shape(functools.partial(codec_step.create, config=config, train=train), real)
    compiled = codec.jitted_step.lower(begin, images, config, train).compile()
    assert 1 / memory.REFUSED < codec_memory.step_bytes(config, train) / planned(compiled) < memory.REFUSED


def test_a_codec_that_cannot_fit_is_refused_with_what_to_lower():
    config = VQConfig(resolution=512)
    with pytest.raises(
        ConfigError, match=r"codec needs about .* TB of memory and this machine has .*batch_size \(20000\)"
    ):
        codec_memory.check(config, VQTrainConfig(batch_size=20000))
    codec_memory.check(config, VQTrainConfig(batch_size=20000, memory_gb=1e6))
    with pytest.raises(ConfigError, match=r"has 1 MB: .*say so in VQTrainConfig\.memory_gb$"):
        codec_memory.check(VQConfig(resolution=32), VQTrainConfig(memory_gb=1e-3))


def test_a_codec_may_have_all_of_the_host_whatever_devices_share_it(monkeypatch):
    assert jax.local_device_count() > 1
    monkeypatch.setattr(codec_memory, "host_memory", lambda: int(8e9))
    with pytest.raises(ConfigError, match="this machine has 8 GB"):
        codec_memory.check(VQConfig(resolution=512), VQTrainConfig(batch_size=20000))


def refusal(**settings):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with pytest.raises(ConfigError) as caught:
        memory.check(recipe(**settings), mesh)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_run_that_cannot_fit_is_refused_with_what_to_lower():
    large = refusal(d_model=16384, d_ff=65536, n_layers=64, vocab_size=65536)
    assert "a step needs about " in large and "lower TransformerConfig.d_model (16384)" in large
    assert "raise TrainConfig.microbatches (1), or set TransformerConfig.remat='full'" in refusal(
        batch=512, memory_gb=1
    )
    assert "lower DataConfig.seq_len (256)" in refusal(batch=4, microbatches=4, memory_gb=0.02)
    scores = refusal(batch=8, memory_gb=0.1, remat="full", vocab_size=8192, chunk=2048, n_layers=1)
    assert "lower LossConfig.chunk (2,048)" in scores and scores.endswith("say so in TrainConfig.memory_gb")


def test_a_run_that_fits_is_not_refused():
    mesh, (_, needed) = make_mesh(MeshConfig(), jax.devices()[:1]), alone(**PLAIN)
    memory.check(recipe(**PLAIN, memory_gb=needed / 1e9), mesh)
    memory.check(recipe(**PLAIN), mesh)


def test_a_machine_has_memory_that_its_devices_share():
    assert 1e8 < device_memory(jax.devices()[0]) * len(jax.local_devices()) <= host_memory()
    assert [in_words(size) for size in (152.3e9, 1.5e12, 12e6, 20)] == ["152 GB", "1.5 TB", "12 MB", "1 kB"]


def test_the_command_says_it_in_one_line_before_anything_is_allocated(tmp_path, build_store):
    store = build_store(tmp_path / "store")
    fields = {"d_model": 16384, "d_ff": 65536, "n_layers": 64, "max_seq_len": 256}
    command = [
        sys.executable,
        "-m",
        "experiments.pretrain",
        "--gin_file=gin_configs/base.gin",
        f"--workdir={tmp_path / 'run'}",
    ]
    command += [f"--gin.TransformerConfig.{name}={value}" for name, value in fields.items()]
    command += ["--gin.StoreConfig.path=" + store.path, "--gin.DataConfig.stores=[@StoreConfig()]"]
    command += ["--gin.DataConfig.seq_len=256", "--gin.TrainConfig.steps=2", "--gin.TrainConfig.batch_size=8"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: a step needs about ")
    assert not (tmp_path / "run" / "checkpoints" / "1").exists()
