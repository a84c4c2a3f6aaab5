"""Data of another kind than their modality takes are told in one line, whoever hands them over."""

import numpy as np
import pytest

from chameleon_jax.errors import DataError, TokenizerError
from chameleon_jax.generation.prompt import encode_turns
from chameleon_jax.tokenizers.documents import Segment
from chameleon_jax.tokenizers.waveforms import to_wav
from tests.tiny_run import make_other_run


@pytest.fixture(scope="module")
def bundle():
    return make_other_run().bundle


@pytest.mark.parametrize(
    ("modality", "data", "told"),
    [
        ("words", 3, "'words' is text, a str; int was given"),
        ("words", b"bytes", "'words' is text, a str; bytes was given"),
        ("drawings", "red.png", "a picture is the bytes of a file or a PIL picture; str was given"),
        ("drawings", None, "PIL picture; NoneType was given"),
        ("drawings", b"GIF", "not a JPEG, PNG"),
        ("drawings", np.zeros((16, 16)), r"pictures have shape \(1, 16, 16\), expected"),
        ("calls", [0.0, 0.1], "a sound is the bytes of a WAV file; list was given"),
        ("calls", np.zeros(7), r"sounds have shape \(1, 7\), the codec wants"),
        ("calls", to_wav(np.zeros(100) + 0.5, 500), "500 samples a second, which must be 1000"),
        ("moves", "left", "moves"),
    ],
)
def test_data_of_another_kind_than_their_modality_are_told_in_one_line(modality, data, told, bundle):
    with pytest.raises((DataError, TokenizerError), match=told) as caught:
        encode_turns([[Segment(modality, data)]], bundle)
    assert "\n" not in str(caught.value)
