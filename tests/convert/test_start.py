"""Training starts from a converted release: the first loss is that of the release, on a mesh and with new ids."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from chameleon_jax.configs import DataConfig, InitConfig, MeshConfig, PretrainConfig, StoreConfig, TrainConfig
from chameleon_jax.data.loader import Loader
from chameleon_jax.generation.loading import load_run
from chameleon_jax.models import transformer
from chameleon_jax.training import losses
from chameleon_jax.training.loop import pretrain

pytest.importorskip("torch")

NAMES = tuple(f"<new{i}>" for i in range(16))


@pytest.mark.parametrize("names", [(), NAMES], ids=["same tokenizer", "16 new ids"])
def test_training_starts_from_a_converted_release(release_tree, convert, build_store, tmp_path, names):
    assert convert("--source", release_tree / "models" / "30b", "--output", tmp_path / "release")[0] == 0
    release = load_run(tmp_path / "release")
    bundle = release.bundle.with_added(names)
    made = build_store(
        tmp_path / "store", count=20, vocab_config=bundle.vocab_config, bundle_fingerprint=bundle.fingerprint()
    )
    bundle.save(tmp_path / "store" / "tokenizer")
    model = dataclasses.replace(
        release.model, vocab_size=release.model.vocab_size + len(names), param_dtype="float32", compute_dtype="float32"
    )
    config = PretrainConfig(
        model=model,
        data=DataConfig(stores=(StoreConfig(path=made.path),), seq_len=48),
        train=TrainConfig(steps=1, batch_size=8, log_every=1, peak_flops=1e12),
        mesh=MeshConfig(data=2, fsdp=2, tensor=2),
        init_from=InitConfig(workdir=str(tmp_path / "release")),
    )
    assert pretrain(config, str(tmp_path / "run")) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    first = next(line for line in lines if "loss" in line)

    batch = Loader(config.data, 8, 1).host_batch(0)
    params = jax.tree.map(lambda leaf: leaf.astype(np.float32), release.params)
    theirs = dataclasses.replace(model, vocab_size=release.model.vocab_size)
    hidden = transformer.forward(params, batch.tokens, batch.positions, batch.segment_ids, theirs).hidden
    sums = losses.cross_entropy_plain(
        hidden, params["head"], batch.targets, batch.loss_weights, batch.modality, (1.0, 1.0), config.loss
    )
    # A new id has the head of <pad>; a release says it never, these random weights do.
    p_pad = jax.nn.softmax(transformer.logits(params, hidden, theirs))[..., bundle.vocab.pad]
    rise = np.sum(np.log1p(len(names) * p_pad) * batch.loss_weights)
    assert first["loss"] == pytest.approx(float((sums.nll.sum() + rise) / sums.weight.sum()), abs=1e-5)
