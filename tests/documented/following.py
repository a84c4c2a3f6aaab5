"""What the three files of stories share: one test a block."""

import fnmatch
import re

import pytest

from tests.documented import blocks, table
from tests.documented.story import Story


def every_block(name):
    """A parametrize mark: the blocks of a story's pages that are run, in order."""
    found = [
        block
        for page in table.STORIES[name]
        for block in blocks.of_page(page)
        if block.kind != "text" or table.of_block(table.USED, block)
    ]
    return pytest.mark.parametrize("block", found, ids=str)


def gin_files_left_out(story, name):
    """Those that the commands of the story should have run, and did not."""
    ran = set(
        re.findall(r"gin_configs/[\w/]+\.gin", " ".join(entry["run"] for entry in story.ran() if not entry["code"]))
    )
    files = [str(path.relative_to(blocks.ROOT)) for path in (blocks.ROOT / "gin_configs").rglob("*.gin")]
    return {file for file in files for p in table.GIN_FILES[name] if fnmatch.fnmatch(file, p)} - ran


def told(tmp_path_factory, name):
    """Yields the story; ends its processes."""
    story = Story(tmp_path_factory.mktemp("story") / name)
    yield story
    story.close()
