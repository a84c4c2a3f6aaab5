"""experiments.generate from its flags to the files it writes, on a tiny random model."""

import re

import jax
import numpy as np
import pytest
from PIL import Image

from chameleon_jax import cli
from chameleon_jax.configs import GenerationConfig
from chameleon_jax.generation import engine, loading
from chameleon_jax.generation.output_files import write_output
from chameleon_jax.generation.prompt import SpanOutput, TextOutput
from experiments import generate
from tests.tiny_run import make_run


@pytest.fixture(scope="module")
def loaded():
    """A run with pictures of up to 16 codes of 4x4 pixels, sides in units of 8 pixels."""
    return make_run(is_grid=True)


@pytest.fixture
def command(loaded, monkeypatch, tmp_path):
    """command(*flags, code=0) -> prompts that the engine was given; files go to tmp_path/out."""
    monkeypatch.setattr(loading, "load_run", lambda workdir, mesh: loaded)
    prompts, generate_ids = [], engine.generate

    def spy(params, model, vocab, given, config, pictures, donate):
        assert donate  # the command needs them once; the tests' run goes on
        prompts.extend(given)
        return generate_ids(params, model, vocab, given, config, pictures=pictures)

    monkeypatch.setattr(engine, "generate", spy)

    def call(*flags, code=0):
        argv = ["--workdir=run", *flags, f"--out={tmp_path / 'out'}"]
        with pytest.raises(SystemExit) as stop:
            cli.run(generate.main, GenerationConfig, generate.__doc__, add_flags=generate._flags, argv=argv)
        assert stop.value.code == code
        return prompts

    return call


def test_a_picture_of_the_size_asked_for_is_written(command, loaded, tmp_path):
    flags = ["--format=lumina", "--image_size=8x24", "--mode=image", "--max_images=1", "--prompt=a heart", "--count=2"]
    first, second = command(*flags)
    assert first[-1] == loaded.bundle.vocab.end_of_turn and np.array_equal(first, second)
    assert loaded.bundle.text.decode(first) == ("Generate an image of 8x24 according to the following prompt:\na heart")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["00-0.png", "00.txt", "01-0.png", "01.txt"]
    assert Image.open(tmp_path / "out" / "00-0.png").size == (8, 24)
    assert (tmp_path / "out" / "00.txt").read_text() == "[00-0.png]\n"


def test_pictures_of_any_shape_go_into_a_chat(command, loaded, tmp_path):
    for name, size in (("a.png", (40, 20)), ("b.png", (9, 30))):
        Image.new("RGB", size, "red").save(tmp_path / name)
    images = [f"--image={tmp_path / name}" for name in ("a.png", "b.png")]
    (ids,) = command("--format=chat", "--mode=text", "--prompt=<image> or <image>?", "--max_tokens=5", *images)
    vocab = loaded.bundle.vocab
    assert (ids == vocab.modalities[vocab.row("image")].begin_marker).sum() == 2 and ids[-1] == vocab.end_of_turn
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["00.txt"]


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--count=0"], "--count is 0"),
        (["--image=missing.png"], "missing.png cannot be read: No such file"),
        (["--image_size=8x12"], "8x12 pixels .* multiples of 8"),
        (["--temperature=-1"], "temperature must be finite and >= 0"),
        *[
            ([f"--image_size={size}"], f"--image_size={size}: .*like 768x512")
            for size in ("768", "768x", "x512", "axb")
        ],
        (["--image_size=768x-5"], "--image_size=768x-5: no width and height in pixels like 768x512"),
        (["--guidance=mta"], r"one of <meta\|lumina> \(did you mean 'meta'\?\)"),
        (["--max_tokens=many"], "--max_tokens=many: not a whole number"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(command, capsys, flags, told):
    command(*flags, code=2)
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(f"error: .*{told}", line)


def test_a_folder_that_cannot_be_made_is_named(command, tmp_path, capsys):
    (tmp_path / "out").write_text("a file")
    command(code=2)
    assert "cannot be made: File exists" in capsys.readouterr().err


def test_a_broken_picture_is_left_out(loaded, tmp_path):
    parts = [TextOutput(text="so "), SpanOutput(modality="image"), TextOutput(text="it is")]
    assert write_output(parts, tmp_path, 0, loaded.bundle) == "so it is"
    assert [path.name for path in tmp_path.iterdir()] == ["00.txt"]


def test_the_mesh_of_the_flag_is_what_the_run_is_loaded_to(command, loaded, monkeypatch):
    meshes = []
    monkeypatch.setattr(loading, "load_run", lambda workdir, mesh: meshes.append(mesh) or loaded)
    for flags in ([], ["--mesh=data=2,tensor=-1"]):
        command("--prompt=words", "--mode=text", "--max_tokens=2", *flags)
    assert meshes[0] is None
    assert dict(meshes[1].shape) == {"data": 2, "fsdp": 1, "tensor": jax.device_count() // 2}
