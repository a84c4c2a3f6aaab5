"""A run starts from the parameters of another: same loss, on any mesh, with new ids; and refuses what does not belong to it."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from chameleon_jax.checkpoints.checkpointer import Checkpointer
from chameleon_jax.checkpoints.restore import restore_subtree
from chameleon_jax.configs import (
    CheckpointConfig,
    DataConfig,
    ImageConfig,
    InitConfig,
    MeshConfig,
    OptimConfig,
    PretrainConfig,
    StoreConfig,
    TrainConfig,
    TransformerConfig,
    text_and_image,
)
from chameleon_jax.data.loader import Loader
from chameleon_jax.errors import CheckpointError, ConfigError
from chameleon_jax.models import params, transformer
from chameleon_jax.parallel import distributed
from chameleon_jax.parallel.mesh import TRAINING, make_mesh
from chameleon_jax.tokenizers.bundle import TokenizerBundle
from chameleon_jax.tokenizers.text import train_bpe
from chameleon_jax.training import step as step_lib
from chameleon_jax.training.initial import RunTokenizer, initial_params
from chameleon_jax.training.loop import pretrain
from chameleon_jax.training.pretraining import PretrainTask
from chameleon_jax.training.task import Recipe

SIZES = text_and_image(image_codes=50, reserved=4, text_tokens=290, codes_per_image=16)
NAMES = tuple(f"<new{i}>" for i in range(16))
ONE = MeshConfig(data=1, fsdp=1, tensor=1)


@pytest.fixture(scope="module")
def bundle():
    text = train_bpe(["a red fox and a green frog in the red grass"] * 9, SIZES)
    return TokenizerBundle.of_pictures(images=ImageConfig(resolution=16), text=text, vqgan=None)


@pytest.fixture(scope="module")
def store(bundle, build_store, tmp_path_factory):
    """store(bundle) -> path of the same documents, said to be of that bundle, which lies beside them."""

    def build(which):
        path = tmp_path_factory.mktemp("stores") / "store"
        made = build_store(path, vocab_config=which.vocab_config, bundle_fingerprint=which.fingerprint())
        which.save(path / "tokenizer")
        return made.path

    return build


@pytest.fixture(scope="module")
def config(bundle, store):
    """Five spare rows behind the vocabulary."""
    return PretrainConfig(
        model=TransformerConfig(
            vocab_size=bundle.vocab.size + 5, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=48, max_seq_len=64,
            compute_dtype="float32",
        ),
        data=DataConfig(stores=(StoreConfig(path=store(bundle)),), seq_len=64),
        train=TrainConfig(steps=8, batch_size=8, log_every=1, peak_flops=1e12),
        optim=OptimConfig(learning_rate=1e-2, warmup_steps=2),
        checkpoint=CheckpointConfig(every_steps=4),
        mesh=MeshConfig(data=2, fsdp=2, tensor=2),
    )  # fmt: skip


@pytest.fixture(scope="module")
def source(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("source")
    assert pretrain(config, str(workdir)) == 0
    return workdir


def from_source(config, source, model=None, data=None, **init):
    """The config of one step that starts from the source, with changes."""
    return dataclasses.replace(
        config,
        init_from=InitConfig(workdir=str(source), **init),
        model=dataclasses.replace(config.model, **(model or {})),
        data=data or config.data,
        train=dataclasses.replace(config.train, steps=1),
        checkpoint=CheckpointConfig(every_steps=1),
    )


def first_loss(workdir):
    """The logged loss of the first step, which is that of the parameters before it."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return next(line["loss"] for line in lines if "loss" in line)


def evaluated(config, source, step=8):
    """Mean loss of the source's parameters on batch 0 of the run, on one device, and its sums."""
    mesh = make_mesh(ONE, jax.devices()[:1])
    weights = restore_subtree(source / "checkpoints" / str(step), "params").state
    batch = Loader(config.data, config.train.batch_size, 1).host_batch(0)
    with jax.set_mesh(mesh):
        sums = jax.device_get(
            step_lib.compiled_eval_step(Recipe.of(PretrainTask(config=config), config), mesh)(weights, batch)
        )
    return float(sums.nll.sum() / sums.weight.sum()), weights, batch


def load_initial(config, source, bundle, mesh, model=None, **init):
    tokenizer = RunTokenizer(
        fingerprint=bundle.fingerprint(),
        vocab=bundle.vocab_config,
        folder=config.data.stores[0].path + "/tokenizer",
    )
    init = InitConfig(workdir=str(source), **init)
    return initial_params(init, model or config.model, tokenizer, mesh, jax.random.key(0))


def test_the_first_loss_is_that_of_the_source_and_the_order_is_own_then_init_then_scratch(
    config, source, tmp_path, caplog
):
    caplog.set_level("INFO")
    run = from_source(config, source)
    assert pretrain(run, str(tmp_path)) == 0
    assert f"starting from step 8 of {source}" in caplog.text
    assert first_loss(tmp_path) == pytest.approx(evaluated(config, source)[0], abs=1e-5)
    assert json.loads((tmp_path / "config.json").read_text())["init_from"]["workdir"] == str(source)
    # resumed, the source need not exist
    caplog.clear()
    gone = dataclasses.replace(run, init_from=InitConfig(workdir=str(source) + "-gone"))
    assert pretrain(gone, str(tmp_path)) == 0
    assert "starting" not in caplog.text and "resuming from step 1" in caplog.text
    moved = source.rename(source.with_name("away"))
    try:
        assert pretrain(run, str(tmp_path)) == 0
    finally:
        moved.rename(source)
    assert "resuming from step 1" in caplog.text


@pytest.mark.parametrize("spare", [5, 21])
def test_sixteen_new_ids_raise_the_loss_by_their_share_of_z_and_nothing_else(
    config, source, bundle, store, tmp_path, spare
):
    """With the vocabulary's end at 16 ids more, of which 5 take the spare rows, and with 5 or 21 rows to spare behind it."""
    extended = bundle.with_added(NAMES)
    data = dataclasses.replace(config.data, stores=(StoreConfig(path=store(extended)),))
    vocab_size = bundle.vocab.size + 16 + spare
    run = from_source(config, source, model={"vocab_size": vocab_size}, data=data)
    assert pretrain(run, str(tmp_path)) == 0
    loss, weights, batch = evaluated(config, source)
    hidden = transformer.forward(weights, batch.tokens, batch.positions, batch.segment_ids, config.model).hidden
    p_pad = jax.nn.softmax(transformer.logits(weights, hidden, config.model))[..., bundle.vocab.pad]
    new_columns = vocab_size - config.model.vocab_size
    rise = np.sum(np.log1p(new_columns * p_pad) * batch.loss_weights) / np.sum(batch.loss_weights)
    assert first_loss(tmp_path) == pytest.approx(loss + rise, abs=1e-5)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    tokenizer = RunTokenizer(
        fingerprint=extended.fingerprint(), vocab=extended.vocab_config, folder=data.stores[0].path + "/tokenizer"
    )
    made = initial_params(run.init_from, run.model, tokenizer, mesh, jax.random.key(0)).params
    old = bundle.vocab.size
    mean = weights["embed"][bundle.vocab.text.start : bundle.vocab.text.stop].mean(0)
    np.testing.assert_array_equal(made["embed"][:old], weights["embed"][:old])
    np.testing.assert_allclose(made["embed"][old:], np.tile(mean, (vocab_size - old, 1)), atol=1e-6)
    np.testing.assert_array_equal(made["head"][:, : old + 5], weights["head"])
    wanted = params.shardings(transformer.param_specs(run.model), mesh, TRAINING)
    jax.tree.map(lambda leaf, sharding: np.testing.assert_equal(leaf.sharding, sharding), made, wanted)


def test_new_ids_in_spare_rows_leave_the_loss_as_it_was(config, source, bundle, store, tmp_path):
    data = dataclasses.replace(config.data, stores=(StoreConfig(path=store(bundle.with_added(NAMES[:5]))),))
    assert pretrain(from_source(config, source, data=data), str(tmp_path)) == 0
    assert first_loss(tmp_path) == pytest.approx(evaluated(config, source)[0], abs=1e-5)


def test_what_the_patterns_leave_out_starts_from_scratch_and_all_is_cast(config, source, bundle):
    model = dataclasses.replace(config.model, param_dtype="bfloat16")
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    made = load_initial(config, source, bundle, mesh, model=model, parameters=("layers/*", "norm"), step=4)
    assert "from scratch: embed, head" in made.description and "step 4" in made.description
    theirs = restore_subtree(source / "checkpoints" / "4", "params").state
    scratch = transformer.init(jax.random.key(0), model)
    expected = {
        **jax.tree.map(lambda x: x.astype("bfloat16"), theirs),
        "embed": scratch["embed"],
        "head": scratch["head"],
    }
    jax.tree.map(np.testing.assert_array_equal, made.params, expected)


def test_untied_parts_start_as_copies_and_with_the_loss_of_the_source(config, source, tmp_path):
    run = from_source(config, source, model={"untied": ("mlp", "norms", "attention")})
    assert pretrain(run, str(tmp_path)) == 0
    assert first_loss(tmp_path) == pytest.approx(evaluated(config, source)[0], abs=1e-5)
    # and an untied run is a source for another, but for no tied one
    assert pretrain(from_source(run, tmp_path), str(tmp_path / "more")) == 0
    with pytest.raises(ConfigError, match=r"'layers/attn/k_norm/bias' is \[2, 1, 8\] in this run and \[2, 2, 1, 8\]"):
        pretrain(from_source(config, tmp_path), str(tmp_path / "tied"))


@pytest.mark.parametrize(
    ("model", "init", "message"),
    [
        ({"d_ff": 64}, {}, r"'layers/mlp/down' is \[2, 64, 32\] in this run and \[2, 48, 32\] in step 8"),
        ({"vocab_size": 300}, {}, r"'embed' is \[300, 32\] in this run and \[\d+, 32\]"),
        ({"qk_norm": False}, {}, r"'layers/attn/k_norm/bias' is \[2, 1, 8\] in step 8 .* and missing in this run"),
        ({"untied": ("mlp",), "d_ff": 64}, {}, r"'layers/mlp/down' is \[2, 64, 32\] in this run and \[2, 48, 32\]"),
        ({"norm_order": "swin"}, {}, r"norm_order is 'swin' in this run and 'pre' in"),
        ({}, {"parameters": ("layer/*",)}, r"no parameter is named 'layer/\*'"),
        ({}, {"step": 5}, r"has no step 5; it has 4, 8"),
    ],
)
def test_parameters_that_do_not_fit_are_refused_by_name(config, source, bundle, model, init, message):
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **model))
    with pytest.raises((ConfigError, CheckpointError), match=message):
        load_initial(config, source, bundle, make_mesh(ONE, jax.devices()[:1]), **init)


def test_a_path_that_is_no_run_is_refused(config, bundle, tmp_path):
    with pytest.raises(CheckpointError, match=r"init_from: .* is no run: it has no steps"):
        load_initial(config, tmp_path / "nowhere", bundle, make_mesh(ONE, jax.devices()[:1]))


def test_another_tokenizer_is_refused_with_both_fingerprints_unless_no_ids_are_taken(config, source, bundle):
    other = TokenizerBundle.of_pictures(images=ImageConfig(resolution=32), text=bundle.text, vqgan=None)
    mesh = make_mesh(ONE, jax.devices()[:1])
    with pytest.raises(ConfigError, match=rf"{bundle.fingerprint()}.*{other.fingerprint()}"):
        load_initial(config, source, other, mesh)
    assert load_initial(config, source, other, mesh, parameters=("layers/*", "norm")).params["norm"].shape == (32,)
    # an extension is proved by its bundle, not by its name
    pretended = dataclasses.replace(bundle, vocab_config=dataclasses.replace(SIZES, added=NAMES))
    with pytest.raises(ConfigError, match="does not extend it"):
        load_initial(config, source, pretended, mesh)


def test_a_damaged_step_is_passed_over_or_named_when_it_was_asked_for(config, source, bundle, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(source, copy)
    needle = np.asarray(restore_subtree(source / "checkpoints" / "8", "params").state["embed"])[100, :4].tobytes()
    (data,) = [p for p in (copy / "checkpoints" / "8").rglob("*") if p.is_file() and needle in p.read_bytes()]
    content = bytearray(data.read_bytes())
    content[content.index(needle)] ^= 1  # a byte of the parameters: those of the optimiser are not read
    data.write_bytes(content)
    mesh = make_mesh(ONE, jax.devices()[:1])
    with pytest.raises(CheckpointError, match=r"no step of .*copy can be used \(8: .*does not match its checksum"):
        load_initial(config, copy, bundle, mesh, step=8)
    assert "step 4" in load_initial(config, copy, bundle, mesh).description


def test_a_manifest_that_another_process_cannot_read_is_passed_over_here_too(config, source, bundle, monkeypatch):
    """The other process is an answer put in place of the exchange."""

    def share(value, what, timeout=0.0):
        return [value, "ValueError: torn" if what == "reading the manifest of step 8 to start from" else None]

    monkeypatch.setattr(distributed, "share", share)
    made = load_initial(config, source, bundle, make_mesh(ONE, jax.devices()[:1]))
    assert "starting from step 4" in made.description
    with pytest.raises(CheckpointError, match=r"can be used \(8: ValueError: torn \(found by process 1\)\)"):
        load_initial(config, source, bundle, make_mesh(ONE, jax.devices()[:1]), step=8)


def test_a_source_without_a_tokenizer_is_refused(config, source, bundle, tmp_path):
    weights = restore_subtree(source / "checkpoints", "params").state
    checkpointer = Checkpointer(tmp_path / "checkpoints", CheckpointConfig())
    checkpointer.save(0, {"params": weights}, {"config": {"model": config.model.to_dict()}})
    checkpointer.close()
    with pytest.raises(ConfigError, match="has no tokenizer that says what its ids mean"):
        load_initial(config, tmp_path, bundle, make_mesh(ONE, jax.devices()[:1]))
