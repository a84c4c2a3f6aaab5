"""The image codec against the torch implementation in transformers, the released sizes, and invariants."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chameleon_jax.configs import VQConfig
from chameleon_jax.errors import TokenizerError
from chameleon_jax.tokenizers import quantizer, vqgan

encode = jax.jit(vqgan.encode, static_argnums=2)
decode = jax.jit(vqgan.decode, static_argnums=2)
encode_latents = jax.jit(vqgan.encode_latents, static_argnums=2)
SMALL = VQConfig(
    resolution=16,
    channels=8,
    channel_multipliers=(1, 2),
    res_blocks=1,
    latent_channels=12,
    embed_dim=6,
    codes=32,
    norm_groups=4,
)


@pytest.fixture(scope="module")
def small_params():
    return _random(SMALL)


def _random(config):
    """Every parameter random, and a codebook as wide as latents are, so that no error hides behind a zero or a one."""
    generator = np.random.default_rng(1)

    def draw(path, leaf):
        spread = np.prod(leaf.shape[:-1]) ** -0.5 if path[-1].key == "kernel" else 0.1
        value = generator.normal(0, 0.5 if path[-1].key == "embedding" else spread, leaf.shape)
        return (value + (path[-1].key == "scale")).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, vqgan.shapes(config))


def _images(config, count=2, seed=0):
    shape = (count, config.resolution, config.resolution, 3)
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def test_default_sizes_are_those_of_the_released_codec():
    tree = vqgan.shapes(VQConfig())
    counts = {name: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(part)) for name, part in tree.items()}
    assert counts == {
        "encoder": 27_194_880,
        "decoder": 39_294_851,
        "quantize": 2_097_152,
        "quant_conv": 65_792,
        "post_quant_conv": 65_792,
    }
    assert tree["encoder"]["down_4_block_0"]["nin_shortcut"]["kernel"].shape == (1, 1, 256, 512)
    assert tree["decoder"]["up_1_block_0"]["nin_shortcut"]["kernel"].shape == (1, 1, 256, 128)
    assert "up_0_upsample" not in tree["decoder"] and "down_4_downsample" not in tree["encoder"]


def test_default_codec_maps_512_pixels_to_32_by_32_codes():
    params = vqgan.shapes(VQConfig())
    images = jax.ShapeDtypeStruct((1, 512, 512, 3), jnp.float32)
    codes = jax.eval_shape(lambda p, x: vqgan.encode(p, x, VQConfig()), params, images)
    assert codes.shape == (1, 32, 32) and codes.dtype == jnp.int32
    assert jax.eval_shape(lambda p, c: vqgan.decode(p, c, VQConfig()), params, codes).shape == images.shape


def _torch_name(path):
    """`encoder/down_0_block_1/norm1/scale` -> `encoder.down.0.block.1.norm1.weight`, spelled out apart from the package."""
    name = ".".join(path)
    for part in ("down", "up"):
        for i in range(8):
            for kind in ("block", "attn"):
                for j in range(8):
                    name = name.replace(f".{part}_{i}_{kind}_{j}.", f".{part}.{i}.{kind}.{j}.")
            name = name.replace(f".{part}_{i}_{part}sample.", f".{part}.{i}.{part}sample.")
    for block in ("block_1", "attn_1", "block_2"):
        name = name.replace(f".mid_{block}.", f".mid.{block}.")
    stem, _, leaf = name.rpartition(".")
    if leaf == "embedding":
        return f"{name}.weight"
    return f"{stem}.{'bias' if leaf == 'bias' else 'weight'}"


def _torch_state(params):
    torch = pytest.importorskip("torch")
    state = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.array(leaf)
        if array.ndim == 4:
            array = array.transpose(3, 2, 0, 1)
        state[_torch_name([key.key for key in path])] = torch.from_numpy(np.ascontiguousarray(array))
    return state


def test_latents_and_codes_equal_those_of_transformers():
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers.models.chameleon import modeling_chameleon
    from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig

    config = VQConfig(
        resolution=32, channels=32, channel_multipliers=(1, 1, 2), res_blocks=2, latent_channels=32, embed_dim=32, codes=128,
        attention_resolutions=(16,),
    )  # fmt: skip
    params = _random(config)
    theirs = modeling_chameleon.ChameleonVQVAE(
        ChameleonVQVAEConfig(
            embed_dim=32, num_embeddings=128, latent_channels=32, resolution=32, base_channels=32, channel_multiplier=[1, 1, 2],
            num_res_blocks=2, attn_resolutions=[16],
        )
    ).float().eval()  # fmt: skip
    state = {name: value for name, value in _torch_state(params).items() if not name.startswith("decoder.")}
    theirs.load_state_dict(state, strict=True)
    images = _images(config, 3)
    with torch.no_grad():
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2))
        latents = theirs.quant_conv(theirs.encoder(pixels))
        codes = theirs.quantize(latents)[2]
    ours = encode_latents(params, images, config)
    np.testing.assert_allclose(ours, latents.permute(0, 2, 3, 1).numpy(), atol=1e-4)
    found = np.asarray(encode(params, images, config))
    np.testing.assert_array_equal(found.reshape(-1), codes.reshape(-1).numpy())
    assert len(np.unique(found)) > 10


def test_decoder_equals_a_plain_torch_reference(small_params):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    weights = _torch_state(small_params)

    def conv(x, name, padding):
        return functional.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=padding)

    def norm(x, name):
        return functional.group_norm(x, SMALL.norm_groups, weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-6)

    def block(x, name):
        y = conv(functional.silu(norm(x, f"{name}.norm1")), f"{name}.conv1", 1)
        y = conv(functional.silu(norm(y, f"{name}.norm2")), f"{name}.conv2", 1)
        return (conv(x, f"{name}.nin_shortcut", 0) if f"{name}.nin_shortcut.weight" in weights else x) + y

    def attention(x, name):
        normed = norm(x, f"{name}.norm")
        q, k, v = (conv(normed, f"{name}.{n}", 0).flatten(2) for n in "qkv")
        scores = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(x.shape[1]), dim=-1)
        return x + conv((v @ scores.transpose(1, 2)).view_as(x), f"{name}.proj_out", 0)

    codes = np.random.default_rng(0).integers(0, SMALL.codes, (2, SMALL.grid, SMALL.grid))
    x = weights["quantize.embedding.weight"][torch.from_numpy(codes)].permute(0, 3, 1, 2)
    x = conv(conv(x, "post_quant_conv", 0), "decoder.conv_in", 1)
    x = block(attention(block(x, "decoder.mid.block_1"), "decoder.mid.attn_1"), "decoder.mid.block_2")
    for level in (1, 0):
        for i in range(SMALL.res_blocks + 1):
            x = block(x, f"decoder.up.{level}.block.{i}")
        if level:
            x = conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"), "decoder.up.1.upsample.conv", 1)
    expected = conv(functional.silu(norm(x, "decoder.norm_out")), "decoder.conv_out", 1).permute(0, 2, 3, 1)
    np.testing.assert_allclose(decode(small_params, codes, SMALL), expected.numpy(), atol=1e-4)


def test_nearest_code_is_the_first_of_equals_and_agrees_with_float64():
    book = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    book[30] = book[7]
    latents = np.concatenate([book[[7, 30, 2]], np.random.default_rng(1).normal(size=(200, 8))]).astype(np.float32)
    distances = ((latents[:, None].astype(np.float64) - book[None]) ** 2).sum(-1)
    np.testing.assert_array_equal(quantizer.nearest_codes(latents, book), distances.argmin(axis=1))
    assert list(quantizer.nearest_codes(latents[:3], book)) == [7, 7, 2]


def test_distance_keeps_the_released_order_of_operations():
    # (1 + 0) - 0 = 1 and (1 + 1e-9) - 0 = 1 tie in float32, so the first wins; without |z|^2 the second is not even near.
    latents = np.array([[1.0, 0.0]], np.float32)
    book = np.array([[0.0, np.sqrt(1e-9)], [0.0, 0.0]], np.float32)
    assert int(quantizer.nearest_codes(latents, book)[0]) == 0


def test_patches_change_the_cost_but_not_the_shapes():
    config = VQConfig(
        resolution=16, patch_size=4, channels=8, channel_multipliers=(1,), res_blocks=1, latent_channels=8, embed_dim=4, codes=16,
        norm_groups=4,
    )  # fmt: skip
    params = _random(config)
    images = _images(config)
    assert params["encoder"]["conv_in"]["kernel"].shape == (3, 3, 48, 8)
    codes = encode(params, images, config)
    assert codes.shape == (2, 4, 4) and decode(params, codes, config).shape == images.shape
    np.testing.assert_array_equal(vqgan._unfold(vqgan._fold(images, 4), 4), images)
    np.testing.assert_array_equal(vqgan._fold(images, 4)[0, 1, 2].reshape(4, 4, 3), images[0, 4:8, 8:12])


def test_fresh_parameters_have_the_shapes_and_spreads_of_their_layers():
    params = jax.jit(vqgan.init, static_argnums=1)(jax.random.key(0), SMALL)
    assert jax.tree.map(lambda leaf: leaf.shape, params) == jax.tree.map(lambda leaf: leaf.shape, vqgan.shapes(SMALL))
    block = params["decoder"]["up_1_block_0"]
    assert np.std(block["conv1"]["kernel"]) == pytest.approx((9 * 16) ** -0.5, rel=0.1)
    assert not np.array_equal(block["conv1"]["kernel"], block["conv2"]["kernel"])
    assert np.all(block["norm1"]["scale"] == 1) and not np.any(block["conv1"]["bias"])
    book = vqgan.codebook(params)
    assert 0.8 / 32 < np.abs(book).max() <= 1 / 32


def test_other_picture_sizes_and_a_batch_of_one_give_the_same_codes(small_params):
    wide = np.concatenate([_images(SMALL), _images(SMALL, seed=5)], axis=2)
    codes = encode(small_params, wide, SMALL)
    assert codes.shape == (2, 8, 16)
    np.testing.assert_array_equal(encode(small_params, wide[1:], SMALL), codes[1:])
    with pytest.raises(TokenizerError, match="15x16 pixels: sides must be multiples of 2"):
        vqgan.encode(small_params, wide[:, :15, :16], SMALL)


def test_saved_codec_comes_back_bitwise(small_params, tmp_path):
    vqgan.save(tmp_path, small_params, SMALL)
    codec = vqgan.load(tmp_path)
    assert codec.config == SMALL
    jax.tree.map(np.testing.assert_array_equal, codec.params, small_params)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["vqgan.json", "vqgan.safetensors"]


def test_damaged_or_foreign_files_are_named(small_params, tmp_path):
    with pytest.raises(TokenizerError, match=r"vqgan\.json does not exist"):
        vqgan.load(tmp_path)
    vqgan.save(tmp_path, small_params, SMALL)
    weights = tmp_path / "vqgan.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TokenizerError, match="is damaged"):
        vqgan.load(tmp_path)
    weights.write_bytes(whole)
    settings = SMALL.to_dict()
    for change, message in (
        ({"codes": 64}, r"quantize\.embedding is float32\[32, 6\], vqgan\.json asks for float32\[64, 6\]"),
        ({"res_blocks": 2}, "lacks tensor"),
        ({"codez": 1}, "unknown field 'codez'"),
    ):
        (tmp_path / "vqgan.json").write_text(json.dumps(settings | change))
        with pytest.raises(TokenizerError, match=message):
            vqgan.load(tmp_path)


def test_an_encoder_alone_is_saved_and_loaded_and_half_a_decoder_is_not(small_params, tmp_path):
    kept = {name: part for name, part in small_params.items() if name not in ("decoder", "post_quant_conv")}
    assert jax.tree.map(np.shape, kept) == jax.tree.map(
        lambda leaf: leaf.shape, vqgan.shapes(SMALL, without=("decoder", "post_quant_conv"))
    )
    vqgan.save(tmp_path, kept, SMALL)
    loaded = vqgan.load(tmp_path)
    assert not loaded.has_decoder
    jax.tree.map(np.testing.assert_array_equal, loaded.params, kept)
    with pytest.raises(TokenizerError, match="has no decoder"):
        decode(loaded.params, np.zeros((1, 8, 8), np.int32), SMALL)
    # Its first layer may be there alone, as Hugging Face keeps it; a decoder without it may not.
    vqgan.save(tmp_path, kept | {"post_quant_conv": small_params["post_quant_conv"]}, SMALL)
    assert not vqgan.load(tmp_path).has_decoder
    vqgan.save(tmp_path, kept | {"decoder": small_params["decoder"]}, SMALL)
    with pytest.raises(TokenizerError, match=r"lacks tensor post_quant_conv\."):
        vqgan.load(tmp_path)


def test_group_norm_stays_exact_far_from_zero():
    x = np.random.default_rng(0).normal(30, 1, (1, 256, 256, 8)).astype(np.float32)
    params = {"scale": np.full(8, 2.0, np.float32), "bias": np.arange(8, dtype=np.float32)}
    groups = x.astype(np.float64).reshape(256, 256, 4, 2)
    normed = (groups - groups.mean((0, 1, 3), keepdims=True)) / np.sqrt(groups.var((0, 1, 3), keepdims=True) + 1e-6)
    expected = normed.reshape(x.shape) * params["scale"] + params["bias"]
    np.testing.assert_allclose(vqgan._GroupNorm(4).apply({"params": params}, x), expected, atol=2e-5)


def test_doubling_convolution_is_that_of_the_doubled_picture():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 5, 7, 4)).astype(np.float32), rng.normal(size=(3, 3, 4, 4)).astype(np.float32)
    found = vqgan._DoublingConv().apply({"params": {"kernel": kernel, "bias": np.ones(4, np.float32)}}, x)
    doubled = np.pad(x.repeat(2, 1).repeat(2, 2), ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = 1 + sum(doubled[:, i : i + 10, j : j + 14] @ kernel[i, j] for i in range(3) for j in range(3))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_dropout_acts_only_with_a_key():
    config = VQConfig.from_dict(SMALL.to_dict() | {"dropout": 0.5})
    params = _random(config)
    images = _images(config)
    plain = encode_latents(params, images, config)
    np.testing.assert_array_equal(plain, encode_latents(params, images, SMALL))
    assert not np.allclose(plain, encode_latents(params, images, config, dropout_key=jax.random.key(1)))
