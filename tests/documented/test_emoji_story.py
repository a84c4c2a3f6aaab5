"""The emoji run and what is measured, looked at and served of it, command by command."""

import pytest

from tests.documented import following

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    yield from following.told(tmp_path_factory, "emoji")


@following.every_block("emoji")
def test_it_runs(story, block):
    story.follow(block)


def test_every_gin_file_was_run(story):
    assert not following.gin_files_left_out(story, "emoji")
