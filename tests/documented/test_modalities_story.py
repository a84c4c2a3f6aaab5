"""Released checkpoints, further modalities and generation, command by command."""

import pytest

from tests.documented import following

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    yield from following.told(tmp_path_factory, "modalities")


@following.every_block("modalities")
def test_it_runs(story, block):
    story.follow(block)


def test_every_gin_file_was_run(story):
    assert not following.gin_files_left_out(story, "modalities")
