"""A tokenising run may be killed at any moment, and ends with the bytes of a run that was not."""

import dataclasses
import fcntl
import io
import json
import multiprocessing
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from chameleon_jax.configs import ImageConfig, SourceConfig, TokenizeConfig, VQConfig, text_and_image
from chameleon_jax.data import store_format
from chameleon_jax.data.pipeline import tokenize
from chameleon_jax.data.sources import fingerprint
from chameleon_jax.data.store import TokenStore, verify
from chameleon_jax.data.store_writer import document_hash
from chameleon_jax.errors import DataError, StoreError, WorkdirError
from chameleon_jax.tokenizers import vqgan
from chameleon_jax.tokenizers.bundle import TokenizerBundle
from chameleon_jax.tokenizers.images import load_pixels
from chameleon_jax.tokenizers.text import train_bpe

IMAGE = 1  # row of the modality table
RECORDS = 40


def picture(seed: int, size=(20, 14)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def save_bundle(folder: pathlib.Path, seed: int = 0) -> TokenizerBundle:
    narrow = {"channels": 8, "channel_multipliers": (1,), "res_blocks": 1, "latent_channels": 8, "embed_dim": 8}
    vq = VQConfig(resolution=16, patch_size=4, codes=32, norm_groups=4, **narrow)
    random_numbers = np.random.default_rng(seed)  # any weights do, and these cost no compilation
    shapes = jax.eval_shape(lambda key: vqgan.init(key, vq), jax.random.key(0))
    params = jax.tree.map(lambda leaf: random_numbers.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)
    text = train_bpe(
        ["a green picture", "words"], text_and_image(image_codes=32, reserved=4, text_tokens=270, codes_per_image=16)
    )
    bundle = TokenizerBundle.of_pictures(
        images=ImageConfig(resolution=16),
        text=text,
        vqgan=vqgan.Codec(params=params, config=vq),
    )
    bundle.save(folder)
    return bundle


def write_source(folder: pathlib.Path, broken: tuple[int, ...] = (7, 23)) -> pathlib.Path:
    """Pairs, texts and interleaved documents; the pictures of `broken` records are not pictures."""
    folder.mkdir()
    lines = []
    for i in range(RECORDS):
        (folder / f"{i}.png").write_bytes(b"not a picture" if i in broken else picture(i))
        pair = {"image": f"{i}.png", "text": f"picture number {i}"}
        several = {
            "segments": [{"text": "one"}, {"image": f"{i}.png"}, {"text": "two", "loss": False}, {"image": f"{i}.png"}]
        }
        lines.append({"text": f"only words {i}"} if i % 5 == 4 else several if i % 5 == 3 and i not in broken else pair)
    (folder / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "records.jsonl"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Tokenizer bundle, config over two sources, and the store of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("inputs")
    bundle = save_bundle(folder / "bundle")
    config = TokenizeConfig(
        sources=(
            SourceConfig(name="first", kind="jsonl", path=str(write_source(folder / "first"))),
            SourceConfig(name="second", kind="jsonl", path=str(write_source(folder / "second", broken=()))),
        ),
        tokenizer=str(folder / "bundle"),
        documents_per_shard=3,  # so that a shard holds records of both sources
        codec_batch=4,
        max_reject_fraction=0.1,
    )
    report = tokenize(config, folder / "whole")
    return bundle, config, folder / "whole", report


def contents(store) -> dict[str, bytes]:
    store = pathlib.Path(store)
    return {
        str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file() and "packing" not in p.parts
    }


def test_documents_hold_the_text_and_the_pictures_of_the_records(inputs):
    bundle, _, path, report = inputs
    store = verify(path)
    assert (report.records, report.rejects, report.documents, report.shards) == (
        80,
        2,
        78,
        27,
    ) and store.documents == 78
    vocab, image, order = bundle.vocab, bundle.vocab.modalities[IMAGE], []
    document_of = {hashed: i for i, hashed in enumerate(store.document_ids.tolist())}
    for i in (0, 1, 2, 5, 6, 10):
        document = document_of[document_hash(f"second/records.jsonl/{i}")]
        (ids,), (spans,) = store.read([document]), store.spans([document])
        assert ids[0] == vocab.bos and ids[-1] == vocab.eos
        codes = ids[(ids >= image.start) & (ids < image.stop)]
        expected = bundle.pictures.encode(load_pixels(picture(i), bundle.pictures.config)[None])[0]
        np.testing.assert_array_equal(image.codes(codes), expected)
        assert bundle.text.decode(ids) == f"picture number {i}"
        order.append(ids[1] == image.begin_marker)
        assert sum(span.modality == IMAGE for span in spans) == 1
    assert set(order) == {True, False}  # the coin falls both ways
    several = document_of[document_hash("second/records.jsonl/3")]
    assert [span.loss for span in store.spans([several])[0]] == [True, True, False, True, True]


def test_a_source_without_any_picture_is_announced(inputs, tmp_path):
    _, config, _, report = inputs
    assert report.text_alone == {}
    (tmp_path / "words.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    words = SourceConfig(name="words", kind="jsonl", path=str(tmp_path / "words.jsonl"))
    mixed = dataclasses.replace(config, sources=(config.sources[1], words))
    assert tokenize(mixed, tmp_path / "store").text_alone == {"words": 2}


def test_rejects_lie_beside_their_shard_with_the_reason(inputs):
    _, _, path, _ = inputs
    lines = [
        json.loads(line) for file in sorted((path / "rejects").glob("*")) for line in file.read_text().splitlines()
    ]
    assert [(line["source"], line["record"]) for line in lines] == [
        ("first", "records.jsonl/7"),
        ("first", "records.jsonl/23"),
    ]
    assert all("image" in line["reason"] for line in lines)
    assert (path / "rejects" / "00002.jsonl").read_text() and not (path / "rejects" / "00003.jsonl").read_text()


def test_a_finished_store_is_left_as_it_is(inputs):
    _, config, path, report = inputs
    before = contents(path)
    again = tokenize(config, path)
    assert contents(path) == before
    assert again.shards_found == report.shards and report.shards_found == 0


def test_killed_runs_end_with_the_bytes_of_an_uninterrupted_run(inputs, tmp_path):
    _, config, path, _ = inputs
    context = multiprocessing.get_context("forkserver")  # imports once, then forks: real processes, really killed
    context.set_forkserver_preload(["chameleon_jax.data.pipeline", "chameleon_jax.tokenizers.vqgan"])
    dice, kills = random.Random(0), 0
    for target in (0, 6, 13, 21):
        process = context.Process(target=tokenize, args=(config, tmp_path / "store"))
        process.start()
        while process.is_alive() and len(list((tmp_path / "store" / "commits").glob("0*.json"))) < target:
            time.sleep(0.001)
        time.sleep(dice.random() * 0.02)
        process.kill()
        process.join()
        kills += process.exitcode == -9
        with pytest.raises(StoreError):
            TokenStore.open(tmp_path / "store")  # unfinished
    assert kills == 4
    assert tokenize(config, tmp_path / "store").shards_found >= 21
    assert contents(tmp_path / "store") == contents(path)


def test_a_lost_shard_is_rebuilt_to_the_same_bytes(inputs, tmp_path):
    _, config, path, _ = inputs
    store = shutil.copytree(path, tmp_path / "store")
    shutil.rmtree(store / "shards" / "00013")
    (store / "commits" / "00013.json").unlink()
    (store / "commits" / "00026.json").unlink()
    assert tokenize(config, store).shards_found == 25
    assert contents(store) == contents(path)


@pytest.mark.parametrize(
    "change",
    [
        {"documents_per_shard": 4},
        {"seed": 1},
        {"later_first_probability": 0.8},
        {"max_bytes": 77},
        {"codec_batch": 2},
    ],
)
def test_another_plan_is_refused_with_the_difference(inputs, change):
    _, config, path, _ = inputs
    ((field, value),) = change.items()
    before = contents(path)
    with pytest.raises(StoreError, match=rf"{field} was {getattr(config, field)}, is {value}"):
        tokenize(dataclasses.replace(config, **change), path)
    assert contents(path) == before


def test_a_field_that_is_newer_than_the_store_had_its_default(inputs, tmp_path):
    _, config, path, _ = inputs
    store = shutil.copytree(path, tmp_path / "store")
    plan = store_format.read_json(store / "plan.json", "")
    del plan["config"]["later_first_probability"]
    store_format.write_json(store / "plan.json", plan)
    assert config.later_first_probability == TokenizeConfig.later_first_probability
    tokenize(config, store)
    with pytest.raises(StoreError, match=f"later_first_probability was {config.later_first_probability}, is 0.8"):
        tokenize(dataclasses.replace(config, later_first_probability=0.8), store)


def test_other_sources_and_another_tokenizer_are_refused(inputs, tmp_path):
    bundle, config, path, _ = inputs
    with pytest.raises(StoreError, match=r"sources.1.name was 'second'"):
        tokenize(dataclasses.replace(config, sources=config.sources[:1]), path)
    other = save_bundle(tmp_path / "bundle", seed=1)
    with pytest.raises(StoreError, match=f"bundle was {bundle.fingerprint()}, is {other.fingerprint()}"):
        tokenize(dataclasses.replace(config, tokenizer=str(tmp_path / "bundle")), path)


def test_a_foreign_tokenizer_in_the_store_is_refused(inputs, tmp_path):
    """Whoever reads the store takes its ids apart with the tokenizer that lies in it."""
    _, config, _, _ = inputs
    save_bundle(tmp_path / "store" / "tokenizer", seed=1)
    with pytest.raises(StoreError, match="which makes these ids: delete it or choose another --workdir"):
        tokenize(config, tmp_path / "store")
    with pytest.raises(WorkdirError, match=r"is a tokenizer \(it holds vocab.json\), not a token store"):
        tokenize(config, tmp_path / "store" / "tokenizer")


def test_the_limit_of_rejects_and_the_place_of_the_tokenizer_may_change(inputs, tmp_path):
    _, config, path, _ = inputs
    moved = shutil.copytree(config.tokenizer, tmp_path / "moved")
    tokenize(dataclasses.replace(config, tokenizer=str(moved), max_reject_fraction=0.5), path)


def test_a_source_that_changed_between_runs_is_noticed(inputs, tmp_path):
    _, config, _, _ = inputs
    records = write_source(tmp_path / "source", broken=(0, 1))
    one = dataclasses.replace(config, sources=(SourceConfig(name="s", kind="jsonl", path=str(records)),))
    with pytest.raises(DataError):
        # At the end: all shards are there.
        tokenize(dataclasses.replace(one, max_reject_fraction=0.0), tmp_path / "store")
    shutil.rmtree(tmp_path / "store" / "shards" / "00013")
    (tmp_path / "store" / "commits" / "00013.json").unlink()
    lines = records.read_text().splitlines(keepends=True)
    records.write_text(
        "".join(line.replace("{", '{"id": "new", ', 1) if i == 38 else line for i, line in enumerate(lines))
    )
    with pytest.raises(StoreError, match=r"the data of source 's' have changed since .* use another --workdir"):
        tokenize(one, tmp_path / "store")
    forget_data(tmp_path / "store")
    with pytest.raises(StoreError, match=r"source 's' changed .* s/records.jsonl/38 was there is s/new now"):
        tokenize(one, tmp_path / "store")
    records.write_text("".join(lines))
    assert tokenize(one, tmp_path / "store").documents == 38


def forget_data(store: pathlib.Path) -> None:
    """Make of a store one from before it remembered its data."""
    plan = store_format.read_json(store / "plan.json", "")
    del plan["data"]
    store_format.write_json(store / "plan.json", plan)


def test_a_finished_store_refuses_data_that_have_changed_since(inputs, tmp_path):
    _, config, _, _ = inputs
    table = tmp_path / "words.csv"
    table.write_text("text\nred\nblue\n")
    one = dataclasses.replace(config, sources=(SourceConfig(name="s", kind="csv", path=str(table)),))
    tokenize(one, tmp_path / "store")
    os.utime(table, (1, 1))  # a copy of the data is no change
    assert tokenize(one, tmp_path / "store").shards_found == 1
    for changed in ("text\nred\ncyan\n", "text\nred\n", "text\nred\nblue\ngreen\n"):
        table.write_text(changed)
        with pytest.raises(StoreError, match="the data of source 's' have changed since"):
            tokenize(one, tmp_path / "store")
    forget_data(tmp_path / "store")
    assert tokenize(one, tmp_path / "store").documents == 2
    table.write_text("text\nred\nblue\n")
    with pytest.raises(StoreError, match="the data of source 's' have changed since"):  # it knows them from now on
        tokenize(one, tmp_path / "store")


def test_data_may_be_mended_while_the_store_has_no_shard(inputs, tmp_path):
    _, config, _, _ = inputs
    table = tmp_path / "words.jsonl"
    one = dataclasses.replace(config, sources=(SourceConfig(name="s", kind="jsonl", path=str(table)),))
    one = dataclasses.replace(one, documents_per_shard=512)
    table.write_text("{]\n" * 200)
    with pytest.raises(DataError, match="were rejected"):
        tokenize(one, tmp_path / "store")
    table.write_text('{"text": "red"}\n')
    assert tokenize(one, tmp_path / "store").documents == 1
    assert tokenize(one, tmp_path / "store").shards_found == 1


def test_a_fingerprint_of_data_tells_what_is_in_them_and_not_where(tmp_path):
    rng = np.random.default_rng(0)

    def source(kind: str, path: str) -> str | None:
        return fingerprint(SourceConfig(name="s", kind=kind, path=str(tmp_path / path)))

    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "big.tar").write_bytes(rng.bytes(1 << 20))
    (tmp_path / "a" / "cat.png").write_bytes(picture(0))
    (tmp_path / "a" / "cat.txt").write_text("a cat")
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
    for kind, path in (("webdataset", "*.tar"), ("pairs", ""), ("classes", "")):
        assert source(kind, f"a/{path}") == source(kind, f"b/{path}")
    words, pictures = source("pairs", "b"), source("classes", "b")
    (tmp_path / "b" / "cat.txt").write_text("a dog")
    assert source("pairs", "b") != words and source("classes", "b") == pictures
    with (tmp_path / "b" / "big.tar").open("ab") as tar:
        tar.write(b"more")
    assert source("webdataset", "b/*.tar") != source("webdataset", "a/*.tar")


def test_what_a_reader_rejects_in_a_folder_has_a_fingerprint_of_its_name_alone(tmp_path):
    """A pipe would wait for ever, a dangling link cannot be opened, and what lies elsewhere is none of the source's."""
    folder, outside = tmp_path / "data", tmp_path / "outside.txt"
    folder.mkdir()
    outside.write_text("secret")
    for name in "abcd":
        (folder / f"{name}.png").write_bytes(picture(0))
    (folder / "a.txt").write_text("a cat")
    os.mkfifo(folder / "b.txt")
    (folder / "c.txt").symlink_to(outside)
    (folder / "d.txt").symlink_to("nothing.txt")
    (folder / "e.png").symlink_to("nothing.png")
    pairs = SourceConfig(name="s", kind="pairs", path=str(folder))
    seen = []
    first = fingerprint(pairs, lambda: seen.append(1))
    assert len(seen) == 5 + 4
    outside.write_text("changed")
    assert fingerprint(pairs) == first
    (folder / "nothing.txt").write_text("a dog")
    assert fingerprint(pairs) not in (first, None)


def test_too_many_rejects_stop_the_run_and_say_why(inputs, tmp_path):
    _, config, _, _ = inputs
    records = write_source(tmp_path / "source", broken=(0, 1, 2, 5))
    sources = (SourceConfig(name="s", kind="jsonl", path=str(records)),)
    one = dataclasses.replace(config, sources=sources, max_reject_fraction=0.05)
    with pytest.raises(
        DataError, match=r"4 of 40 records were rejected, max_reject_fraction is 0.05: 4 x .*image"
    ) as caught:
        tokenize(one, tmp_path / "store")
    assert "\n" not in str(caught.value)
    with pytest.raises(StoreError):
        TokenStore.open(tmp_path / "store")
    mended = tokenize(dataclasses.replace(one, max_reject_fraction=0.2), tmp_path / "store")  # goes on where it stopped
    assert (mended.rejects, mended.documents, mended.shards_found) == (4, 36, 14)


def test_a_source_of_rubbish_stops_after_a_hundred_records(inputs, tmp_path):
    _, config, _, _ = inputs
    (tmp_path / "rubbish.jsonl").write_text("{]\n" * 1000)
    sources = (SourceConfig(name="s", kind="jsonl", path=str(tmp_path / "rubbish.jsonl")),)
    with pytest.raises(DataError, match="100 of 100 records were rejected"):
        tokenize(dataclasses.replace(config, sources=sources, documents_per_shard=512), tmp_path / "store")
    assert len((tmp_path / "store" / "rejects" / "aborted.jsonl").read_text().splitlines()) == 100


def test_limits_on_text_and_images_reject_the_document(inputs, tmp_path):
    _, config, _, _ = inputs
    records = write_source(tmp_path / "source", broken=())
    strict = dataclasses.replace(
        config,
        sources=(SourceConfig(name="s", kind="jsonl", path=str(records)),),
        max_spans={"image": 1},
        max_bytes=15,
        max_reject_fraction=0.9,
    )
    report = tokenize(strict, tmp_path / "store")
    reasons = "".join(file.read_text() for file in (tmp_path / "store" / "rejects").glob("*.jsonl"))
    assert report.rejects == 8 + 24 and "has 2 of 'image', max_spans is 1" in reasons
    assert "bytes of text, max_bytes is 15" in reasons


def test_a_second_run_on_the_same_directory_is_refused(inputs, tmp_path):
    _, config, _, _ = inputs
    (tmp_path / "store").mkdir()
    code = (
        "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, 2); print('held', flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "store" / ".lock")], **pipes) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(WorkdirError, match="another run"):
            tokenize(config, tmp_path / "store")
        holder.stdin.close()
    with (tmp_path / "store" / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # free again


def test_a_missing_source_is_named_before_any_work(inputs, tmp_path):
    _, config, _, _ = inputs
    sources = (*config.sources, SourceConfig(name="late", kind="jsonl", path=str(tmp_path / "nothing.jsonl")))
    with pytest.raises(DataError, match="late"):
        tokenize(dataclasses.replace(config, sources=sources), tmp_path / "store")
    assert not (tmp_path / "store" / "plan.json").exists()


def test_a_directory_that_cannot_be_made_is_named(inputs, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkdirError, match="cannot be written"):
        tokenize(inputs[1], tmp_path / "file" / "store")
