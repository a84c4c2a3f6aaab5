"""What once went through without a word, and gave a model that says nonsense: it is refused, or read for what it is."""

import json
from collections import Counter

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from chameleon_jax.convert import layout, meta, native
from chameleon_jax.convert.meta import MetaWeights
from chameleon_jax.convert.releases import release
from chameleon_jax.convert.vqgan import config_from_hf
from chameleon_jax.errors import ConvertError
from chameleon_jax.generation.loading import load_run
from tests.convert.test_bad_input import assert_refused, edit_json, edit_pth, model_of, shard, tensors, truncate

torch = pytest.importorskip("torch")
from tests.convert import meta_reference  # noqa: E402


def spoil(state, key, *values):
    state[key].view(-1)[: len(values)] = torch.tensor(values, dtype=state[key].dtype)


@pytest.fixture
def hf_folder(tmp_path, release_tree, convert):
    assert convert(f"--source={release_tree}", f"--output={tmp_path / 'hf'}", "--to=hf")[0] == 0
    return tmp_path / "hf"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_number_that_is_not_finite_is_refused_in_every_dtype(tmp_path, dtype, value):
    sizes = meta_reference.Sizes()
    shards = meta_reference.random_shards(sizes, 2, getattr(torch, dtype))
    folder = meta_reference.write(tmp_path / "meta", sizes, shards)
    for path in sorted(folder.glob("*.pth")):
        edit_pth(path, lambda s: spoil(s, "layers.1.feed_forward.w2.weight", 60000.0, value, 0.0, value))
    weights = MetaWeights(folder)
    with pytest.raises(
        ConvertError, match=r"00\.pth: layers\.1\.feed_forward\.w2\.weight has 2 of 1,536 numbers that are"
    ):
        native.write_weights(weights, tmp_path / "run", {})
    assert not (tmp_path / "run" / "checkpoints" / "0").exists()


def test_one_in_a_release_of_meta_stops_the_command(tmp_path, release_tree, convert):
    edit_pth(shard(release_tree, 3), lambda s: spoil(s, "output.weight", float("nan")))
    result = convert(f"--source={release_tree}", f"--output={tmp_path / 'output'}")
    assert_refused(result, tmp_path, r"consolidated\.03\.pth: output\.weight has 1 of [\d,]+ numbers .* fetch it again")


@pytest.mark.parametrize("key", ["model.layers.0.mlp.up_proj.weight", "model.vqmodel.encoder.conv_in.weight"])
def test_one_in_hugging_faces_folder_stops_the_command(tmp_path, hf_folder, convert, key):
    tensors(lambda t: t[key].__setitem__((0, 0), np.nan))(hf_folder)
    result = convert(f"--source={hf_folder}", f"--output={tmp_path / 'output'}")
    assert_refused(result, tmp_path, rf"model\.safetensors: {key} has \d+ of [\d,]+ numbers that are not finite")


def test_one_in_a_workdir_stops_its_export(tmp_path, release_tree, convert):
    assert convert(f"--source={release_tree}", f"--output={tmp_path / 'run'}")[0] == 0

    class Diverged(MetaWeights):
        def read(self, parameter, layer):
            array = super().read(parameter, layer).copy()
            array[..., 0] = np.inf if (parameter.path, layer) == ("layers/attn/wo", 1) else array[..., 0]
            return array

    native.write_weights(Diverged(model_of(release_tree)), tmp_path / "diverged", {})
    result = convert(f"--source={tmp_path / 'diverged'}", f"--output={tmp_path / 'output'}", "--to=hf")
    assert_refused(result, tmp_path, r"step 0 of \S+diverged, layer 1: params/layers/attn/wo has 32 of 1,024 numbers")
    file = tmp_path / "run" / "tokenizer" / "vqgan.safetensors"
    save_file({k: np.full_like(v, np.nan) if "quantize" in k else v for k, v in load_file(file).items()}, file)
    result = convert(f"--source={tmp_path / 'run'}", f"--output={tmp_path / 'output'}", "--to=hf")
    assert_refused(result, tmp_path, r"vqgan\.safetensors: quantize/embedding has 128 of 128 numbers")


def test_a_codec_that_is_left_out_is_not_read(tmp_path, release_tree, convert):
    codec = release_tree / "tokenizer" / "vqgan.ckpt"
    truncate(codec)
    flags = (f"--source={release_tree}", f"--output={tmp_path / 'run'}")
    assert "vqgan.ckpt is damaged" in convert(*flags)[2]
    code, out, _ = convert(*flags, "--without_codec")
    assert code == 0 and "the image codec was left out, as asked" in out
    run = load_run(tmp_path / "run")
    # Its config still says how large pictures are.
    assert run.bundle.pictures.config.resolution == 16
    assert (run.bundle.pictures.vqgan, run.bundle.vocab_config.modalities[1].length) == (None, 16)
    (codec.parent / "vqgan.yaml").write_text("a: [b")
    code, out, _ = convert(f"--source={release_tree}", f"--output={tmp_path / 'other'}", "--without_codec")
    assert code == 0 and "the size of pictures is that of the release, since" in out
    flags = (f"--source={release_tree}", f"--output={tmp_path / 'output'}", "--without_codec", f"--vqgan={codec}")
    assert_refused(convert(*flags), tmp_path, "drop one of them")


def test_nor_is_that_of_hugging_faces_folder_or_of_a_workdir(tmp_path, release_tree, hf_folder, convert):
    key = "model.vqmodel.encoder.conv_in.weight"
    tensors(lambda t: t.update({key: t[key].astype(np.int8)}))(hf_folder)
    code, out, err = convert(f"--source={hf_folder}", f"--output={tmp_path / 'run'}", "--without_codec")
    assert code == 0 and "more: the codec was left out, as asked" in out, err
    assert load_run(tmp_path / "run").bundle.vocab_config.modalities[1].length == 16

    assert convert(f"--source={release_tree}", f"--output={tmp_path / 'ours'}")[0] == 0
    truncate(tmp_path / "ours" / "tokenizer" / "vqgan.safetensors")
    flags = (f"--source={tmp_path / 'ours'}", f"--output={tmp_path / 'again'}")
    assert "vqgan.safetensors is damaged" in convert(*flags)[2]
    assert convert(*flags, "--without_codec")[0] == 0
    assert load_run(tmp_path / "again").bundle.pictures.vqgan is None
    # Another codec takes its place, too.
    flags = (f"--source={tmp_path / 'ours'}", f"--output={tmp_path / 'mended'}")
    assert convert(*flags, f"--vqgan={release_tree / 'tokenizer' / 'vqgan.ckpt'}")[0] == 0


def test_a_codecs_config_may_use_metas_names(tmp_path, release_tree, hf_folder, convert):
    values = json.loads((hf_folder / "config.json").read_text())["vq_config"]
    forks = values | {"z_channels": values["latent_channels"], "double_z": False}
    del forks["latent_channels"], forks["double_latent"]
    assert config_from_hf(forks, "x") == config_from_hf(values, "x") != config_from_hf({}, "x")
    with pytest.raises(ConvertError, match="double_z is True, and only False is supported"):
        config_from_hf(forks | {"double_z": True}, "x")
    with pytest.raises(ConvertError, match="latent_channels is 4 but z_channels, another name for it, is 8"):
        config_from_hf(forks | {"latent_channels": 4}, "x")


def test_image_codes_are_masked_only_where_a_vocabulary_says_which_they_are(tmp_path, release_tree, convert):
    (release_tree / "tokenizer" / "text_tokenizer.json").unlink()
    result = convert(f"--source={release_tree}", f"--output={tmp_path / 'output'}", "--numerics=hf")
    assert_refused(result, tmp_path, r"--numerics=hf masks the ids of image codes.* give --tokenizer")
    assert convert(f"--source={release_tree}", f"--output={tmp_path / 'run'}", "--numerics=meta")[0] == 0


def test_a_norm_order_that_nothing_says_is_asked_for(tmp_path, release_tree, convert):
    edit_json(model_of(release_tree) / "params.json", swin_norm=None)
    flags = (f"--source={release_tree}", f"--output={tmp_path / 'output'}")
    assert_refused(convert(*flags), tmp_path, r"params\.json has no swin_norm.* --norm_order=pre .*--norm_order=swin")
    assert convert(*flags, "--norm_order=swin")[0] == 0
    assert load_run(tmp_path / "output").model.norm_order == "swin"


@pytest.mark.parametrize("name", ["chameleon-7b", "chameleon-34b"])
def test_a_released_size_tells_its_norm_order(tmp_path, name):
    """Shapes alone are looked at, so one number stands for each tensor."""
    config = release(name).model
    ranks = meta.default_shards(config)
    sizes = meta_reference.Sizes(
        dim=config.d_model, n_heads=config.n_heads, n_kv_heads=config.n_kv_heads, n_layers=config.n_layers
    )
    state = {}
    for parameter in layout.parameters(config):
        shape = list(layout.torch_shape(parameter, config))
        if parameter.qk_norm:
            shape = [config.head_dim]
        elif parameter.shard_axis is not None:
            shape[parameter.shard_axis] //= ranks
        for layer in layout.layers(parameter, config):
            state[parameter.meta.format(layer)] = torch.zeros(1).expand(shape)
    folder = meta_reference.write(tmp_path / name, sizes, [state] * ranks)
    values = sizes.params["model"] | {"vocab_size": config.vocab_size, "multiple_of": 256, "swin_norm": None}
    (folder / "params.json").write_text(json.dumps({"model": values}))
    weights = MetaWeights(folder)
    assert weights.config.norm_order == config.norm_order
    assert any(f"took norm order '{config.norm_order}' of {name}" in note for note in weights.report.notes)


def test_an_export_to_many_ranks_reads_every_parameter_once(tmp_path):
    sizes = meta_reference.Sizes()
    weights = MetaWeights(meta_reference.write(tmp_path / "meta", sizes, meta_reference.random_shards(sizes, 1)))
    reads = Counter()

    class Counted:
        config = weights.config

        def read(self, parameter, layer):
            reads[parameter.path, layer] += 1
            return weights.read(parameter, layer)

    (tmp_path / "out").mkdir()
    meta.write_weights(Counted(), tmp_path / "out", 4)
    assert set(reads.values()) == {1}
    left = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert left == sorted(
        ["checklist.chk", "consolidate_params.json", "params.json", *(f"consolidated.0{i}.pth" for i in range(4))]
    )
