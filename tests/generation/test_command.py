"""experiments.generate from its flags to the files it writes, on a tiny random model."""

import json
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from chameleon_jax import cli
from chameleon_jax.configs import GenerationConfig
from chameleon_jax.generation import drawing, loading
from chameleon_jax.generation.output_files import OutputFiles, contact_sheet, record_of
from chameleon_jax.generation.prompt import SpanOutput, TextOutput
from experiments import generate
from tests.tiny_run import make_run


@pytest.fixture(scope="module")
def loaded():
    """A run with pictures of up to 16 codes of 4x4 pixels, sides in units of 8 pixels."""
    return make_run(is_grid=True)


def fresh(run):
    """The run with weights of its own: the command gives its weights away."""
    return types.SimpleNamespace(**vars(run) | {"params": jax.tree.map(jnp.copy, run.params)})


@pytest.fixture
def command(loaded, monkeypatch, tmp_path):
    """command(*flags, code=0) -> prompts that were drawn; files go to tmp_path/out."""
    monkeypatch.setattr(loading, "load_run", lambda workdir, mesh: fresh(loaded))
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    draw = drawing.draw

    def call(*flags, code=0):
        prompts = []

        def spy(run, asked, folder, *, together):
            prompts.extend(one.request.prompt for one in asked)
            return draw(run, asked, folder, together=together)

        monkeypatch.setattr(drawing, "draw", spy)
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
    assert names == ["00-0.png", "00.json", "00.txt", "01-0.png", "01.json", "01.txt", "sheet.png"]
    assert Image.open(tmp_path / "out" / "00-0.png").size == (8, 24)
    records = [record_of(tmp_path / "out" / f"0{row}-0.png") for row in (0, 1)]
    beside = json.loads((tmp_path / "out" / "01.json").read_text())
    assert beside == records[1] | {"words": "[01-0.png]", "files": ["01-0.png"]}
    assert records[1] == records[0] | {"row": 1} and records[0]["prompt"] == "a heart" and records[0]["step"] == 3
    assert GenerationConfig.from_dict(records[0]["settings"]).grids == {"image": (6, 2)}
    assert records[0]["image_size"] == "8x24" and records[0]["format"] == "lumina"
    sheet = Image.open(tmp_path / "out" / "sheet.png")
    assert sheet.size == (2 * (32 + 8) + 8, 96 + 16 + 2 * 8)  # four pixels for one, and a name below
    assert (tmp_path / "out" / "00.txt").read_text() == "[00-0.png]\n"


def test_pictures_of_any_shape_go_into_a_chat(command, loaded, tmp_path):
    for name, size in (("a.png", (40, 20)), ("b.png", (9, 30))):
        Image.new("RGB", size, "red").save(tmp_path / name)
    images = [f"--image={tmp_path / name}" for name in ("a.png", "b.png")]
    (ids,) = command("--format=chat", "--mode=text", "--prompt=<image> or <image>?", "--max_tokens=5", *images)
    vocab = loaded.bundle.vocab
    assert (ids == vocab.modalities[vocab.row("image")].begin_marker).sum() == 2 and ids[-1] == vocab.end_of_turn
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["00.json", "00.txt"]


LINES = [
    {"prompt": "a red heart", "seed": 7, "count": 2},
    {"prompt": "<image>größe", "image": "IMAGE", "mode": "text", "max_tokens": 4, "temperature": 0},
    {"prompt": "some words"},
]


def test_a_file_of_requests_is_drawn_and_goes_on_where_it_was(command, loaded, tmp_path, capsys):
    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    lines = [json.dumps(line).replace("IMAGE", str(tmp_path / "red.png")) for line in LINES]
    (tmp_path / "asked.jsonl").write_text("\n".join([lines[0], "", *lines[1:]]) + "\n")
    flags = [f"--prompts={tmp_path / 'asked.jsonl'}", "--mode=image", "--max_images=1", "--image_size=8x8"]
    assert len(command(*flags)) == 4
    out, told = tmp_path / "out", capsys.readouterr()
    texts = sorted(path.name for path in out.glob("*.txt"))
    assert texts == ["0000-00.txt", "0000-01.txt", "0002.txt", "0003.txt"]
    assert "4 outputs with 3 files" in told.out and "4 of 4 outputs, 3 files" in told.err
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert command(*flags) == []  # all lie there
    (out / "0000-01-0.png").unlink()
    (out / "0003.json").unlink()
    assert len(command(*flags)) == 2
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before  # the same pictures, bit for bit
    Image.new("RGB", (16, 16), "blue").save(tmp_path / "red.png")
    assert len(command(*flags)) == sum("IMAGE" in json.dumps(line) for line in LINES)  # of another picture
    assert len(command(*flags, "--seed=5")) == 2  # what another seed changes; the first line has its own


@pytest.mark.parametrize(
    "content, told",
    [
        ('{"prompt": "a"}\n{"promt": "b"}', "asked.jsonl line 2: unknown field 'promt' .did you mean 'prompt'"),
        ("a red heart", "asked.jsonl line 1 is not JSON"),
        ('["a"]', "asked.jsonl line 1 is no object like"),
        ('{"seed": "3"}', "asked.jsonl line 1: 'seed' must be a whole number, got '3'"),
        ('{"image": "none.png"}', "asked.jsonl line 1: none.png cannot be read: No such file"),
        ('{"mode": "imge"}', "asked.jsonl line 1: .*did you mean 'image'"),
        (
            '{"format": "cat"}',
            "asked.jsonl line 1: format 'cat' is none of completion, chat, lumina .did you mean 'chat'",
        ),
        ('{"image_size": "big"}', "asked.jsonl line 1: image_size 'big': no width and height"),
        ("\n\n", "asked.jsonl has no lines: write one request a line"),
    ],
)
def test_a_wrong_line_is_named_before_anything_is_drawn(command, capsys, tmp_path, content, told):
    (tmp_path / "asked.jsonl").write_text(content)
    assert command(f"--prompts={tmp_path / 'asked.jsonl'}", code=2) == []
    assert re.match(f"error: .*{told}", capsys.readouterr().err.splitlines()[-1])


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--count=0"], "--count is 0"),
        (["--prompt=a", "--prompt=b"], "--prompt is given twice"),
        (["--together=0"], "--together is 0"),
        (["--chat", "--prompt=a"], "--chat and --prompt ask for different things"),
        (["--chat", "--prompts=a"], "--chat and --prompts ask for different things"),
        (["--prompts=none.jsonl"], "none.jsonl cannot be read: No such file"),
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


def test_nothing_is_made_where_there_is_no_run(command, tmp_path, capsys):
    (tmp_path / "run" / "checkpoints").rmdir()
    command(code=2)
    assert "run is not the workdir of a run" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_named(command, tmp_path, capsys):
    (tmp_path / "out").write_text("a file")
    command(code=2)
    assert "cannot be made: File exists" in capsys.readouterr().err


def test_a_sheet_has_the_first_256_of_many_pictures(tmp_path):
    Image.new("RGB", (2, 2), "red").save(tmp_path / "red.png")
    Image.new("RGB", (200, 200), "blue").save(tmp_path / "blue.png")
    assert contact_sheet(tmp_path, ["red.png", "red.txt"]) is None
    sheet = Image.open(contact_sheet(tmp_path, ["red.png"] * 256 + ["blue.png"] * 10))
    assert sheet.size == (16 * (96 + 8) + 8, 16 * (96 + 8 + 16) + 8) and sheet.getpixel((12, 12)) == (255, 0, 0)


def test_a_broken_picture_is_left_out(loaded, tmp_path):
    files = OutputFiles(tmp_path, "00", loaded.bundle)
    for part in (TextOutput(text="so "), SpanOutput(modality="image"), TextOutput(text="it is")):
        files.add(part)
    assert files.close() == "so it is"
    assert [path.name for path in tmp_path.iterdir()] == ["00.txt"]


def test_the_mesh_of_the_flag_is_what_the_run_is_loaded_to(command, loaded, monkeypatch):
    meshes = []
    monkeypatch.setattr(loading, "load_run", lambda workdir, mesh: meshes.append(mesh) or fresh(loaded))
    for flags in ([], ["--mesh=data=2,tensor=-1"]):
        command("--prompt=words", "--mode=text", "--max_tokens=2", *flags)
    assert meshes[0] is None
    assert dict(meshes[1].shape) == {"data": 2, "fsdp": 1, "tensor": jax.device_count() // 2}
