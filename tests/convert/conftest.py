"""A small release of Meta's in four shards, and the command that converts it."""

import pytest

from tests.convert import small_release


@pytest.fixture(scope="session")
def text_tokenizer_json():
    return small_release.text_tokenizer_json()


@pytest.fixture(scope="session")
def release_sizes():
    """(sizes of the transformer, sizes of the codec) that fit the tokenizer."""
    pytest.importorskip("torch")
    return small_release.sizes(swin=True)


@pytest.fixture(scope="session")
def release_parts(release_sizes):
    """(shards of the transformer, torch codec)."""
    from tests.convert import meta_reference, torch_vqgan

    sizes, codec = release_sizes
    return meta_reference.random_shards(sizes, 4), torch_vqgan.random_vqgan(codec)


@pytest.fixture
def release_tree(tmp_path, release_sizes, release_parts):
    """The folder `data` of a release: tokenizer/ and models/30b/ with four shards."""
    (sizes, codec), (shards, vqgan) = release_sizes, release_parts
    small_release.write_tree(tmp_path / "data", "30b", sizes, shards, codec, vqgan)
    return tmp_path / "data"


@pytest.fixture
def convert(capsys):
    """convert(*flags) -> (exit code, standard output, standard error) of experiments.convert."""
    from chameleon_jax import cli
    from experiments import convert as command

    def run(*flags):
        argv = [str(flag) for flag in flags]
        with pytest.raises(SystemExit) as stop:
            cli.run(command.main, None, command.__doc__, add_flags=command._flags, workdir=False, argv=argv)
        out = capsys.readouterr()
        return stop.value.code, out.out, out.err

    return run
