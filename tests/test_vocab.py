"""The id space is Chameleon's at full size, and the same layout at any size."""

import numpy as np
import pytest

from chameleon_jax.configs import text_and_image
from chameleon_jax.errors import ConfigError, TokenizerError
from chameleon_jax.vocab import Vocab, code_name

TEXT, IMAGE = 0, 1  # rows of the modality table

SMALL = text_and_image(image_codes=8, reserved=4, text_tokens=256, codes_per_image=4)


def grid_with(**changes):
    sizes = {"image_codes": 8, "reserved": 9, "text_tokens": 256, "codes_per_image": 24, "max_grids": 4, "grid_unit": 2}
    return text_and_image(image_span="grid", **sizes | changes)


GRID = grid_with()


def test_the_default_layout_is_that_of_the_released_models():
    vocab = Vocab.from_config(text_and_image())
    names = vocab.special_names()
    assert vocab.size == 65_536
    expected = {
        0: "<s>", 1: "<pad>", 2: "</s>", 3: "<unk>", 4: "IMGIMGAZ", 57: "IMGIMGFDZ", 8195: "IMGIMGIBJBZ", 8196: "<eoss>",
        8197: "<racm3:break>", 8198: "<reserved08194>", 8710: "<reserved08706>", 8711: "<reserved08707>",
        16383: "<reserved16379>",
    }  # fmt: skip
    assert {i: names[i] for i in expected} == expected
    assert len(names) == vocab.text.start == 16_384
    image = vocab.modalities[IMAGE]
    roles = (vocab.bos, vocab.pad, vocab.eos, image.end_marker, image.begin_marker, vocab.end_of_turn)
    assert roles == (0, 1, 2, 8196, 8197, 8710)
    assert vocab.placeholder == 8711
    assert image.grammar.length == 1024


def test_a_small_layout_has_every_role_once_and_no_gaps():
    vocab = Vocab.from_config(SMALL)
    names = vocab.special_names()
    assert len(set(names)) == len(names) == vocab.text.start
    image = vocab.modalities[IMAGE]
    roles = [vocab.bos, vocab.pad, vocab.eos, vocab.unk, image.end_marker, image.begin_marker, vocab.end_of_turn]
    roles += [vocab.placeholder, *range(image.start, image.stop)]
    assert len(set(roles)) == len(roles)
    assert max(roles) < vocab.text.start
    assert vocab.text.stop == vocab.size == 4 + 8 + 2 + 4 + 256


def test_codes_and_ids_are_inverse_and_refuse_what_is_outside():
    vocab = Vocab.from_config(SMALL)
    image, codes = vocab.modalities[IMAGE], np.arange(8)
    assert np.array_equal(image.codes(image.ids(codes)), codes)
    for bad in (-1, 8):
        with pytest.raises(TokenizerError, match=r"outside 0\.\.7"):
            image.ids(np.array([bad]))
    for bad in (vocab.eos, image.begin_marker, vocab.text.start):
        with pytest.raises(TokenizerError, match="not all codes of 'image'"):
            image.codes(np.array([bad]))


def test_only_image_codes_count_as_image():
    vocab = Vocab.from_config(SMALL)
    image, modality = vocab.modalities[IMAGE], vocab.modality_of(np.arange(vocab.size))
    assert np.flatnonzero(modality == IMAGE).tolist() == list(range(image.start, image.stop))


def test_fingerprints_tell_layouts_apart_and_ids_fit_the_store_type():
    assert Vocab.from_config(SMALL).fingerprint() == Vocab.from_config(SMALL).fingerprint()
    assert Vocab.from_config(SMALL).fingerprint() != Vocab.from_config(text_and_image()).fingerprint()
    assert Vocab.from_config(text_and_image()).store_dtype() == np.uint16
    assert Vocab.from_config(text_and_image(text_tokens=49_153)).store_dtype() == np.uint32


def test_fingerprints_of_fixed_layouts_stay_what_existing_stores_remember():
    assert Vocab.from_config(text_and_image()).fingerprint() == "d44e901c779827d5"
    assert Vocab.from_config(SMALL).fingerprint() == "8f7256c0449eaf0a"
    assert Vocab.from_config(GRID).fingerprint() != Vocab.from_config(grid_with(max_grids=3)).fingerprint()


def test_grid_ids_of_the_released_layout_are_those_of_lumina():
    vocab = Vocab.from_config(text_and_image(image_span="grid", codes_per_image=4096))
    image = vocab.modalities[IMAGE]
    grid = image.grammar
    assert (grid.newline, grid.size_base, vocab.end_of_turn) == (8803, 8804, 8710)
    assert [grid.length(n, n) for n in (32, 48, 64)] == [1060, 2356, 4164]
    ids = image.span(np.arange(32 * 48).reshape(32, 48))
    assert ids[:4].tolist() == [8197, 8804 + 16, 8804 + 24, 4]
    assert ids[3 + 48] == ids[-2] == 8803 and ids[-1] == 8196 and len(ids) == grid.length(32, 48)


@pytest.mark.parametrize("reserved", [8, 9, 100, 513, 514, 515, 606, 610, 611, 612, 700])
def test_grid_ids_have_a_place_of_their_own_in_layouts_of_any_size(reserved):
    vocab = Vocab.from_config(grid_with(reserved=reserved))
    grid = vocab.modalities[IMAGE].grammar
    ids = [grid.newline, *range(grid.size_base, grid.size_base + grid.max_units + 1)]
    ids += [vocab.end_of_turn, vocab.placeholder]
    assert len(set(ids)) == len(ids)
    assert vocab.modalities[IMAGE].begin_marker < min(ids) and max(ids) < vocab.text.start


@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"reserved": 7}, "up to 4 units needs 8 reserved ids .* got 7"),
        ({"max_grids": 0}, "max_grids must be in 1..510, got 0"),
        ({"max_grids": 511, "reserved": 8186}, "got 511"),
        ({"grid_unit": 0}, "grid_unit must be at least 1"),
        ({"codes_per_image": 3}, "length 3 is less than the smallest grid of 2x2"),
    ],
)
def test_grid_layouts_that_cannot_be_are_refused_with_both_numbers(wrong, told):
    with pytest.raises(ConfigError, match=told):
        grid_with(**wrong)


@pytest.mark.parametrize(
    "shape, told",
    [
        ((8,), "shape \\(8,\\) instead of \\[height, width\\]"),
        ((2, 3), "2x3 codes .*multiples of 2 up to 8"),
        ((10, 2), "multiples of 2 up to 8"),
        ((0, 2), "multiples of 2"),
        ((6, 6), "36 codes, 24 are the most"),
    ],
)
def test_a_grid_of_another_shape_is_refused(shape, told):
    with pytest.raises(TokenizerError, match=told):
        Vocab.from_config(GRID).modalities[IMAGE].span(np.zeros(shape, int))


def test_sizes_and_row_ends_count_as_image_and_markers_as_text():
    vocab = Vocab.from_config(GRID)
    image = vocab.modalities[IMAGE]
    span = image.span(np.arange(8).reshape(2, 4))
    assert vocab.modality_of(span).tolist() == [TEXT, *[IMAGE] * (len(span) - 2), TEXT]
    rest = np.setdiff1d(np.arange(image.stop, vocab.size), image.span(np.zeros((2, 2), int)))
    sizes = image.grammar.size_base + np.arange(image.grammar.max_units + 1)
    assert np.all(vocab.modality_of(np.setdiff1d(rest, sizes)) == TEXT)


def test_code_names_spell_decimal_digits():
    assert [code_name(c) for c in (0, 53, 8191)] == ["IMGIMGAZ", "IMGIMGFDZ", "IMGIMGIBJBZ"]
