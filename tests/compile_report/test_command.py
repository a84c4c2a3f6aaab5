"""The command, and the programs that it compiles, with the devices of this machine."""

import dataclasses
import json

import jax
import pytest

from chameleon_jax.compile_report import console, files, programs, refusal, report, sweep
from chameleon_jax.compile_report.memory import Alive
from chameleon_jax.configs import (
    DataConfig,
    EngineConfig,
    MeshConfig,
    PretrainConfig,
    StoreConfig,
    TrainConfig,
    TransformerConfig,
)
from chameleon_jax.errors import ConfigError
from chameleon_jax.models import params, transformer

MODEL = TransformerConfig(
    vocab_size=65536, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=64, max_seq_len=64
)


def config(batch=8, **mesh):
    return PretrainConfig(
        model=MODEL,
        data=DataConfig(stores=(StoreConfig(path="nowhere"),), seq_len=64),
        train=TrainConfig(steps=10, batch_size=batch),
        mesh=MeshConfig(**mesh),
    )


def made(kind, run, engine=EngineConfig(slots=2, block=4), prompt=32):  # noqa: B008
    return programs.program(run, kind, jax.devices(), engine, prompt)


@pytest.fixture(scope="module")
def trained():
    return report.compile_report(made("train", config(data=2, fsdp=2, tensor=2)))


def test_a_step_holds_its_state_in_place_and_sends_its_parameters(trained):
    parameters = 4 * params.count(transformer.param_specs(MODEL))
    memory = trained.memory
    assert 3 * parameters / 4 < memory.arguments < 3 * parameters  # and moments, over fsdp and tensor but for the norms
    assert memory.aliased > 0.99 * memory.arguments - 1e5
    assert trained.wire_bytes > parameters / 2
    assert sum(trained.wire_by("cause").values()) == sum(trained.wire_by("kind").values()) == trained.wire_bytes
    # Two for a multiplication and an addition, of at least the forward and the backward pass of every product.
    assert trained.cost.flops > 0.9 * trained.model_flops


def test_the_report_names_what_it_does_not_know(trained, tmp_path):
    text = console.text(trained)
    assert "a training step on 8 x cpu (data 2, fsdp 2, tensor 2)" in text and "nan" not in text
    assert "the token store nowhere is not here" in text and "no estimate of the time" in text
    files.write(trained, tmp_path, "gin")
    kept = json.loads((tmp_path / "report.json").read_text())
    assert kept["estimate"]["seconds"] is None and kept["memory"]["peak"] == trained.memory.peak
    assert (tmp_path / "report.png").stat().st_size > 10_000


@pytest.mark.parametrize("form", ["compute", "int8"])
def test_decoding_is_compiled_with_its_weights_and_cache_as_arguments(form):
    found = report.compile_report(
        made("decode", config(fsdp=4, tensor=2), EngineConfig(slots=2, block=4, weights=form))
    )
    size = {"compute": 2, "int8": 1}[form]
    assert "one id for each of 2 slots" in console.text(found)
    # The block itself, and the searches for the thresholds of top-k and top-p.
    assert [line.partition(":")[0] for line in found.unknown_loops] == ["lanes.py", "sampling.py", "sampling.py"]
    embedding = 2 * MODEL.vocab_size * MODEL.d_model
    matrices = size * (params.count(transformer.param_specs(MODEL)) - MODEL.vocab_size * MODEL.d_model)
    state = found.memory.arguments - (embedding + matrices) / 8
    assert 0 < state < 0.5e6


def test_a_prefill_is_compiled():
    found = report.compile_report(made("prefill", config(fsdp=4, tensor=2)))
    assert "a prefill of 8 prompts of 32 ids" in console.text(found) and found.cost.flops > 0


@pytest.mark.parametrize(
    ("kind", "run", "prompt", "told"),
    [
        ("train", config(data=3, fsdp=1, tensor=1), 32, r"axes \[3, 1, 1\] need 3 devices, there are 8"),
        ("train", config(fsdp=1, tensor=8), 32, r"model.n_heads = 4 is not a multiple of the mesh's tensor = 8"),
        ("train", config(batch=12, fsdp=8), 32, r"rows of a microbatch = 12 is not a multiple of .* = 8"),
        ("prefill", config(fsdp=8), 65, "--prompt=65 is longer than the 64 ids of a slot"),
    ],
)
def test_what_cannot_be_divided_is_refused_before_compiling(kind, run, prompt, told):
    with pytest.raises(ConfigError, match=told):
        made(kind, run, prompt=prompt)


def test_what_does_not_fit_is_refused_with_what_is_too_much(trained):
    def on(gib, **changes):
        small = dataclasses.replace(trained, chip=dataclasses.replace(trained.chip, hbm=int(gib * 2**30)), **changes)
        with pytest.raises(ConfigError) as caught:
            refusal.check(small)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "MeshConfig.fsdp, in place of data=2" in on(0.001) and "are temporaries" in on(0.001)
    full = dataclasses.replace(trained.memory, arguments=2**40)
    assert "1024.00 GiB are arguments; divide them over more devices" in on(1, memory=full)
    refusal.check(trained)
    told = "RESOURCE_EXHAUSTED: Ran out of memory on HBM,\nneeds 36.01G of 15.75G."
    words = str(
        refusal.of_compiler(trained.program, told, [Alive(bytes=2**30, shape="f32[4]", cause="x.py:1", name="a")])
    )
    assert (
        "a training step does not fit: Ran out of memory on HBM, needs 36.01G of 15.75G, the largest f32[4] (1.00 GiB"
        in words
    )


@pytest.mark.slow
def test_a_sweep_compiles_the_most_promising_meshes_and_names_the_best():
    """Two of the seven meshes of eight devices that divide eight rows, four heads and two heads of keys."""
    small = dataclasses.replace(config(), model=dataclasses.replace(MODEL, vocab_size=256, n_layers=1))
    found = sweep.sweep(small, jax.devices(), 2)
    assert len(found.tried) == 2 and found.left_out == 5
    best, measured = found.best
    assert measured.wire_bytes == min(one.wire_bytes for _, one in found.tried)
    text = sweep.text(found)
    assert f"--gin.MeshConfig.data={best.mesh.data} " in text and "--gin.TransformerConfig.remat='none'" in text


def test_a_sweep_without_a_mesh_is_refused():
    with pytest.raises(ConfigError, match="no mesh of 8 devices divides the model and 3 rows"):
        sweep.sweep(config(batch=3), jax.devices(), 1)
