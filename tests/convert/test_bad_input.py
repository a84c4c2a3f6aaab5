"""Bad checkpoints: one line that names what is wrong, nothing run, and nothing left where the output would have been."""

import json
import os
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from chameleon_jax.convert import hf
from chameleon_jax.convert.meta import MetaWeights

torch = pytest.importorskip("torch")


class Code:
    def __reduce__(self):
        return os.system, ("touch /tmp/code-of-a-checkpoint-was-run",)


def edit_json(path, **changes):
    values = json.loads(path.read_text())
    inner = values["model"] if "model" in values and "vocab" not in values["model"] else values
    for key, value in changes.items():
        if value is None:
            inner.pop(key)
        else:
            inner[key] = value
    path.write_text(json.dumps(values))


def edit_pth(path, change):
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


def truncate(path, part=0.6):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])


def model_of(root):
    return root / "models" / "30b"


def shard(root, rank):
    return model_of(root) / f"consolidated.{rank:02}.pth"


def narrower(state):
    state["layers.1.attention.wq.weight"] = state["layers.1.attention.wq.weight"][:-1].clone()


def integers(state):
    state["output.weight"] = state["output.weight"].to(torch.int8)


META = {
    "no folder": (lambda r: None, r"nowhere is not a folder", "nowhere"),
    "an empty folder": (
        lambda r: (r / "empty").mkdir(),
        r"empty is no checkpoint: Meta's layout has params\.json",
        "empty",
    ),
    "two models": (
        lambda r: (r / "models" / "7b").mkdir() or (r / "models" / "7b" / "params.json").write_text("{}"),
        r"holds 2 models: give one of them",
    ),
    "params.json is not JSON": (
        lambda r: (model_of(r) / "params.json").write_text("{"),
        r"params\.json cannot be read",
    ),
    "params.json is a list": (
        lambda r: (model_of(r) / "params.json").write_text("[]"),
        r"params\.json is not a JSON object",
    ),
    "no dim": (lambda r: edit_json(model_of(r) / "params.json", dim=None), r"params\.json has no 'dim'"),
    "another dim": (
        lambda r: edit_json(model_of(r) / "params.json", dim=48),
        r"tok_embeddings\.weight is float32\[\d+, 8\] in each of 4 shards, params\.json says dim 48",
    ),
    "more layers": (
        lambda r: edit_json(model_of(r) / "params.json", n_layers=3),
        r"consolidated\.00\.pth lacks layers\.2\.",
    ),
    "fewer layers": (
        lambda r: edit_json(model_of(r) / "params.json", n_layers=1),
        r"holds layers\.1\..* and \d+ more, which no layout of this family has",
    ),
    "a width of words": (
        lambda r: edit_json(model_of(r) / "params.json", n_heads="many"),
        r"params\.json with 4 shards is no model",
    ),
    "swin_norm contradicts the flag": (
        lambda r: None,
        r"says norm order 'swin' \(swin_norm True\), 'pre' was asked for",
        "",
        "--norm_order=pre",
    ),
    "swin_norm contradicts itself": (
        lambda r: (model_of(r) / "consolidate_params.json").write_text('{"swin_norm": false}'),
        r"swin_norm is both true and false",
    ),
    "a release of another size": (
        lambda r: None,
        r"is not chameleon-7b: its d_model is 32, that of the release is 4096",
        "",
        "--preset=chameleon-7b",
    ),
    "no shards": (lambda r: [shard(r, i).unlink() for i in range(4)], r"has params\.json but no consolidated\*\.pth"),
    "a missing shard in the middle": (lambda r: shard(r, 1).unlink(), r"lacks consolidated\.01\.pth, one of 4 shards"),
    "a missing shard at the end": (
        lambda r: shard(r, 3).unlink(),
        r"in each of 3 shards, params\.json says dim 32: consolidated\.03\.pth is missing",
    ),
    "only half of the shards": (lambda r: [shard(r, i).unlink() for i in (2, 3)], r"consolidated\.02\.pth is missing"),
    "both kinds of files": (
        lambda r: shard(r, 3).rename(model_of(r) / "consolidated.pth"),
        r"consolidated\.pth and consolidated\.NN\.pth",
    ),
    "shards of two models": (
        lambda r: edit_pth(shard(r, 2), lambda s: s["norm.weight"].mul_(2)),
        r"hold different norm\.weight: they are not shards of one model",
    ),
    "a truncated shard": (lambda r: truncate(shard(r, 2)), r"consolidated\.02\.pth is damaged or cut off"),
    "an empty shard": (lambda r: shard(r, 2).write_bytes(b""), r"consolidated\.02\.pth is damaged or cut off"),
    "a misshapen tensor": (
        lambda r: edit_pth(shard(r, 1), narrower),
        r"consolidated\.01\.pth: layers\.1\.attention\.wq\.weight is float32\[7, 32\], params\.json asks for \[8, 32\]",
    ),
    "a missing tensor": (
        lambda r: edit_pth(shard(r, 1), lambda s: s.pop("layers.0.ffn_norm.weight")),
        r"consolidated\.01\.pth lacks layers\.0\.ffn_norm\.weight, which params\.json asks for as \[32\]",
    ),
    "an unknown tensor": (
        lambda r: edit_pth(shard(r, 0), lambda s: s.update({"layers.0.lora_a": torch.ones(2)})),
        r"holds layers\.0\.lora_a float32\[2\], which no layout of this family has: adapters must be merged",
    ),
    "integers": (
        lambda r: edit_pth(shard(r, 0), integers),
        r"output\.weight is int8\[\d+, 32\]; weights are bfloat16, float16, float32",
    ),
    "a list instead of tensors": (lambda r: torch.save([1], shard(r, 0)), r"holds a list, not a dict of named tensors"),
    "code in a shard": (
        lambda r: torch.save({"a": Code()}, shard(r, 0)),
        r"consolidated\.00\.pth asks to run \w+\.system: refused, nothing of it was run",
    ),
    "code in a plain pickle": (
        lambda r: shard(r, 0).write_bytes(pickle.dumps({"a": Code()}, protocol=2)),
        r"consolidated\.00\.pth .*refused, nothing of it was run",
    ),
    "code in the codec": (
        lambda r: torch.save({"state_dict": {"a": Code()}}, r / "tokenizer" / "vqgan.ckpt"),
        r"vqgan\.ckpt asks to run",
    ),
    "a codec without a tensor": (
        lambda r: edit_pth(r / "tokenizer" / "vqgan.ckpt", lambda s: s["state_dict"].pop("encoder.conv_in.weight")),
        r"vqgan\.ckpt lacks encoder\.conv_in\.weight",
    ),
    "a codec of another size": (
        lambda r: (r / "tokenizer" / "vqgan.yaml").unlink(),
        r"vqgan\.ckpt: .* is \[32\], expected \[512\]",
    ),
    "a codec that is none": (
        lambda r: torch.save({"state_dict": {"x": torch.ones(1)}}, r / "tokenizer" / "vqgan.ckpt"),
        r"vqgan\.ckpt has no image codec",
    ),
    "yaml that is none": (
        lambda r: (r / "tokenizer" / "vqgan.yaml").write_text("a: [b"),
        r"vqgan\.yaml cannot be read",
    ),
    "image names that are not code + 4": (
        lambda r: swap_names(r / "tokenizer" / "text_tokenizer.json"),
        r"'IMGIMGDZ' should have id 7, found 8: not Chameleon's layout",
    ),
    "a tokenizer of another model": (
        lambda r: (r / "tokenizer" / "text_tokenizer.json").write_text('{"model": {"vocab": {"a": 0}, "merges": []}}'),
        r"'<s>' should have id 0",
    ),
    "a larger tokenizer than the model": (
        lambda r: more_pieces(r / "tokenizer" / "text_tokenizer.json"),
        r"the text tokenizer has \d+ ids, the model \d+: they do not belong together",
    ),
    "a reserved id out of its place": (
        lambda r: swap_names(r / "tokenizer" / "text_tokenizer.json", "<reserved00020>", "<reserved00030>"),
        r"'<reserved00020>' should have id 24, found 34: not Chameleon's layout",
    ),
    "a placeholder out of its place": (
        lambda r: rename(r / "tokenizer" / "text_tokenizer.json", "<reserved00030>", "<image>"),
        r"'<image>' should have id \d+, found 34",
    ),
    "swin_norm in words": (
        lambda r: edit_json(model_of(r) / "params.json", swin_norm="false"),
        r"swin_norm is 'false', expected true or false",
    ),
    "shards for another layout": (lambda r: None, r"--shards is for --to=meta", "", "--shards=4"),
    "a resolution where there is one only": (
        lambda r: None,
        r"--resolution is for pictures of many",
        "",
        "--resolution=64",
    ),
    "shards that do not divide": (
        lambda r: None,
        r"n_kv_heads 4 cannot be cut into 3 shards",
        "",
        "--to=meta",
        "--shards=3",
    ),
    "fewer shards than norms": (
        lambda r: None,
        r"QK-norm has 4 groups of heads and Meta's layout one a shard",
        "",
        "--to=meta",
        "--shards=2",
    ),
    "no shards asked for": (lambda r: None, r"must be positive", "", "--to=meta", "--shards=0"),
    "an unknown preset": (
        lambda r: None,
        r"--preset=chameleon-8b: .*did you mean 'chameleon-7b'",
        "",
        "--preset=chameleon-8b",
    ),
    "an unknown flag": (lambda r: None, r"unknown argument '--dtipe=.*did you mean '--dtype'", "", "--dtipe=float32"),
}


def swap_names(path, one="IMGIMGDZ", other="IMGIMGEZ"):
    content = json.loads(path.read_text())
    vocab = content["model"]["vocab"]
    vocab[one], vocab[other] = vocab[other], vocab[one]
    path.write_text(json.dumps(content))


def rename(path, old, new):
    content = json.loads(path.read_text())
    content["model"]["vocab"][new] = content["model"]["vocab"].pop(old)
    path.write_text(json.dumps(content))


def more_pieces(path):
    content = json.loads(path.read_text())
    vocab = content["model"]["vocab"]
    vocab |= {f"piece{i}": len(vocab) + i for i in range(9)}
    path.write_text(json.dumps(content))


def assert_refused(result, tmp_path, message):
    code, _, err = result
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, len(lines)) == (2, 1), err
    assert re.search(message, lines[0]), lines[0]
    assert "weights_only" not in lines[0]  # torch's own advice is how to run the code
    assert not [p for p in tmp_path.iterdir() if "output" in p.name]
    assert not os.path.exists("/tmp/code-of-a-checkpoint-was-run")


@pytest.mark.parametrize("name", META)
def test_a_bad_release_of_meta_is_refused_in_one_line(tmp_path, release_tree, convert, name):
    spoil, message, *rest = META[name]
    spoil(release_tree)
    place, *flags = rest or [""]
    result = convert(f"--source={release_tree / place}", f"--output={tmp_path / 'output'}", *flags)
    assert_refused(result, tmp_path, message)


KEY = "model.layers.1.self_attn.q_proj.weight"


def tensors(change):
    def apply(folder):
        path = folder / "model.safetensors"
        values = {name: np.ascontiguousarray(v) for name, v in load_file(path).items()}
        change(values)
        save_file(values, path)

    return apply


def split_in_two(folder):
    values = load_file(folder / "model.safetensors")
    names = sorted(values)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, keys in parts.items():
        save_file({key: values[key] for key in keys}, folder / file)
    weight_map = {key: file for file, keys in parts.items() for key in keys}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "model.safetensors").unlink()


def then(*steps):
    return lambda folder: [step(folder) for step in steps]


def config(**changes):
    return lambda folder: edit_json(folder / "config.json", **changes)


def lie_in_the_index(folder):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], "a.safetensors")
    path.write_text(json.dumps(index))


def twice(folder):
    key, value = next(iter(load_file(folder / "a.safetensors").items()))
    save_file(load_file(folder / "b.safetensors") | {key: value}, folder / "b.safetensors")


def escape_from_the_folder(folder):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"][KEY] = "../secret.safetensors"
    path.write_text(json.dumps(index))


HF = {
    "config.json is not JSON": (lambda f: (f / "config.json").write_text("{"), r"config\.json cannot be read"),
    "another model": (config(model_type="llama"), r"is of a model of type 'llama', not of a Chameleon"),
    "a quantised model": (config(quantization_config={"bits": 4}), r"the weights are quantised"),
    "biases": (config(attention_bias=True), r"has attention_bias"),
    "scaled positions": (config(rope_parameters={"rope_type": "yarn", "rope_theta": 1.0}), r"has rotary scaling"),
    "no size": (config(hidden_size=None), r"config\.json has no 'hidden_size'"),
    "another size": (
        config(hidden_size=64),
        r"model\.embed_tokens\.weight is float32\[\d+, 32\], config\.json asks for \[\d+, 64\]",
    ),
    "another activation": (config(hidden_act="gelu"), r"hidden_act is 'gelu', the family has 'silu'"),
    "scaling without a type": (config(rope_scaling={"factor": 2.0}, rope_parameters=None), r"has rotary scaling"),
    "scaling in words": (config(rope_parameters="linear"), r"has rotary scaling linear"),
    "an endless size": (config(hidden_size=float("inf")), r"config\.json is no model"),
    "norms without an axis": (
        tensors(lambda t: t.update({k: v[0] for k, v in t.items() if "q_norm" in k})),
        r"neither one row a head nor one a group",
    ),
    "an index of numbers": (
        then(split_in_two, lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": 1}}')),
        r"is no index of tensors",
    ),
    "a tensor in two files": (then(split_in_two, twice), r"b\.safetensors holds .* which .* does not list there"),
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        r"has config\.json but neither model\.safetensors nor pytorch_model\.bin",
    ),
    "truncated data": (lambda f: truncate(f / "model.safetensors"), r"model\.safetensors is damaged or cut off"),
    "a truncated header": (
        lambda f: truncate(f / "model.safetensors", 0.001),
        r"model\.safetensors is damaged or cut off",
    ),
    "an empty file": (
        lambda f: (f / "model.safetensors").write_bytes(b""),
        r"model\.safetensors is damaged or cut off",
    ),
    "a missing tensor": (tensors(lambda t: t.pop(KEY)), rf"lacks {KEY}, which config\.json asks for as \[32, 32\]"),
    "a missing head": (tensors(lambda t: t.pop("lm_head.weight")), r"lacks lm_head\.weight"),
    "a missing norm": (
        tensors(lambda t: t.pop("model.layers.0.self_attn.q_norm.weight")),
        r"lacks model\.layers\.0\.self_attn\.q_norm\.weight",
    ),
    "a misshapen tensor": (
        tensors(lambda t: t.update({KEY: t[KEY][:4]})),
        rf"model\.safetensors: {KEY} is float32\[4, 32\], config\.json asks for \[32, 32\]",
    ),
    "rows of norms that fit no heads": (
        tensors(lambda t: t.update({k: v[:3] for k, v in t.items() if "q_norm" in k})),
        r"neither one row a head nor one a group",
    ),
    "an unknown tensor": (
        tensors(lambda t: t.update({"base_model.lora_a": t[KEY]})),
        r"holds base_model\.lora_a .*which no layout of this family has",
    ),
    "integers": (tensors(lambda t: t.update({KEY: t[KEY].astype(np.int8)})), rf"{KEY} is i8\[32, 32\]; weights are"),
    "fewer rows than ids": (
        tensors(lambda t: t.update({"lm_head.weight": t["lm_head.weight"][:-1]})),
        r"lm_head\.weight is float32",
    ),
    "an index that is none": (
        then(split_in_two, lambda f: (f / "model.safetensors.index.json").write_text("{}")),
        r"is no index of tensors",
    ),
    "an index that names a missing file": (
        then(split_in_two, lambda f: (f / "b.safetensors").unlink()),
        r"lacks b\.safetensors, one of 2 files",
    ),
    "an index that lies": (
        then(split_in_two, lie_in_the_index),
        r"a\.safetensors lacks .*which model\.safetensors\.index\.json says it holds",
    ),
    "an index that leaves the folder": (
        then(split_in_two, escape_from_the_folder),
        r"names \.\./secret\.safetensors, which is not a file of its folder",
    ),
    "a codec with twice the latents": (config(vq_config={"double_latent": True}), r"double_latent"),
}


@pytest.mark.parametrize("name", HF)
def test_a_bad_folder_of_hugging_face_is_refused_in_one_line(tmp_path, release_tree, convert, name):
    folder = tmp_path / "hf"
    folder.mkdir()
    weights = MetaWeights(model_of(release_tree))
    hf.write_weights(weights, folder, {}, 1 << 30)
    (folder / "config.json").write_text(json.dumps(hf.config_values(weights.config)))
    spoil, message = HF[name]
    spoil(folder)
    if "codec" in name:
        tensors(lambda t: t.update({"model.vqmodel.encoder.conv_in.weight": np.ones(1, np.float32)}))(folder)
    assert_refused(convert(f"--source={folder}", f"--output={tmp_path / 'output'}"), tmp_path, message)


def test_an_output_that_is_there_is_kept(tmp_path, release_tree, convert):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "mine").write_text("mine")
    code, _, err = convert(f"--source={release_tree}", f"--output={tmp_path / 'kept'}")
    assert code == 2 and "exists and is not an empty folder" in err
    assert (tmp_path / "kept" / "mine").read_text() == "mine"


def test_a_disk_that_is_too_small_is_noticed_before_anything_is_written(tmp_path, release_tree, convert, monkeypatch):
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    code, _, err = convert(f"--source={release_tree}", f"--output={tmp_path / 'output'}")
    assert code == 2 and "the disk at" in err and "nothing was written" in err
    assert not (tmp_path / "output").exists()


FULL = """
import resource, sys
from pathlib import Path
import chameleon_jax.convert.write as write_lib
from chameleon_jax.convert.opening import Options, open_release
from chameleon_jax.errors import ChameleonError

opened = open_release(Path(sys.argv[1]), Options())
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # as a full disk: no file may grow further
try:
    write_lib.write(opened, Path(sys.argv[2]), sys.argv[3], shard_bytes=1 << 30)
except ChameleonError as error:
    print("refused:", error)
"""


@pytest.mark.parametrize("layout", ["jax", "hf", "meta"])
def test_a_disk_that_fills_up_on_the_way_leaves_nothing(tmp_path, release_tree, layout):
    command = [sys.executable, "-c", FULL, str(release_tree), str(tmp_path / "output"), layout]
    run = subprocess.run(command, capture_output=True, text=True, cwd=os.getcwd())
    assert run.returncode == 0 and "refused: " in run.stdout, run.stderr[-2000:]
    assert not [path for path in tmp_path.iterdir() if "output" in path.name]
