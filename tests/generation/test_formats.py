"""A model is prompted in the form in which it was trained, without being told."""

import json

import jax
import numpy as np
import pytest

from chameleon_jax.checkpoints.checkpointer import Checkpointer
from chameleon_jax.configs import (
    CheckpointConfig,
    DataConfig,
    EngineConfig,
    GenerationConfig,
    SourceConfig,
    StoreConfig,
    TokenizeConfig,
)
from chameleon_jax.data.loader import Loader
from chameleon_jax.data.pipeline import tokenize
from chameleon_jax.errors import CheckpointError
from chameleon_jax.generation.api import Generator
from chameleon_jax.generation.loading import load_parts, load_run
from chameleon_jax.training.pretraining import StoreData
from tests.tiny_run import make_run

PLAIN = {"text": "a red heart"}
CONVERSATION = {"conversations": [{"from": "human", "value": "a red"}, {"from": "gpt", "value": "heart"}]}


@pytest.mark.parametrize("records, format", [([PLAIN], "completion"), ([PLAIN, CONVERSATION], "chat")])
def test_a_run_notes_whether_its_stores_have_turns(tmp_path, records, format):
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records * 9))
    make_run().bundle.save(tmp_path / "tokenizer")
    source = SourceConfig(name="data", kind="jsonl", path=str(tmp_path / "data.jsonl"))
    tokenize(TokenizeConfig(sources=(source,), tokenizer=str(tmp_path / "tokenizer")), tmp_path / "store")
    data = DataConfig(stores=(StoreConfig(path=str(tmp_path / "store")),), seq_len=64)
    assert StoreData(loader=Loader(data, 8, 1)).metadata["prompt"] == format


def save(folder, run, metadata):
    checkpointer = Checkpointer(folder / "checkpoints", CheckpointConfig())
    params = jax.tree.map(lambda leaf: jax.device_put(leaf, jax.devices()[0]), run.params)
    checkpointer.save(3, {"params": params}, {"config": {"model": run.model.to_dict()}, **metadata})
    checkpointer.close()
    run.bundle.save(folder / "tokenizer")


@pytest.mark.parametrize(
    "metadata, is_grid, format",
    [
        ({"prompt": "chat"}, False, "chat"),
        ({"prompt": "completion"}, True, "completion"),
        ({}, False, "completion"),
        ({"converted_from": "meta"}, False, "chat"),
        ({"converted_from": "lumina"}, True, "lumina"),
    ],
)
def test_the_format_is_what_was_noted_or_that_of_the_release(tmp_path, metadata, is_grid, format):
    save(tmp_path, make_run(is_grid=is_grid), metadata)
    assert load_parts(tmp_path).format == format


def test_a_generator_prompts_so(tmp_path):
    save(tmp_path, make_run(), {"prompt": "chat"})
    config = GenerationConfig(mode="text", max_tokens=5, seed=1)
    run = load_run(tmp_path)
    with Generator(run, EngineConfig(slots=2, block=4)) as generator:
        asked = generator._request(["a red"], config, {})
        assert asked.prompt[-1] == run.bundle.vocab.end_of_turn and asked.config.stop_at_turn_end
        plain = generator._request(["a red"], config, {"format": "completion"})
        assert np.array_equal(plain.prompt, asked.prompt[:-1])


def test_what_is_no_run_is_told_so(tmp_path):
    make_run().bundle.save(tmp_path)
    with pytest.raises(CheckpointError, match="not the workdir of a run"):
        load_parts(tmp_path)
    with pytest.raises(CheckpointError, match="there is no such folder"):
        load_parts(tmp_path / "nothing")
