"""The id space is Chameleon's at full size, and the same layout at any size."""

import numpy as np
import pytest

from chameleon_jax.configs import VocabConfig
from chameleon_jax.errors import TokenizerError
from chameleon_jax.vocab import ModalityId, Vocab, code_name

SMALL = VocabConfig(image_codes=8, reserved=4, text_tokens=256, codes_per_image=4)


def test_the_default_layout_is_that_of_the_released_models():
    vocab = Vocab.from_config(VocabConfig())
    names = vocab.special_names()
    assert vocab.size == 65_536
    expected = {
        0: "<s>", 1: "<pad>", 2: "</s>", 3: "<unk>", 4: "IMGIMGAZ", 57: "IMGIMGFDZ", 8195: "IMGIMGIBJBZ", 8196: "<eoss>",
        8197: "<racm3:break>", 8198: "<reserved08194>", 8710: "<reserved08706>", 8711: "<reserved08707>",
        16383: "<reserved16379>",
    }  # fmt: skip
    assert {i: names[i] for i in expected} == expected
    assert len(names) == vocab.text.start == 16_384
    roles = (vocab.bos, vocab.pad, vocab.eos, vocab.end_of_image, vocab.begin_of_image, vocab.end_of_turn)
    assert roles == (0, 1, 2, 8196, 8197, 8710)
    assert vocab.image_placeholder == 8711
    assert vocab.image.grammar.length == 1024


def test_a_small_layout_has_every_role_once_and_no_gaps():
    vocab = Vocab.from_config(SMALL)
    names = vocab.special_names()
    assert len(set(names)) == len(names) == vocab.text.start
    roles = [vocab.bos, vocab.pad, vocab.eos, vocab.unk, vocab.end_of_image, vocab.begin_of_image, vocab.end_of_turn]
    roles += [vocab.image_placeholder, *range(vocab.image.start, vocab.image.stop)]
    assert len(set(roles)) == len(roles)
    assert max(roles) < vocab.text.start
    assert vocab.text.stop == vocab.size == SMALL.size


def test_codes_and_ids_are_inverse_and_refuse_what_is_outside():
    vocab = Vocab.from_config(SMALL)
    codes = np.arange(8)
    assert np.array_equal(vocab.ids_to_codes(vocab.codes_to_ids(codes)), codes)
    for bad in (-1, 8):
        with pytest.raises(TokenizerError, match=r"outside 0\.\.7"):
            vocab.codes_to_ids(np.array([bad]))
    for bad in (vocab.eos, vocab.begin_of_image, vocab.text.start):
        with pytest.raises(TokenizerError, match="not all image codes"):
            vocab.ids_to_codes(np.array([bad]))


def test_only_image_codes_count_as_image():
    vocab = Vocab.from_config(SMALL)
    modality = vocab.modality_of(np.arange(vocab.size))
    assert np.flatnonzero(modality == ModalityId.IMAGE).tolist() == list(range(vocab.image.start, vocab.image.stop))


def test_fingerprints_tell_layouts_apart_and_ids_fit_the_store_type():
    assert Vocab.from_config(SMALL).fingerprint() == Vocab.from_config(SMALL).fingerprint()
    assert Vocab.from_config(SMALL).fingerprint() != Vocab.from_config(VocabConfig()).fingerprint()
    assert Vocab.from_config(VocabConfig()).store_dtype() == np.uint16
    assert Vocab.from_config(VocabConfig(text_tokens=49_153)).store_dtype() == np.uint32


def test_code_names_spell_decimal_digits():
    assert [code_name(c) for c in (0, 53, 8191)] == ["IMGIMGAZ", "IMGIMGFDZ", "IMGIMGIBJBZ"]
