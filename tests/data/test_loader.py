"""Batches are a function of the step, whatever the hosts, the stage, or the place where a run starts."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from chameleon_jax.configs import DataConfig, StoreConfig, text_and_image
from chameleon_jax.data.loader import Loader
from chameleon_jax.data.mixture import used_rows
from chameleon_jax.errors import ConfigError, StoreError
from chameleon_jax.vocab import Vocab

IMAGE = 1  # row of the modality table
SEQ_LEN, BATCH, STEPS = 64, 8, 30


@pytest.fixture(scope="module")
def stores(build_store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    sizes = {"a": 90, "b": 40, "late": 50, "held": 33}
    return {
        name: build_store(folder / name, count=count, seed=seed) for seed, (name, count) in enumerate(sizes.items())
    }


@pytest.fixture(scope="module")
def config(stores):
    return DataConfig(
        stores=(
            StoreConfig(path=stores["a"].path, weight=0.7),
            StoreConfig(path=stores["b"].path, weight=0.3),
            StoreConfig(path=stores["late"].path, weight=0.5, stage=2),
        ),
        eval_stores=(StoreConfig(path=stores["held"].path),),
        seq_len=SEQ_LEN,
        stage2_start=0.6,
        seed=7,
    )


def assert_same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [1, 4, 6], [7]])
def test_a_process_gets_its_rows_of_the_batches_that_one_alone_makes(config, rows):
    alone, part = Loader(config, BATCH, STEPS), Loader(config, BATCH, STEPS, rows=rows)
    assert 0 < alone.stage2_step < STEPS
    for step in range(STEPS):
        assert_same(jax.tree.map(lambda whole: whole[rows], alone.host_batch(step)), part.host_batch(step))
    for whole, batch in zip(alone.eval_batches(9), part.eval_batches(9), strict=True):  # the last one is not full
        assert_same(jax.tree.map(lambda values: values[rows], whole), batch)


@pytest.mark.parametrize("start", [0, 11, 17, 18, 29])
def test_a_resumed_run_goes_on_with_the_batches_of_an_uninterrupted_one(config, start):
    whole = list(Loader(config, BATCH, STEPS).batches())
    resumed = list(Loader(config, BATCH, STEPS).batches(start))
    assert len(whole) == STEPS and len(resumed) == STEPS - start
    for expected, batch in zip(whole[start:], resumed, strict=True):
        assert_same(expected, batch)


def test_stopping_early_and_nothing_left_are_fine(config):
    loader = Loader(config, BATCH, STEPS)
    assert len(list(loader.batches(3, 7))) == 4
    assert list(loader.batches(STEPS)) == []
    next(loader.batches())  # the rest is never asked for
    loader.host_batch(STEPS + 5)  # what comes after a rollback that passed over batches
    with pytest.raises(ValueError, match="numbered from 0"):
        loader.host_batch(-1)


def reference_row(loader, made, source, row):
    """One row in plain Python, token by token."""
    packed, vocab, image = loader.stores[source], made.vocab, made.vocab.modalities[IMAGE]
    out = {name: [] for name in ("tokens", "targets", "loss_weights", "segment_ids", "positions", "modality")}
    for segment, p in enumerate(range(packed.plan.row_offsets[row], packed.plan.row_offsets[row + 1]), start=1):
        document = made.documents[packed.plan.documents[p]]
        loss = [span.loss for span in document.spans for _ in range(span.length)]
        start, stop = packed.plan.starts[p], packed.plan.starts[p] + packed.plan.lengths[p]
        for t in range(start, stop):
            last = t + 1 == stop
            out["tokens"].append(document.ids[t])
            out["targets"].append(vocab.pad if last else document.ids[t + 1])
            out["loss_weights"].append(0.0 if last else float(loss[t + 1]))
            out["segment_ids"].append(segment)
            out["positions"].append(t - start)
            target = vocab.pad if last else document.ids[t + 1]
            out["modality"].append(int(image.start <= target < image.stop))
    for name, values in out.items():
        values += [vocab.pad if name in ("tokens", "targets") else 0] * (SEQ_LEN - len(values))
    return out


def test_rows_equal_a_plain_python_reference(config, stores):
    loader = Loader(config, BATCH, STEPS)
    quiet = 0
    for step in (0, 5, 17, 18, 25):
        batch = loader.host_batch(step)
        sources, rows = loader._mixture.rows(range(step * BATCH, (step + 1) * BATCH))
        for i, (source, row) in enumerate(zip(sources, rows, strict=True)):
            expected = reference_row(loader, stores[("a", "b", "late")[source]], source, row)
            for name, values in expected.items():
                np.testing.assert_array_equal(
                    getattr(batch, name)[i], values, err_msg=f"{name} of row {i} of step {step}"
                )
        quiet += ((batch.loss_weights == 0) & (batch.targets != 1)).sum()
    assert quiet > 0  # texts without loss were among them
    assert batch.tokens.dtype == np.int32 and batch.loss_weights.dtype == np.float32


def test_split_documents_equal_the_reference_too(config, stores):
    short = dataclasses.replace(config, seq_len=24)
    loader = Loader(short, BATCH, STEPS)
    assert (loader.stores[0].plan.starts > 0).any()
    for step in (0, 20):
        batch = loader.host_batch(step)
        sources, rows = loader._mixture.rows(range(step * BATCH, (step + 1) * BATCH))
        for i, (source, row) in enumerate(zip(sources, rows, strict=True)):
            expected = reference_row(loader, stores[("a", "b", "late")[source]], source, row)
            for name, values in expected.items():
                np.testing.assert_array_equal(getattr(batch, name)[i], values[:24])


@pytest.mark.parametrize("seq_len", [24, 64, 200])
def test_every_image_in_every_row_is_whole(config, seq_len):
    loader = Loader(dataclasses.replace(config, seq_len=seq_len), BATCH, STEPS)
    image, images = Vocab.from_config(loader.vocab_config).modalities[IMAGE], 0
    length = image.grammar.length
    for batch in [*loader.batches(), *loader.eval_batches(5)]:
        codes = (batch.tokens >= image.start) & (batch.tokens < image.stop)
        begins = np.argwhere(batch.tokens == image.begin_marker)
        for row, t in begins:
            end = t + 1 + length
            assert codes[row, t + 1 : end].all() and batch.tokens[row, end] == image.end_marker
            assert len(set(batch.segment_ids[row, t : t + length + 2])) == 1
        assert codes.sum() == length * len(begins) == length * (batch.tokens == image.end_marker).sum()
        images += len(begins)
    assert images > 100


def test_an_epoch_has_every_row_once_and_the_next_another_order(stores):
    config = DataConfig(stores=(StoreConfig(path=stores["a"].path),), seq_len=SEQ_LEN)
    loader = Loader(config, 1, 10_000)
    rows = loader.stores[0].plan.rows
    first, second = (loader._mixture.rows(range(epoch * rows, (epoch + 1) * rows))[1] for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(rows))
    assert first.tolist() != second.tolist()


def test_the_mixture_follows_the_weights_of_each_stage(config):
    loader = Loader(config, 100, 100)
    assert loader.stage2_step == 60
    before, _ = loader._mixture.rows(range(0, 6000))
    after, _ = loader._mixture.rows(range(6000, 10_000))
    np.testing.assert_allclose(np.bincount(before, minlength=3) / 6000, [0.7, 0.3, 0], atol=0.01)
    np.testing.assert_allclose(np.bincount(after, minlength=3) / 4000, np.array([0.35, 0.15, 0.5]), atol=0.01)


def test_stage_1_stores_go_on_in_stage_2_where_they_stopped(config):
    loader = Loader(config, BATCH, STEPS)
    border = loader.stage2_step * BATCH
    sources, rows = loader._mixture.rows(range(0, STEPS * BATCH))
    for source in (0, 1):
        count = loader.stores[source].plan.rows
        mine = rows[sources == source]
        assert (sources[:border] == source).any() and (sources[border:] == source).any()
        for begin in range(0, len(mine) - count + 1, count):
            assert sorted(mine[begin : begin + count]) == list(range(count))  # whole epochs, across the border


def test_used_rows_counts_what_the_mixture_took():
    import grain

    weights = [0.6, 0.3, 0.1]
    streams = [grain.MapDataset.range(i * 1000, (i + 1) * 1000) for i in range(3)]
    mixed = grain.MapDataset.mix(streams, weights)
    for count in (0, 1, 2, 7, 100, 333):
        taken = np.array([mixed[n] // 1000 for n in range(count)], int)
        assert used_rows(weights, count) == np.bincount(taken, minlength=3).tolist()


def test_a_run_without_stage_2_stores_does_not_change_at_the_border(config):
    one_stage = dataclasses.replace(config, stores=config.stores[:2])
    never = dataclasses.replace(one_stage, stage2_start=1.0)
    assert_same(Loader(one_stage, BATCH, STEPS).host_batch(25), Loader(never, BATCH, STEPS).host_batch(25))
    with pytest.raises(ConfigError, match="nothing is left"):
        Loader(dataclasses.replace(one_stage, stage1_weight_in_stage2=0.0), BATCH, STEPS)


def test_stage_1_stores_can_be_left_out_of_stage_2(config):
    loader = Loader(dataclasses.replace(config, stage1_weight_in_stage2=0.0), BATCH, STEPS)
    sources, _ = loader._mixture.rows(range(loader.stage2_step * BATCH, STEPS * BATCH))
    assert set(sources) == {2}


def test_eval_batches_are_fixed_and_hold_every_row_once(config):
    loader = Loader(config, BATCH, STEPS)
    rows = loader.eval_stores[0].plan.rows
    batches = loader.eval_batches(1000)
    assert len(batches) == -(-rows // BATCH)
    assert sum((batch.segment_ids[:, 0] > 0).sum() for batch in batches) == rows
    assert sum(batch.segment_ids.astype(bool).sum() for batch in batches) == loader.eval_stores[0].store.tokens
    last = batches[-1]
    assert last.tokens.shape == (BATCH, SEQ_LEN) and last.loss_weights[last.segment_ids == 0].sum() == 0
    for first, again in zip(batches[:2], Loader(config, BATCH, 5).eval_batches(2), strict=True):
        assert_same(first, again)
    assert Loader(dataclasses.replace(config, eval_stores=()), BATCH, STEPS).eval_batches(3) == []


def test_the_fingerprint_changes_with_the_data_and_not_with_the_speed(config, stores, tmp_path):
    base = Loader(config, BATCH, STEPS).fingerprint()
    moved = shutil.copytree(stores["a"].path, tmp_path / "moved")
    same = [
        {"cache_bytes": 1},
        {"prefetch": 5},
        {"stores": (StoreConfig(path=str(moved), weight=0.7), *config.stores[1:])},
    ]
    other = [
        {"seed": 8},
        {"seq_len": 65},
        {"stage2_start": 0.7},
        {"max_segments_per_row": 1},
        {"stores": config.stores[:2]},
        {"stores": (StoreConfig(path=stores["a"].path, weight=0.71), *config.stores[1:])},
        {"stores": (StoreConfig(path=stores["held"].path, weight=0.7), *config.stores[1:])},
    ]
    for change in same:
        assert Loader(dataclasses.replace(config, **change), BATCH, STEPS).fingerprint() == base, change
    fingerprints = {Loader(dataclasses.replace(config, **change), BATCH, STEPS).fingerprint() for change in other}
    assert len(fingerprints | {base}) == len(other) + 1


def test_stores_of_different_tokenizers_are_refused_by_name(config, make_store):
    strange = make_store("strange", bundle_fingerprint="c" * 16)
    with pytest.raises(StoreError, match=r"/a and .*/strange .*bbbbbbbbbbbbbbbb and cccccccccccccccc"):
        Loader(dataclasses.replace(config, eval_stores=(StoreConfig(path=strange.path),)), BATCH, STEPS)
    wide = make_store(
        "wide", vocab_config=text_and_image(image_codes=60, reserved=4, text_tokens=300, codes_per_image=16)
    )
    with pytest.raises(StoreError, match=r"/a and .*/wide .*vocab_fingerprint"):
        Loader(dataclasses.replace(config, stores=(*config.stores, StoreConfig(path=wide.path))), BATCH, STEPS)


def test_an_error_in_the_thread_comes_to_the_consumer(config, make_store):
    broken = make_store("broken")
    shutil.rmtree(f"{broken.path}/shards/00001/tokens")
    loader = Loader(dataclasses.replace(config, stores=(StoreConfig(path=broken.path),)), BATCH, STEPS)
    with pytest.raises(StoreError, match="shard 00001"):
        list(loader.batches())


def test_rows_that_no_batch_has_are_refused(config):
    with pytest.raises(ConfigError, match=r"rows \[3, 8\] are not all in 0\.\.7"):
        Loader(config, BATCH, STEPS, rows=[3, 8])
