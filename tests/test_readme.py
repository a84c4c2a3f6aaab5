"""The Python of the README and of the pages runs as it stands there, on a small model of random weights."""

import re
from pathlib import Path

import pytest
from PIL import Image

from chameleon_jax.errors import GenerationError
from chameleon_jax.evaluation.likelihood import score_answer
from chameleon_jax.generation import loading
from tests.tiny_run import make_run

ROOT = Path(__file__).parents[1]
SNIPPETS = {
    name: re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text(), re.M | re.S)
    for name in ("README.md", "docs/architecture.md")
}


@pytest.fixture(scope="module")
def run():
    return make_run()


@pytest.mark.parametrize("name", SNIPPETS)
def test_it_runs(name, run, monkeypatch):
    monkeypatch.setattr(loading, "load_run", lambda workdir: run)
    (snippet,) = SNIPPETS[name]
    names = {}
    exec(compile(snippet, name, "exec"), names)
    if name == "README.md":
        assert all(isinstance(part, (str, Image.Image)) for part in names["answer"])


def test_the_score_of_an_answer_in_parts_is_that_of_the_whole(run):
    picture = Image.new("RGB", (16, 16), "red")
    parts = score_answer(run, ["a red heart"], [picture]) + score_answer(run, ["a red heart", picture], ["some"])
    assert parts == pytest.approx(score_answer(run, ["a red heart"], [picture, "some"]), rel=1e-4) and parts < 0
    with pytest.raises(GenerationError, match="one piece: part them at a space"):
        score_answer(run, ["a red hea"], ["rt"])
