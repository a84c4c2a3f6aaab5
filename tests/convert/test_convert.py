"""Whole releases through the command: Meta's tree to a workdir, to Transformers, to Meta's again; Anole and Lumina-mGPT."""

import json
import shlex
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from chameleon_jax import cli
from chameleon_jax.configs import GenerationConfig
from chameleon_jax.errors import TokenizerError
from chameleon_jax.evaluation.inspection import print_path
from chameleon_jax.generation.engine import generate
from chameleon_jax.generation.loading import load_run
from chameleon_jax.generation.prompt import TextOutput, build_request, encode_turns, read_output
from chameleon_jax.models import transformer
from experiments import generate as generate_command

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from tests.convert import meta_reference, small_release  # noqa: E402

TOKENS = np.random.default_rng(5).integers(40, 300, 24)


def logits_of(run):
    tokens = jax.numpy.asarray(TOKENS)[None]
    positions, segments = jax.numpy.arange(len(TOKENS))[None], jax.numpy.ones_like(tokens)
    hidden = transformer.forward(run.params, tokens, positions, segments, run.model).hidden
    return np.asarray(transformer.logits(run.params, hidden, run.model)[0])


def assert_same_run(a, b):
    assert a.model == b.model
    for x, y in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True):
        assert np.array_equal(np.asarray(x), np.asarray(y))
    assert a.bundle.fingerprint() == b.bundle.fingerprint()


def picture(width=20, height=16):
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def test_a_release_of_meta_becomes_a_workdir_that_computes_and_generates(
    tmp_path, release_tree, release_sizes, release_parts, monkeypatch
):
    (sizes, _), (shards, vqgan) = release_sizes, release_parts
    command = [sys.executable, "-m", "experiments.convert", f"--source={release_tree}", f"--output={tmp_path / 'run'}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "dropped" in done.stdout and "rope.freqs and 3 more" in done.stdout and "loss.logvar" in done.stdout
    run = load_run(tmp_path / "run")
    expected = meta_reference.forward(sizes, shards, torch.from_numpy(TOKENS)).numpy()
    np.testing.assert_allclose(logits_of(run), expected, atol=2e-4)

    pixels = np.asarray(picture(16, 16), np.float32) / 127.5 - 1
    codes = run.bundle.pictures.encode(pixels[None])
    with torch.no_grad():
        theirs = vqgan.encode(torch.from_numpy(pixels.transpose(2, 0, 1))[None]).flatten().numpy()
    assert np.array_equal(codes[0], theirs)

    prompt = encode_turns([["a red fox"]], run.bundle)
    config = GenerationConfig(mode="image", max_spans={"image": 1})
    [output] = generate(run.params, run.model, run.bundle.vocab, [prompt], config)
    [drawn] = read_output(output.ids, run.bundle)
    assert drawn.item.shape == (16, 16, 3)

    line = next(line for line in done.stdout.splitlines() if line.startswith("  next"))
    monkeypatch.chdir(tmp_path)
    python, _, module, *flags = shlex.split(line.removeprefix("  next"))
    assert (python, module) == ("python", "experiments.generate")
    with pytest.raises(SystemExit) as ended:  # the command that is told, as it is told
        cli.run(generate_command.main, GenerationConfig, "", add_flags=generate_command._flags, argv=flags)
    assert ended.value.code == 0 and json.loads((tmp_path / "out" / "00.json").read_text())["format"] == "chat"

    report = json.loads((tmp_path / "run" / "convert.json").read_text())
    listed = sum(len(keys) for keys in report["used"].values()) + len(report["dropped"])
    assert listed == sum(len(state) for state in shards) + len(vqgan.state_dict()) + 1


def test_every_layout_leads_back_to_the_same_model(tmp_path, release_tree, convert):
    """Meta -> ours -> Hugging Face -> Meta -> ours, and Transformers runs the export."""
    for number, (source, layout) in enumerate(
        [(release_tree, "jax"), ("0", "hf"), ("1", "meta"), ("2", "jax"), ("1", "jax")]
    ):
        flags = ("--shards=4",) if layout == "meta" else ("--max_shard_gb=0.0001",)
        places = (f"--source={tmp_path / source}", f"--output={tmp_path / str(number)}")
        code, _, err = convert(*places, f"--to={layout}", *flags)
        assert code == 0, err
    first = load_run(tmp_path / "0")
    assert_same_run(first, load_run(tmp_path / "3"))
    assert_same_run(first, load_run(tmp_path / "4"))

    folder = tmp_path / "1"
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    model = transformers.ChameleonForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        hidden = model.model(input_ids=torch.from_numpy(TOKENS)[None], use_cache=False).last_hidden_state
        theirs = model.lm_head(hidden)[0].numpy()
    np.testing.assert_allclose(logits_of(first), theirs, atol=2e-4)

    processor = transformers.ChameleonProcessor.from_pretrained(folder)
    text = "a red fox"
    batch = processor(text=f"<image>{text}", images=picture(16, 16), return_tensors="pt")
    vocab, image = first.bundle.vocab, first.bundle.vocab.modalities[1]
    ids = batch["input_ids"][0].numpy()
    assert list(ids[:2]) == [vocab.bos, image.begin_marker] and ids[-1] == vocab.end_of_turn
    assert list(ids[2:18]) == [vocab.placeholder] * 16 and ids[18] == image.end_marker
    assert list(ids[19:-1]) == list(first.bundle.text.encode(text))
    with torch.no_grad():
        codes = model.model.get_image_tokens(batch["pixel_values"]).flatten().numpy()
    ours = first.bundle.pictures.encode(batch["pixel_values"].numpy().transpose(0, 2, 3, 1))
    assert np.array_equal(image.ids(ours[0]), codes)


def test_hugging_faces_codec_has_no_decoder_until_one_is_given(tmp_path, release_tree, convert):
    assert convert(f"--source={release_tree}", f"--output={tmp_path / 'run'}")[0] == 0
    assert convert(f"--source={tmp_path / 'run'}", f"--output={tmp_path / 'hf'}", "--to=hf")[0] == 0
    file = tmp_path / "hf" / "model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if "decoder" not in k}, file)
    code, out, _ = convert(f"--source={tmp_path / 'hf'}", f"--output={tmp_path / 'half'}")
    assert code == 0 and "no decoder: pictures can be read, not written; give --vqgan" in out
    half = load_run(tmp_path / "half")
    assert half.bundle.pictures.encode(np.zeros((1, 16, 16, 3), np.float32)).shape == (1, 16)
    with pytest.raises(TokenizerError, match="no decoder"):
        half.bundle.pictures.decode(np.zeros((1, 16), int))
    vqgan = release_tree / "tokenizer" / "vqgan.ckpt"
    assert convert(f"--source={tmp_path / 'hf'}", f"--output={tmp_path / 'whole'}", f"--vqgan={vqgan}")[0] == 0
    assert_same_run(load_run(tmp_path / "whole"), load_run(tmp_path / "run"))


def test_lumina_has_no_codec_of_its_own_and_draws_pictures_of_any_size(tmp_path, release_tree, convert):
    assert convert(f"--source={release_tree}", f"--output={tmp_path / 'run'}")[0] == 0
    assert convert(f"--source={tmp_path / 'run'}", f"--output={tmp_path / 'hf'}", "--to=hf")[0] == 0
    small_release.as_lumina(tmp_path / "hf")
    code, out, err = convert(f"--source={tmp_path / 'hf'}", f"--output={tmp_path / 'words'}")
    assert code == 0 and "from lumina layout" in out and "no image codec found: give --vqgan" in out, err
    codec = release_tree / "tokenizer" / "vqgan.ckpt"
    flags = (f"--vqgan={codec}", "--resolution=64", f"--output={tmp_path / 'lumina'}")
    assert convert(f"--source={tmp_path / 'hf'}", *flags)[0] == 0
    run = load_run(tmp_path / "lumina")
    assert (run.bundle.vocab_config.modalities[1].span, run.bundle.pictures.config.resolution) == ("grid", 64)
    np.testing.assert_array_equal(logits_of(run), logits_of(load_run(tmp_path / "run")))
    config = GenerationConfig(mode="image", max_spans={"image": 1})
    request = build_request(["a red fox"], run.bundle, config, format="lumina", image_size=(24, 16))
    [output] = generate(run.params, run.model, run.bundle.vocab, [request.prompt], request.config)
    [drawn] = read_output(output.ids, run.bundle)
    assert drawn.item.shape == (16, 24, 3)
    # and out again, as the same flavour
    assert convert(f"--source={tmp_path / 'lumina'}", f"--output={tmp_path / 'out'}", "--to=hf")[0] == 0
    assert convert(f"--source={tmp_path / 'out'}", f"--output={tmp_path / 'back'}", "--resolution=64")[0] == 0
    assert_same_run(run, load_run(tmp_path / "back"))


def test_a_workdir_without_a_codec_still_writes_words(tmp_path, release_tree, convert):
    for name in ("vqgan.ckpt", "vqgan.yaml"):
        (release_tree / "tokenizer" / name).unlink()
    code, out, _ = convert(f"--source={release_tree / 'models' / '30b'}", f"--output={tmp_path / 'run'}")
    assert code == 0 and "no image codec found" in out
    run = load_run(tmp_path / "run")
    assert run.bundle.pictures.vqgan is None
    prompt = encode_turns([["a red fox"]], run.bundle)
    [output] = generate(run.params, run.model, run.bundle.vocab, [prompt], GenerationConfig(mode="text", max_tokens=4))
    assert len(output.ids) and all(isinstance(part, TextOutput) for part in read_output(output.ids, run.bundle))


def test_the_codec_is_left_out_on_request(tmp_path, release_tree, convert, capsys):
    assert convert(f"--source={release_tree}", f"--output={tmp_path / 'run'}")[0] == 0
    flags = ("--to=hf", "--without_codec")
    assert convert(f"--source={tmp_path / 'run'}", f"--output={tmp_path / 'hf'}", *flags)[0] == 0
    assert not [key for key in load_file(tmp_path / "hf" / "model.safetensors") if "vqmodel" in key]
    assert convert(f"--source={tmp_path / 'hf'}", f"--output={tmp_path / 'back'}")[0] == 0
    back = load_run(tmp_path / "back").bundle
    assert back.pictures.vqgan is None and back.vocab.modalities[1].grammar.length == 16
    print_path(str(tmp_path / "back" / "tokenizer"), verify=False)
    assert "neither read nor written" in capsys.readouterr().out


def test_paths_may_be_relative(tmp_path, release_tree, convert, monkeypatch):
    monkeypatch.chdir(release_tree / "models" / "30b")
    code, out, _ = convert("--source=.", "--output=../../../run/")
    assert code == 0 and "no image codec" not in out and "no text tokenizer" not in out
    assert load_run(tmp_path / "run").bundle.pictures.vqgan.has_decoder


def test_a_tokenizer_may_come_later(tmp_path, release_tree, convert):
    """Weights and codec first: the codec is kept, and the workdir becomes whole when the tokenizer is there."""
    assert convert(f"--source={release_tree}", f"--output={tmp_path / 'run'}")[0] == 0
    file = release_tree / "tokenizer" / "text_tokenizer.json"
    file.rename(tmp_path / "words.json")
    code, out, _ = convert(f"--source={release_tree}", f"--output={tmp_path / 'half'}")
    assert code == 0 and "no text tokenizer found: give --tokenizer" in out
    flags = (f"--tokenizer={tmp_path / 'words.json'}", f"--output={tmp_path / 'whole'}")
    assert convert(f"--source={tmp_path / 'half'}", *flags)[0] == 0
    assert_same_run(load_run(tmp_path / "run"), load_run(tmp_path / "whole"))


def test_the_text_tokenizer_comes_back_from_hugging_face_as_it_was(tmp_path, release_tree, convert):
    original = json.loads((release_tree / "tokenizer" / "text_tokenizer.json").read_text())
    assert convert(f"--source={release_tree}", f"--output={tmp_path / 'hf'}", "--to=hf")[0] == 0
    assert convert(f"--source={tmp_path / 'hf'}", f"--output={tmp_path / 'meta'}", "--to=meta")[0] == 0
    back = json.loads((tmp_path / "meta" / "tokenizer" / "text_tokenizer.json").read_text())
    assert back["model"]["vocab"] == original["model"]["vocab"]
    assert {key: back[key] for key in original if key != "model"} == {k: v for k, v in original.items() if k != "model"}


def test_the_first_layer_of_a_decoder_is_kept_without_the_decoder(tmp_path, release_tree, convert):
    """As Transformers stores it: its module has that layer and no other of the decoder."""
    assert convert(f"--source={release_tree}", f"--output={tmp_path / 'hf'}", "--to=hf")[0] == 0
    file = tmp_path / "hf" / "model.safetensors"
    kept = {key: value for key, value in load_file(file).items() if "vqmodel.decoder." not in key}
    save_file(kept, file)
    for source, output, layout in (("hf", "run", "jax"), ("run", "back", "hf")):
        assert convert(f"--source={tmp_path / source}", f"--output={tmp_path / output}", f"--to={layout}")[0] == 0
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == kept.keys() and all(np.array_equal(back[key], kept[key]) for key in kept)


SLOW = """
import signal, sys, time
from pathlib import Path
import chameleon_jax.convert.meta as meta
read = meta.MetaWeights.read
def slow(self, parameter, layer):
    print("reading", flush=True)
    time.sleep(0.3)
    return read(self, parameter, layer)
meta.MetaWeights.read = slow
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background of a script is started to ignore it
sys.argv[0] = "convert"
import runpy
runpy.run_module("experiments.convert", run_name="__main__")
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_a_conversion_that_is_stopped_leaves_nothing_and_can_be_run_again(tmp_path, release_tree, convert, name):
    command = [sys.executable, "-c", SLOW, f"--source={release_tree}", f"--output={tmp_path / 'run'}"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(6):
        assert child.stdout.readline() == "reading\n"
    child.send_signal(getattr(signal, name))
    _, err = child.communicate(timeout=60)
    assert child.returncode == (-signal.SIGKILL if name == "SIGKILL" else 130), err
    left = [path.name for path in tmp_path.iterdir() if "run" in path.name]
    if name != "SIGKILL":
        assert "interrupted" in err and "Traceback" not in err
        assert not left
    assert convert(f"--source={release_tree}", f"--output={tmp_path / 'run'}")[0] == 0
    assert [path.name for path in tmp_path.iterdir() if "run" in path.name] == ["run"]


def test_dtype_rounds_and_says_so(tmp_path, release_tree, convert):
    code, out, _ = convert(f"--source={release_tree}", f"--output={tmp_path / 'run'}", "--dtype=bfloat16")
    assert code == 0 and "rounded from float32 to bfloat16" in out
    run = load_run(tmp_path / "run")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(run.params)} == {"bfloat16"}
    assert (run.model.param_dtype, run.model.compute_dtype) == ("bfloat16", "bfloat16")


def test_numerics_of_a_release_are_asked_for_by_name(tmp_path, release_tree, convert):
    assert convert(f"--source={release_tree}", f"--output={tmp_path / 'run'}", "--numerics=hf")[0] == 0
    numerics = load_run(tmp_path / "run").model.numerics
    assert numerics.round_logits and numerics.round_norms and numerics.masked_ids == (4, 20)
