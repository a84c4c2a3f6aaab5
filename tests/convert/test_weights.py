"""Weights of every flavour: the published forward pass, Transformers' port, and each layout turned into each other."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from chameleon_jax.checkpoints.manifest import nest
from chameleon_jax.checkpoints.restore import restore_subtree
from chameleon_jax.convert import hf, layout, meta, native
from chameleon_jax.convert.hf import HFWeights
from chameleon_jax.convert.meta import MetaWeights
from chameleon_jax.convert.native import NativeWeights
from chameleon_jax.models import transformer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from tests.convert import meta_reference  # noqa: E402

TOKENS = np.random.default_rng(3).integers(9, 96, 20)
FLAVOURS = [(False, 1), (True, 4), (False, 4), (True, 1)]
VQ = {"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1, "num_embeddings": 8}


def tree_of(weights):
    """All parameters of a source as our tree."""
    named = {}
    for parameter in layout.parameters(weights.config):
        values = [weights.read(parameter, i) for i in layout.layers(parameter, weights.config)]
        named[parameter.path] = np.stack(values) if parameter.stacked else values[0]
    return nest(named)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.array_equal(np.asarray(x).view(np.uint8), np.asarray(y).view(np.uint8)), jax.tree_util.keystr(path)


def our_logits(params, config, tokens=TOKENS):
    tokens = jnp.asarray(tokens)[None]
    positions, segments = jnp.arange(tokens.shape[1])[None], jnp.ones_like(tokens)
    hidden = transformer.forward(params, tokens, positions, segments, config).hidden
    return transformer.logits(params, hidden, config)[0]


def write_hf(weights, folder, shard_bytes=20_000, **changes):
    folder.mkdir()
    hf.write_weights(weights, folder, {}, shard_bytes)
    values = hf.config_values(weights.config) | {
        "vocabulary_map": {"<image>": 8, "IMGIMGBZ": 4},
        "vq_config": VQ,
    }
    (folder / hf.CONFIG).write_text(json.dumps(values | changes))
    return folder


def torch_port(folder):
    """Transformers' model with its logits before it overwrites those of image codes."""
    model = transformers.ChameleonForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    hidden = model.model(input_ids=torch.from_numpy(TOKENS)[None], use_cache=False).last_hidden_state
    return model, model.lm_head(hidden)[0]


@pytest.mark.parametrize(("swin", "ranks"), FLAVOURS)
def test_meta_shards_give_the_logits_of_the_published_forward_pass_and_so_does_their_export_in_transformers(
    tmp_path, swin, ranks
):
    sizes = meta_reference.Sizes(swin=swin)
    shards = meta_reference.random_shards(sizes, ranks)
    weights = MetaWeights(meta_reference.write(tmp_path / "meta", sizes, shards))
    assert (weights.config.qk_norm_groups, weights.config.norm_order) == (ranks, "swin" if swin else "pre")
    expected = meta_reference.forward(sizes, shards, torch.from_numpy(TOKENS)).numpy()
    assert 1 < np.abs(expected).max() < 10
    np.testing.assert_allclose(our_logits(tree_of(weights), weights.config), expected, atol=1e-4)
    _, theirs = torch_port(write_hf(weights, tmp_path / "hf"))
    np.testing.assert_allclose(theirs.detach(), expected, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("swin", "ranks"), FLAVOURS)
def test_every_layout_comes_back_bit_for_bit_from_every_other(tmp_path, swin, ranks, dtype):
    sizes = meta_reference.Sizes(swin=swin)
    shards = meta_reference.random_shards(sizes, ranks, getattr(torch, dtype))
    first = MetaWeights(meta_reference.write(tmp_path / "meta", sizes, shards))
    native.write_weights(first, tmp_path / "run", {})
    ours = NativeWeights(tmp_path / "run")
    theirs = HFWeights(write_hf(ours, tmp_path / "hf"))
    (tmp_path / "again").mkdir()
    meta.write_weights(theirs, tmp_path / "again", ranks)
    last = MetaWeights(tmp_path / "again")
    assert first.config == ours.config == theirs.config == last.config
    assert first.config.param_dtype == dtype
    for other in (ours, theirs, last):
        assert_same(tree_of(first), tree_of(other))
    assert_same(restore_subtree(tmp_path / "run" / "checkpoints").state, tree_of(first))
    files = sorted((tmp_path / "meta").glob("*.pth"))
    assert [path.name for path in files] == [path.name for path in sorted((tmp_path / "again").glob("*.pth"))]
    for path, state in zip(files, shards, strict=True):
        exported = torch.load(tmp_path / "again" / path.name, weights_only=True)
        # rope.freqs too, which Meta's loader wants to be there and does not read.
        assert exported.keys() == state.keys()
        assert all(torch.equal(exported[name], state[name]) for name in state.keys() - {"rope.freqs"})


@pytest.fixture
def folder(tmp_path):
    """A 34B-like model (swin, grouped keys, 4 groups of norms) as Transformers has it, and its source."""
    sizes = meta_reference.Sizes(swin=True)
    shards = meta_reference.random_shards(sizes, 4)
    weights = MetaWeights(meta_reference.write(tmp_path / "meta", sizes, shards))
    return write_hf(weights, tmp_path / "hf", shard_bytes=1 << 30), weights


def rewrite(folder, change, **config):
    tensors = load_file(folder / "model.safetensors")
    save_file({k: np.ascontiguousarray(v) for k, v in change(tensors).items()}, folder / "model.safetensors")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | config))


def norms(tensors):
    return {k: v for k, v in tensors.items() if "q_norm" in k or "k_norm" in k}


def test_norms_of_lumina_have_a_row_a_shard(folder):
    folder, weights = folder
    rows = {"q_norm": 8 // 4, "k_norm": 4 // 4}
    rewrite(
        folder,
        lambda t: t | {k: v[:: rows[k.split(".")[-2]]] for k, v in norms(t).items()},
        architectures=["ChameleonXLLMXForConditionalGeneration"],
    )
    read = HFWeights(folder)
    assert (read.flavour, read.config) == ("lumina", weights.config)
    assert_same(tree_of(read), tree_of(weights))


def test_norms_of_anoles_fork_are_one_vector_and_its_rows_are_interleaved(tmp_path):
    sizes = meta_reference.Sizes()
    shards = meta_reference.random_shards(sizes, 1)
    weights = MetaWeights(meta_reference.write(tmp_path / "meta", sizes, shards))
    folder = write_hf(weights, tmp_path / "hf", shard_bytes=1 << 30)
    names = {"q_proj": "wq", "k_proj": "wk", "q_norm": "q_normalization", "k_norm": "k_normalization"}

    def as_in_meta(tensors):
        for key in tensors:
            parts = key.split(".")
            if parts[-2] in names:
                tensors[key] = shards[0][f"layers.{parts[2]}.attention.{names[parts[-2]]}.{parts[-1]}"].numpy()
        return tensors

    rewrite(folder, as_in_meta, qk_layernorm=True)
    read = HFWeights(folder)
    assert (read.flavour, read.config) == ("anole-fork", weights.config)
    assert_same(tree_of(read), tree_of(weights))


def test_heads_with_norms_of_their_own_keep_them_and_their_gradients(tmp_path):
    """A checkpoint that was fine-tuned in Transformers: no two heads share QK-norms; loss and all gradients against torch."""
    torch.manual_seed(0)
    sizes = meta_reference.Sizes()
    weights = MetaWeights(meta_reference.write(tmp_path / "meta", sizes, meta_reference.random_shards(sizes, 1)))
    folder = write_hf(weights, tmp_path / "hf", shard_bytes=1 << 30)
    random = np.random.default_rng(0)
    rewrite(
        folder,
        lambda t: t | {k: v + 0.1 * random.standard_normal(v.shape, np.float32) for k, v in norms(t).items()},
    )
    read = HFWeights(folder)
    assert (read.config.qk_norm_groups, read.config.k_norm_groups) == (8, 4)
    params = tree_of(read)
    model, logits = torch_port(folder)
    np.testing.assert_allclose(our_logits(params, read.config), logits.detach(), atol=1e-4)

    loss = torch.nn.functional.cross_entropy(logits[:-1], torch.from_numpy(TOKENS)[1:])
    loss.backward()

    def our_loss(params):
        log_p = jax.nn.log_softmax(our_logits(params, read.config)[:-1])
        return -jnp.mean(jnp.take_along_axis(log_p, jnp.asarray(TOKENS)[1:, None], axis=1))

    value, gradient = jax.value_and_grad(our_loss)(jax.tree.map(jnp.asarray, params))
    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
    theirs = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    checked = 0
    for parameter in layout.parameters(read.config):
        stacked = gradient
        for part in parameter.path.split("/"):
            stacked = stacked[part]
        for i in layout.layers(parameter, read.config):
            expected = theirs[parameter.hf.format(i)].numpy()
            ours = layout.to_torch(parameter, np.asarray(stacked if i is None else stacked[i]), read.config)
            assert np.linalg.norm(ours - expected) <= 1e-3 * np.linalg.norm(expected), parameter.path
            checked += 1
    assert checked == 3 + 2 * 13
    again = HFWeights(write_hf(read, tmp_path / "again"))
    assert_same(tree_of(again), params)


def test_joined_matrices_of_a_saved_runtime_state_are_read(tmp_path):
    sizes = meta_reference.Sizes(swin=True)
    shards = meta_reference.random_shards(sizes, 4)
    expected = tree_of(MetaWeights(meta_reference.write(tmp_path / "plain", sizes, shards)))
    joined = []
    for state in shards:
        state = dict(state)
        for i in range(sizes.n_layers):
            at = f"layers.{i}."
            parts = [state.pop(f"{at}attention.w{n}.weight") for n in "qkv"]
            state[at + "attention.wqkv.weight"] = torch.cat(parts)
            parts = [state.pop(f"{at}feed_forward.w{n}.weight") for n in "13"]
            state[at + "feed_forward.w13.weight"] = torch.cat(parts)
        joined.append(state | {"rope.freqs": None})
    weights = MetaWeights(meta_reference.write(tmp_path / "joined", sizes, joined))
    assert_same(tree_of(weights), expected)
    assert {entry["tensor"] for entry in weights.report.dropped} == {"rope.freqs"}


def test_a_lone_first_shard_is_a_whole_model(tmp_path):
    sizes = meta_reference.Sizes()
    folder = meta_reference.write(tmp_path / "m", sizes, meta_reference.random_shards(sizes, 1))
    (folder / "consolidated.pth").rename(folder / "consolidated.00.pth")
    assert MetaWeights(folder).config.n_layers == sizes.n_layers


def test_rows_of_the_head_beyond_the_vocabulary_are_cut_and_reported(folder):
    folder, weights = folder
    key = "lm_head.weight"
    rewrite(folder, lambda t: t | {key: np.concatenate([t[key], t[key][:5]])})
    read = HFWeights(folder)
    assert_same(tree_of(read), tree_of(weights))
    assert [entry["tensor"] for entry in read.report.dropped] == ["lm_head.weight[96:101]"]


def test_half_precision_is_widened_exactly(folder):
    folder, weights = folder
    rewrite(folder, lambda t: {k: v.astype(np.float16) for k, v in t.items()})
    read = HFWeights(folder)
    assert read.config.param_dtype == "float32"
    narrow = jax.tree.map(lambda x: x.astype(np.float16).astype(np.float32), tree_of(weights))
    assert_same(tree_of(read), narrow)


def test_a_config_of_version_4_says_its_rope_base_flat_and_one_of_version_5_nested(folder):
    folder, _ = folder
    values = json.loads((folder / "config.json").read_text())
    for change in (
        {"rope_theta": 5e5, "rope_parameters": None},
        {"rope_theta": None, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
    ):
        (folder / "config.json").write_text(json.dumps(values | change))
        assert HFWeights(folder).config.rope_theta == 5e5


def test_released_numerics_round_as_the_port_does(folder):
    """bfloat16: with the port's roundings ours is nearer to it than with our own, which is nearer to the exact logits."""
    folder, weights = folder
    from chameleon_jax.convert.releases import NUMERICS

    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree_of(weights))
    model = transformers.ChameleonForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        theirs = model(input_ids=torch.from_numpy(TOKENS)[None], use_cache=False).logits[0].float().numpy()
    config = dataclasses.replace(weights.config, param_dtype="bfloat16", compute_dtype="bfloat16")

    def ours(numerics):
        return np.asarray(our_logits(params, dataclasses.replace(config, numerics=numerics)))

    port = ours(dataclasses.replace(NUMERICS["hf"], masked_ids=(4, 5)))
    masked = np.flatnonzero(theirs[0] < -1e30)
    assert masked.size and (port[:, 4] == port.min()).all() and port.min() < -1e38
    assert (port.astype(jnp.bfloat16).astype(np.float32) == port).all()  # rounded logits
    plain = np.delete(ours(NUMERICS["best"]), masked, axis=1)
    assert (plain.astype(jnp.bfloat16).astype(np.float32) != plain).any()
    theirs = np.delete(theirs, masked, axis=1)
    near = np.abs(np.delete(port, masked, axis=1) - theirs).mean()
    assert near < 0.03 and near < np.abs(plain - theirs).mean()
