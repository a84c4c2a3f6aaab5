"""Rows of patches: what cannot be is refused in one line, and no other id moves."""

import dataclasses

import pytest

from chameleon_jax.configs import ImageConfig, ModalityConfig, VocabConfig, text_and_image
from chameleon_jax.errors import ConfigError, TokenizerError
from chameleon_jax.tokenizers.perceived import PatchCodec
from chameleon_jax.vocab import Vocab

SEEN = ModalityConfig(name="seen", ids=1, length=4, codec="patches", output=False)
TABLE = VocabConfig(
    modalities=(
        ModalityConfig(name="words", ids=300, span="free", codec="bpe", may_cut=True),
        ModalityConfig(name="drawings", ids=16, length=4, codec="vqgan"),
        SEEN,
    ),
    reserved=4,
)

BAD_ROWS = {
    "generated": ({"output": True}, "'seen': patches are only taken in: set output=False"),
    "two ids": ({"ids": 2}, "'seen': patches have one id, the placeholder, not 2"),
    "no square": ({"length": 6}, "the length of a span of patches is a square number, got 6"),
    "free": ({"span": "free", "length": 0}, "'seen': patches have fixed spans"),
    "cut": ({"may_cut": True}, "'seen': a span of patches cannot be cut"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_rows_of_patches_that_cannot_be_are_refused(case):
    changes, reason = BAD_ROWS[case]
    with pytest.raises(ConfigError, match=reason):
        dataclasses.replace(SEEN, **changes)


def test_a_row_of_patches_moves_no_other_id():
    plain = Vocab.from_config(dataclasses.replace(TABLE, modalities=TABLE.modalities[:2]))
    with_patches = Vocab.from_config(TABLE)
    assert with_patches.modalities[:2] == plain.modalities and with_patches.size == plain.size + 3
    family, seeing = Vocab.from_config(text_and_image()), Vocab.from_config(text_and_image(patches=1024))
    assert seeing.modalities[:2] == family.modalities and seeing.perceived.name == "seen"


def test_a_codec_that_contradicts_its_row_is_refused():
    codec = PatchCodec(config=ImageConfig(resolution=9), patches=4)
    with pytest.raises(TokenizerError, match="4 patches, 2 a side, of which 9 pixels is no multiple"):
        codec.check(SEEN)
