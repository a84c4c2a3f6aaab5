"""Inspection tables show what is there, and refuse what is nothing of ours."""

import pytest

from chameleon_jax.configs import TransformerConfig
from chameleon_jax.errors import ChameleonError
from chameleon_jax.evaluation import inspection
from chameleon_jax.models import params, transformer

CONFIG = TransformerConfig(vocab_size=100, d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=24)


def test_the_parameter_table_sums_to_the_whole(capsys):
    inspection.print_parameters(CONFIG)
    text = capsys.readouterr().out
    assert f"{params.count(transformer.param_specs(CONFIG)):,}" in text
    assert "layers/attn/wq" in text and "2 x 16 x 2 x 8" in text


def test_a_token_store_is_described_and_verified(capsys, make_store):
    made = make_store()
    inspection.print_path(made.path, verify=True)
    text = capsys.readouterr().out
    assert "every shard" in text
    assert f"{sum(len(d.ids) for d in made.documents):,}" in text


@pytest.mark.parametrize("path", ["", "missing"])
def test_other_folders_are_refused(path, tmp_path):
    with pytest.raises(ChameleonError, match=r"is no(t| )"):
        inspection.print_path(str(tmp_path / path), verify=False)
