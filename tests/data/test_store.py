"""A token store gives back what was written, and says so when it cannot."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from chameleon_jax.data.store import BlockCache, TokenStore, verify
from chameleon_jax.data.store_format import read_json, write_json
from chameleon_jax.data.store_writer import ShardInput, StoreIdentity, StoreWriter, document_hash
from chameleon_jax.errors import StoreError


def test_documents_and_spans_come_back_as_written(make_store):
    made = make_store(count=60)
    store = TokenStore.open(made.path)
    order = np.random.default_rng(1).permutation(60)
    for document, ids, spans in zip(order, store.read(order), store.spans(order), strict=True):
        np.testing.assert_array_equal(ids, made.documents[document].ids)
        assert spans == made.documents[document].spans
    assert store.lengths.tolist() == [len(d.ids) for d in made.documents]
    assert store.document_ids.tolist() == [document_hash(d.id) for d in made.documents]


def test_pieces_across_chunk_borders_come_back(make_store, monkeypatch):
    made = make_store(count=20, per_shard=20, longest=30_000)  # documents longer than a chunk of 16,384 tokens
    store = TokenStore.open(made.path)
    random = np.random.default_rng(0)
    documents = random.integers(0, 20, 50)
    starts = np.array([random.integers(0, store.lengths[d]) for d in documents])
    lengths = np.array([random.integers(1, store.lengths[d] - s + 1) for d, s in zip(documents, starts, strict=True)])
    expected = [made.documents[d].ids[s : s + n] for d, s, n in zip(documents, starts, lengths, strict=True)]
    np.testing.assert_array_equal(store.read_pieces(documents, starts, lengths), np.concatenate(expected))


def test_a_cache_too_small_for_anything_changes_nothing(make_store):
    made = make_store()
    store = TokenStore.open(made.path, cache=BlockCache(1))
    for _ in range(2):
        for ids, document in zip(store.read(range(60)), made.documents, strict=True):
            np.testing.assert_array_equal(ids, document.ids)


def test_summary_counts_what_is_there(make_store):
    made = make_store(count=60)
    summary = TokenStore.open(made.path).summary()
    ids = np.concatenate([d.ids for d in made.documents])
    images = sum(span.modality == 1 for d in made.documents for span in d.spans)
    assert (summary.documents, summary.tokens, summary.shards) == (60, len(ids), 4)
    assert summary.tokens_by_modality == {"text": len(ids) - 16 * images, "image": 16 * images}
    texts = sum(span.modality == 0 for d in made.documents for span in d.spans)
    assert summary.spans_by_modality == {"text": texts, "image": images} and images > 0
    assert summary.vocab_size == made.vocab.size


def test_equal_documents_make_equal_bytes_and_other_documents_another_fingerprint(make_store):
    first, again, other = make_store("a/store"), make_store("b/store"), make_store("c/store", seed=1)
    files = [p for p in sorted(pathlib.Path(first.path).rglob("*")) if p.is_file()]
    assert len(files) > 20
    for path in files:
        assert path.read_bytes() == (pathlib.Path(again.path) / path.relative_to(first.path)).read_bytes(), path
    assert TokenStore.open(first.path).fingerprint() != TokenStore.open(other.path).fingerprint()


def test_a_shard_without_commit_is_not_seen(make_store):
    made = make_store()
    path = pathlib.Path(made.path)
    shutil.copytree(path / "shards" / "00001", path / "shards" / "00004")
    (path / "temporary" / "00005").mkdir(parents=True)
    (path / "commits" / ".00004.json.half").write_text("{")
    assert verify(made.path).documents == 60


def test_empty_shards_are_fine(tmp_path, make_store):
    made = make_store()
    identity = StoreIdentity(vocab_config=TokenStore.open(made.path).vocab_config, bundle_fingerprint="b" * 16)
    writer = StoreWriter(tmp_path / "holes", identity)
    for shard, documents in enumerate(([], made.documents[:3], [], made.documents[3:5], [])):
        given = ShardInput(records=9, first="f", last="l", next_source=0, next_record=9 * shard + 9)
        writer.commit(shard, documents, given, [{"source": "s", "record": "r", "reason": "why"}])
    writer.finish()
    store = verify(tmp_path / "holes")
    assert (store.documents, store.manifest["rejects"], store.manifest["records"]) == (5, 5, 45)
    for ids, document in zip(store.read(range(5)), made.documents, strict=False):
        np.testing.assert_array_equal(ids, document.ids)


SHARD = "shards/00002"
DATA_FILES = [f"{SHARD}/{name}" for name in ("tokens/c/0", "offsets/c/0/0", "spans/c/0/0", "document_ids/c/0")]
METADATA_FILES = [f"{SHARD}/{name}/zarr.json" for name in ("tokens", "offsets", "spans", "document_ids")]


def _read_everything(path):
    store = TokenStore.open(path)
    store.read(range(store.documents))
    store.spans(range(store.documents))
    return store.document_ids


@pytest.mark.parametrize("file", DATA_FILES)
@pytest.mark.parametrize("damage", ["flip first", "flip middle", "flip last", "truncate", "empty", "delete"])
def test_a_reader_names_the_shard_that_is_damaged(make_store, file, damage):
    made = make_store()
    _damage(pathlib.Path(made.path) / file, damage)
    with pytest.raises(StoreError, match="shard 00002") as caught:
        _read_everything(made.path)
    assert "\n" not in str(caught.value)
    with pytest.raises(StoreError, match="shard 00002"):
        verify(made.path)


@pytest.mark.parametrize("file", METADATA_FILES)
@pytest.mark.parametrize("damage", ["truncate", "empty", "delete"])
def test_a_reader_names_the_shard_with_damaged_metadata(make_store, file, damage):
    made = make_store()
    _damage(pathlib.Path(made.path) / file, damage)
    with pytest.raises(StoreError, match="shard 00002"):
        _read_everything(made.path)


@pytest.mark.parametrize("file", [*DATA_FILES, *METADATA_FILES, "rejects/00002.jsonl"])
def test_verify_sees_every_changed_byte(make_store, file):
    made = make_store()
    path = pathlib.Path(made.path) / file
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(StoreError, match=r"shard 00002.*bytes"):
        verify(made.path)


@pytest.mark.parametrize("file", ["manifest.json", "commits/00002.json"])
@pytest.mark.parametrize("damage", ["flip middle", "truncate", "empty", "delete", "not an object"])
def test_damaged_small_files_are_named_when_the_store_is_opened(make_store, file, damage):
    made = make_store()
    _damage(pathlib.Path(made.path) / file, damage)
    with pytest.raises(StoreError, match="00002" if "commits" in file else "manifest.json"):
        TokenStore.open(made.path)


def test_a_deleted_shard_folder_is_named(make_store):
    made = make_store()
    shutil.rmtree(pathlib.Path(made.path) / SHARD)
    with pytest.raises(StoreError, match="shard 00002"):
        _read_everything(made.path)


def test_a_newer_format_version_is_refused(make_store):
    path = pathlib.Path(make_store().path) / "manifest.json"
    content = read_json(path, "")
    write_json(path, {**content, "format_version": 99})
    with pytest.raises(StoreError, match="format version 99, this program reads 1 to 2"):
        TokenStore.open(path.parent)


def test_a_manifest_of_another_store_is_refused(make_store):
    first, second = make_store("first"), make_store("second", seed=5)
    shutil.copy(pathlib.Path(second.path) / "manifest.json", first.path)
    with pytest.raises(StoreError, match="contradict"):
        TokenStore.open(first.path)


def test_an_unfinished_or_missing_store_is_refused(make_store, tmp_path):
    made = make_store()
    (pathlib.Path(made.path) / "manifest.json").unlink()
    with pytest.raises(StoreError, match=r"manifest.json is missing.*experiments.tokenize"):
        TokenStore.open(made.path)
    with pytest.raises(StoreError, match="no such token store"):
        TokenStore.open(tmp_path / "nowhere")


def test_a_writer_refuses_shards_of_other_tokenizers(make_store):
    made = make_store()
    vocab_config = TokenStore.open(made.path).vocab_config
    writer = StoreWriter(made.path, StoreIdentity(vocab_config=vocab_config, bundle_fingerprint="other"))
    with pytest.raises(StoreError, match=r"bbbbbbbbbbbbbbbb.*other"):
        writer.committed()


def test_commits_are_json_that_a_person_can_read(make_store):
    commit = json.loads((pathlib.Path(make_store().path) / "commits" / "00000.json").read_text())
    assert commit["documents"] == 16 and commit["input"]["next_record"] == 16 and len(commit["files"]) == 9


def _damage(path: pathlib.Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "delete":
        path.unlink()
        return
    if how.startswith("flip"):
        data[{"first": 0, "middle": len(data) // 2, "last": len(data) - 1}[how.split()[1]]] ^= 4
    if how == "truncate":
        data = data[:-5]
    if how == "empty":
        data = b""
    if how == "not an object":
        data = b"[]"
    path.write_bytes(data)
