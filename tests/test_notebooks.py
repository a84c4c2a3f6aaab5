"""Notebooks run from top to bottom, at the size that they have without a trained run."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs(path, capsys):
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    sources = ["".join(cell["source"]) for cell in cells]
    names = {}
    for source in (s for s in sources if "%pip" not in s):
        exec(compile(source, str(path), "exec"), names)
    assert "residual_rms" in capsys.readouterr().out
    assert len(names["residual"]) == names["config"].n_layers
