"""Every page and every block of one is run by a story, or a table says why not; a new one fails here with what to add."""

import fnmatch
import re
import subprocess

import pytest

from tests.documented import blocks, story, table
from tests.documented.blocks import ROOT

PAGES = blocks.pages()


def test_every_page_is_in_one_story():
    told = [page for pages in table.STORIES.values() for page in pages]
    assert sorted(told) == sorted(PAGES), "add the page to STORIES in tests/documented/table.py"


@pytest.mark.parametrize("page", PAGES)
def test_every_command_has_a_row(page):
    for block in blocks.of_page(page):
        if block.kind == "shell":
            for module, rest in re.findall(r"python -m (experiments\.\w+)([^\n]*)", block.text.replace("\\\n", " ")):
                table.reduced("python", ["-m", module, *rest.partition(" #")[0].split()])


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_text_is_known(page):
    for block in blocks.of_page(page):
        if block.kind == "text":
            known = [name for name in ("USED", "QUOTED", "SHOWN") if table.of_block(getattr(table, name), block)]
            assert len(known) == 1, f"{block}: say in USED, QUOTED or SHOWN of tests/documented/table.py what it is"


@pytest.mark.parametrize(("page", "beginning"), list(table.QUOTED), ids=lambda value: value)
def test_what_a_page_quotes_of_a_gin_file_stands_in_it(page, beginning):
    (block,) = (b for b in blocks.of_page(page) if b.kind == "text" and b.text.startswith(beginning))
    there = {_plain(line) for line in (ROOT / table.QUOTED[page, beginning]).read_text().splitlines()}
    assert {_plain(line) for line in block.text.splitlines()} <= there | {""}


def _plain(line):
    return line.partition("#")[0].strip().replace('"', "'")


def test_no_row_and_no_entry_is_left_over():
    every = [block for page in PAGES for block in blocks.of_page(page)]
    for name in ("USED", "QUOTED", "SHOWN", "PROMISED", "DEVICES", "SNIPPETS", "SERVERS"):
        for page, beginning in getattr(table, name):
            found = [block for block in every if block.page == page and block.text.startswith(beginning)]
            assert len(found) >= 1, f"{name} of tests/documented/table.py names {page}, {beginning!r}, which is gone"
    assert set(table.GIVEN) <= set(PAGES)


def test_every_gin_file_is_run_by_one_story():
    files = [str(path.relative_to(ROOT)) for path in (ROOT / "gin_configs").rglob("*.gin")]
    for file in files:
        owed = [name for name, patterns in table.GIN_FILES.items() if any(fnmatch.fnmatch(file, p) for p in patterns)]
        assert len(owed) == 1, f"{file}: add it to GIN_FILES in tests/documented/table.py, and its command to a page"


def test_a_command_that_no_row_knows_is_told():
    with pytest.raises(
        LookupError, match=r"no row of tests/documented/table.py .* add how it is made small: dream --long"
    ):
        table.reduced("python", ["-m", "experiments.dream", "--long"])


def test_a_page_is_taken_apart(tmp_path, monkeypatch):
    page = "Run `python -m experiments.inspect a\n--verify` first.\n\n```bash\nls\n```\n"
    (tmp_path / "page.md").write_text(f"{page}\n  ```\n  A.b = 1\n  ```\n\n```python\nprint(1)\n```\n")
    monkeypatch.setattr(blocks, "ROOT", tmp_path)
    assert [(block.line, block.kind, block.text) for block in blocks.of_page("page.md")] == [
        (1, "shell", "python -m experiments.inspect a --verify"),
        (4, "shell", "ls\n"),
        (8, "text", "A.b = 1\n"),
        (12, "python", "print(1)\n"),
    ]


@pytest.mark.parametrize(("text", "code"), [
    ("(exit 3) & # two\nls", 3), ("(sleep 0.1; exit 4) &\ntrue &", 4), ("true &\ntrue && ls 'a&b'", 2), ("true &\n", 0), ("ls", 0),
])  # fmt: skip
def test_a_command_in_the_background_that_fails_ends_a_block(text, code):
    done = subprocess.run(["bash", "-c", f"set -eo pipefail\n{story.waiting(text)}"], capture_output=True, check=False)
    assert done.returncode == code
