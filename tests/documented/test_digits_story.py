"""The first pages: README, installation, the digits, one's own data, tokenising and pretraining, command by command."""

import pytest

from tests.documented import blocks, following

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    yield from following.told(tmp_path_factory, "digits")


@following.every_block("digits")
def test_it_runs(story, block):
    story.follow(block)


@pytest.mark.parametrize("name", [path.stem for path in sorted((blocks.ROOT / "gin_configs/models").glob("*.gin"))])
def test_the_file_of_a_release_trains(story, name):
    files = ("gin_configs/base.gin", f"gin_configs/models/{name}.gin", "stores.gin")
    command = f"python -m experiments.pretrain {' '.join(f'--gin_file={file}' for file in files)} --workdir=runs/{name}"
    story.follow(blocks.Block("docs/pretrain.md", 0, "shell", command))


def test_every_gin_file_was_run(story):
    assert not following.gin_files_left_out(story, "digits")
