"""Stores and tokenizers from before the table of modalities, written out by hand, are read as what they are: text and images."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from chameleon_jax.configs import DataConfig, ImageConfig, StoreConfig, VocabConfig, text_and_image
from chameleon_jax.data.loader import Loader
from chameleon_jax.data.store import TokenStore, read_vocab, verify
from chameleon_jax.data.store_format import read_json, write_json
from chameleon_jax.errors import StoreError, TokenizerError
from chameleon_jax.evaluation.inspection import print_path
from chameleon_jax.tokenizers.bundle import TokenizerBundle
from chameleon_jax.tokenizers.text import train_bpe

OLD_VOCAB = {
    "image_codes": 50,
    "reserved": 4,
    "text_tokens": 290,
    "codes_per_image": 16,
    "image_span": "fixed",
    "max_grids": 64,
    "grid_unit": 2,
}


@pytest.fixture(scope="module")
def bundle():
    text = train_bpe(["a red fox and a green frog"] * 4, text_and_image(**OLD_VOCAB))
    return TokenizerBundle.of_pictures(images=ImageConfig(resolution=16), text=text, vqgan=None)


def old_vocab(config: VocabConfig) -> dict:
    """vocab.json, and `vocab` of a manifest, as they were; `added` only where there are any."""
    text, image = config.modalities
    values = OLD_VOCAB | {"text_tokens": text.ids, "image_span": image.span, "codes_per_image": image.length}
    values |= {"image_codes": image.ids, "reserved": config.reserved, "max_grids": image.max_grids}
    return values | ({"added": list(config.added)} if config.added else {})


def write_old_store(path, vocab):
    """Rewrite the JSON files of a store of the present format as those of format 1; the arrays have not changed."""
    path = pathlib.Path(path)
    for file in path.glob("commits/*.json"):
        commit = read_json(file, "")
        images = commit.pop("spans_by_modality")["image"]
        write_json(file, commit | {"format_version": 1, "images": images, "bundle_fingerprint": "1" * 16})
    manifest = read_json(path / "manifest.json", "")
    images = manifest.pop("spans_by_modality")["image"]
    old = {"format_version": 1, "vocab": vocab, "images": images, "preprocessing": "3" * 16}
    old |= {"vocab_fingerprint": "2" * 16, "bundle_fingerprint": "1" * 16}
    write_json(path / "manifest.json", manifest | old)
    shutil.rmtree(path / "packing", ignore_errors=True)


@pytest.fixture
def stores(make_store, bundle):
    """The same documents in the present format and in the old one, each with its tokenizer beside."""
    made = {
        name: make_store(f"{name}/store", vocab_config=bundle.vocab_config, bundle_fingerprint=bundle.fingerprint())
        for name in ("new", "old")
    }
    for store in made.values():
        bundle.save(pathlib.Path(store.path) / "tokenizer")
    beside = pathlib.Path(made["old"].path) / "tokenizer" / "vocab.json"
    beside.write_text(json.dumps(old_vocab(bundle.vocab_config)))
    write_old_store(made["old"].path, old_vocab(bundle.vocab_config))
    return made


def test_an_old_store_gives_what_the_new_one_does(stores, bundle):
    new, old = (TokenStore.open(stores[name].path) for name in ("new", "old"))
    assert old.vocab_config == new.vocab_config == bundle.vocab_config == read_vocab(stores["old"].path)
    for ids, others in zip(old.read(range(60)), new.read(range(60)), strict=True):
        np.testing.assert_array_equal(ids, others)
    assert old.spans(range(60)) == new.spans(range(60))
    assert old.fingerprint() == new.fingerprint()  # of the data
    # Fingerprints of the tokenizer are those of the bundle beside, in today's spelling.
    assert old.bundle_fingerprint == new.bundle_fingerprint == bundle.fingerprint()
    assert old.summary().vocab_fingerprint == new.summary().vocab_fingerprint == bundle.vocab.fingerprint()
    assert old.summary().tokens_by_modality == new.summary().tokens_by_modality
    assert old.summary().spans_by_modality["image"] == new.summary().spans_by_modality["image"] > 0
    assert verify(stores["old"].path).documents == 60


def test_a_run_goes_on_with_the_batches_of_an_old_store(stores):
    def batches(*names):
        config = DataConfig(stores=tuple(StoreConfig(path=stores[name].path) for name in names), seq_len=64)
        loader = Loader(config, 4, 5)
        return loader.fingerprint(), list(loader.batches())

    (old_print, old), (new_print, new) = batches("old"), batches("new")
    assert old_print == new_print
    jax.tree.map(np.testing.assert_array_equal, old, new)
    batches("new", "old")  # and both together: they are of one tokenizer


def test_an_old_store_without_its_tokenizer_keeps_the_fingerprint_that_it_has(stores, bundle):
    path = pathlib.Path(stores["old"].path)
    shutil.rmtree(path / "tokenizer")
    store = TokenStore.open(path)
    assert store.bundle_fingerprint == "1" * 16 and store.vocab == bundle.vocab
    both = DataConfig(stores=(StoreConfig(path=stores["new"].path), StoreConfig(path=str(path))))
    with pytest.raises(StoreError, match=f"bundle_fingerprint {bundle.fingerprint()} and 1111111111111111"):
        Loader(both, 4, 5)


def test_an_old_store_is_shown_to_people(stores, capsys):
    print_path(stores["old"].path, verify=True)
    text = capsys.readouterr().out
    assert "every shard" in text and "image 60" in text


def test_a_field_that_old_stores_did_not_have_is_named(stores, bundle):
    write_old_manifest = pathlib.Path(stores["old"].path) / "manifest.json"
    manifest = read_json(write_old_manifest, "")
    write_json(write_old_manifest, manifest | {"vocab": manifest["vocab"] | {"image_cods": 3}})
    with pytest.raises(StoreError, match=r"manifest\.json: .*image_cods.*: use a matching release") as caught:
        TokenStore.open(stores["old"].path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("added", [(), ("<brush>", "<pen>")])
def test_an_old_bundle_is_the_same_bundle(bundle, added, tmp_path):
    bundle = bundle.with_added(added)
    bundle.save(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(old_vocab(bundle.vocab_config)))
    loaded = TokenizerBundle.load(tmp_path)
    assert loaded.vocab_config == bundle.vocab_config and loaded.fingerprint() == bundle.fingerprint()
    loaded.save(tmp_path)
    assert VocabConfig.from_dict(json.loads((tmp_path / "vocab.json").read_text())) == bundle.vocab_config
    assert "modalities" in json.loads((tmp_path / "vocab.json").read_text())


def test_an_old_bundle_of_grids_is_the_same_bundle(tmp_path):
    sizes = OLD_VOCAB | {"image_span": "grid", "reserved": 100, "codes_per_image": 40}
    text = train_bpe(["a red fox"] * 4, text_and_image(**sizes))
    images = ImageConfig(resolution=64, preprocessing="lumina")
    bundle = TokenizerBundle.of_pictures(images=images, text=text, vqgan=None)
    bundle.save(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(old_vocab(bundle.vocab_config)))
    loaded = TokenizerBundle.load(tmp_path)
    assert loaded.vocab == bundle.vocab and loaded.fingerprint() == bundle.fingerprint()


@pytest.mark.parametrize("change", [{"image_cods": 3}, {"image_codes": "many"}, {"text_tokens": 3}])
def test_a_damaged_old_vocabulary_is_named(bundle, change, tmp_path):
    bundle.save(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(old_vocab(bundle.vocab_config) | change))
    with pytest.raises(TokenizerError, match=r"vocab\.json is damaged") as caught:
        TokenizerBundle.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_another_vocabulary_than_the_tokenizers_is_refused(bundle, tmp_path):
    bundle.save(tmp_path)
    other = dataclasses.replace(bundle.vocab_config, reserved=5)
    (tmp_path / "vocab.json").write_text(json.dumps(old_vocab(other)))
    with pytest.raises(TokenizerError, match="the parts do not belong together"):
        TokenizerBundle.load(tmp_path)
