"""The released codec's files become our codec exactly, and it computes what torch computes from them."""

import math
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

from chameleon_jax.configs import VQConfig
from chameleon_jax.convert import vqgan as convert
from chameleon_jax.errors import ConvertError
from chameleon_jax.tokenizers import quantizer, vqgan

torch = pytest.importorskip("torch")
sys.path.append(str(Path(__file__).parent))
import torch_vqgan  # noqa: E402

SIZES = torch_vqgan.Sizes(
    embed_dim=24, n_embed=256, z_channels=40, resolution=64, ch=32, ch_mult=(1, 2, 2), num_res_blocks=2, attn_resolutions=(32,)
)  # fmt: skip
CONFIG = VQConfig(
    embed_dim=24, codes=256, latent_channels=40, resolution=64, channels=32, channel_multipliers=(1, 2, 2), res_blocks=2,
    attention_resolutions=(32,),
)  # fmt: skip
encode_latents = jax.jit(vqgan.encode_latents, static_argnums=2)
decode = jax.jit(vqgan.decode, static_argnums=2)
nearest_codes = jax.jit(quantizer.nearest_codes)


def state_of(model):
    return {name: value.numpy() for name, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def model():
    return torch_vqgan.random_vqgan(SIZES)


@pytest.fixture(scope="module")
def tensors(model):
    return state_of(model)


def transformers_model(config, tensors):
    pytest.importorskip("transformers")
    from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig
    from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

    made = ChameleonVQVAE(ChameleonVQVAEConfig(**convert.config_to_hf(config))).float().eval()
    kept = {name: torch.from_numpy(value) for name, value in tensors.items() if not name.startswith("decoder.")}
    made.load_state_dict(kept, strict=True)
    return made


def clear_cases(latents, book, margin=1e-4):
    """Which positions have a nearest code that float32 must find: in float64 the second is farther by more than `margin` of it."""
    z, e = latents.reshape(-1, latents.shape[-1]).astype(np.float64), book.astype(np.float64)
    nearest = np.sort((z**2).sum(1)[:, None] + (e**2).sum(1) - 2 * z @ e.T, axis=1)
    return nearest[:, 1] - nearest[:, 0] > margin * nearest[:, 0]


def assert_equal_encoding(config, params, theirs, images):
    """Latents to 1e-4, and all codes but real near ties, which are few."""
    with torch.inference_mode():
        out = theirs.encode(torch.from_numpy(images.transpose(0, 3, 1, 2)))
        expected = theirs.quant_conv(out.last_hidden_state).permute(0, 2, 3, 1).numpy()
        wanted = out.image_tokens.numpy().reshape(-1)
    latents = np.asarray(encode_latents(params, images, config))
    np.testing.assert_allclose(latents, expected, atol=1e-4)
    codes = np.asarray(nearest_codes(latents, vqgan.codebook(params))).reshape(-1)
    clear = clear_cases(expected, np.asarray(vqgan.codebook(params)))
    assert np.sum(~clear) <= max(1, 0.01 * len(clear))
    np.testing.assert_array_equal(codes[clear], wanted[clear])
    assert len(np.unique(codes)) > 20
    return codes


def pictures(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (*shape, 3)).astype(np.float32)


# --- numerics --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sides", [(64, 64), (32, 96)])
def test_codes_and_latents_are_those_of_transformers(tensors, sides):
    theirs = transformers_model(CONFIG, tensors)
    params = convert.from_torch(tensors, CONFIG, "here")
    assert_equal_encoding(CONFIG, params, theirs, pictures(2, *sides))


@pytest.mark.parametrize("grid", [(16, 16), (8, 24)])
def test_pixels_are_those_of_the_published_decoder(model, tensors, grid):
    params = convert.from_torch(tensors, CONFIG, "here")
    codes = np.random.default_rng(0).integers(0, CONFIG.codes, (2, *grid))
    with torch.inference_mode():
        expected = model.decode(torch.from_numpy(codes)).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(decode(params, codes, CONFIG), expected, atol=1e-4)
    assert 0.1 < expected.std() < 10


@pytest.mark.parametrize("side", [256, pytest.param(512, marks=pytest.mark.slow)])
def test_the_released_size_computes_what_torch_computes(side):
    config, big = VQConfig(), torch_vqgan.random_vqgan(torch_vqgan.Sizes())
    tensors = state_of(big)
    assert sum(value.size for value in tensors.values()) == 68_718_467
    params = convert.from_torch(tensors, config, "here")
    codes = assert_equal_encoding(config, params, transformers_model(config, tensors), pictures(1, side, side))
    codes = codes.reshape(1, side // 16, side // 16)
    with torch.inference_mode():
        expected = big.decode(torch.from_numpy(codes.astype(np.int64))).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(decode(params, codes, config), expected, atol=1e-4)
    assert 0.1 < expected.std() < 10


# --- tensors ---------------------------------------------------------------------------------------------------------


def test_every_part_has_the_released_number_of_parameters():
    with torch.device("meta"):
        released = torch_vqgan.VQGAN(torch_vqgan.Sizes()).state_dict()
    table = convert._table(VQConfig(), without=())
    assert dict(table.values()) == {n: tuple(value.shape) for n, value in released.items()}
    counts = {}
    for name, shape in table.values():
        counts[name.split(".")[0]] = counts.get(name.split(".")[0], 0) + math.prod(shape)
    assert counts == {
        "encoder": 27_194_880,
        "decoder": 39_294_851,
        "quantize": 2_097_152,
        "quant_conv": 65_792,
        "post_quant_conv": 65_792,
    }
    assert sum(counts.values()) == 68_718_467


def test_there_and_back_is_bitwise(tensors):
    params = convert.from_torch(tensors, CONFIG, "here")
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda leaf: leaf.shape, vqgan.shapes(CONFIG))
    back = convert.to_torch(params, CONFIG)
    assert back.keys() == tensors.keys()
    for name, value in tensors.items():
        assert back[name].dtype == np.float32 and back[name].tobytes() == value.tobytes()


@pytest.mark.parametrize("kept", ["post_quant_conv", "nothing"])
def test_an_encoder_alone_comes_as_hugging_face_keeps_it(tensors, kept):
    gone = ("decoder.",) if kept == "post_quant_conv" else ("decoder.", "post_quant_conv.")
    alone = {name: value for name, value in tensors.items() if not name.startswith(gone)}
    params = convert.from_torch(alone, CONFIG, "here")
    assert sorted({"encoder", "quant_conv", "quantize", kept} - {"nothing"}) == sorted(params)
    back = convert.to_torch(params, CONFIG)
    assert back.keys() == alone.keys() and not convert.ignored(alone)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_narrower_floats_are_widened_exactly(tensors, dtype):
    narrow = {name: value.astype(dtype) for name, value in tensors.items()}
    back = convert.to_torch(convert.from_torch(narrow, CONFIG, "here"), CONFIG)
    for name, value in narrow.items():
        np.testing.assert_array_equal(back[name], value.astype(np.float32))


@pytest.mark.parametrize("prefix", ["", "vqmodel.", "model.vqmodel."])
def test_the_codec_is_found_below_its_prefix(tensors, prefix):
    whole = {prefix + name: name for name in tensors} | ({"model.embed_tokens.weight": "other"} if prefix else {})
    assert convert.strip_prefix(whole) == {name: name for name in tensors}


def test_a_file_without_a_codec_gives_none():
    assert convert.strip_prefix({"model.layers.0.mlp.up_proj.weight": 0, "lm_head.weight": 0}) == {}


def test_what_is_left_out_has_a_reason(tensors):
    baggage = {
        "loss.discriminator.main.0.weight": "discriminator",
        "loss.perceptual_loss.net.slice1.0.weight": "perceptual",
        "model_ema.decay": "moving averages",
        "quantize.ema_cluster_size": "moving averages",
        "global_step": "not a part",
    }
    whole = tensors | {name: np.zeros(1, np.float32) for name in baggage}
    reasons = convert.ignored(whole)
    assert reasons.keys() == baggage.keys()
    assert all(part in reasons[name] for name, part in baggage.items())
    jax.tree.map(
        np.testing.assert_array_equal,
        convert.from_torch(whole, CONFIG, "here"),
        convert.from_torch(tensors, CONFIG, "here"),
    )


def _without(*prefixes):
    return lambda tensors: {name: value for name, value in tensors.items() if not name.startswith(prefixes)}


def _with(name, value):
    return lambda tensors: tensors | {name: value}


WRONG = {
    "missing": (
        _without("encoder.mid.attn_1.q.bias"),
        r"^f\.ckpt lacks encoder\.mid\.attn_1\.q\.bias, expected \[64\], found nothing$",
    ),
    "shape": (
        _with("encoder.conv_in.weight", np.zeros((32, 3, 1, 1), np.float32)),
        r"^f\.ckpt: encoder\.conv_in\.weight is \[32, 3, 1, 1\], expected \[32, 3, 3, 3\]$",
    ),
    "part of a decoder": (_without("decoder.up.1.block"), r"^f\.ckpt lacks decoder\.up\.1\.block\.0"),
    "decoder without its first layer": (_without("post_quant_conv"), r"^f\.ckpt lacks post_quant_conv\."),
    "deeper than the config": (
        _with("encoder.down.3.block.0.norm1.weight", np.ones(64, np.float32)),
        r"^f\.ckpt has encoder\.down\.3\.block\.0\.norm1\.weight \[64\], but its config does not ask for it",
    ),
    "integers": (_with("quant_conv.bias", np.zeros(24, np.int8)), r"quant_conv\.bias is int8, expected float32"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_tensors_that_do_not_fit_are_one_line(tensors, case):
    change, message = WRONG[case]
    with pytest.raises(ConvertError, match=message) as caught:
        convert.from_torch(change(tensors), CONFIG, "f.ckpt")
    assert "\n" not in str(caught.value)


# --- configs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [VQConfig(), CONFIG])
def test_configs_come_back_equal(config):
    assert convert.config_from_yaml(convert.config_to_yaml(config), "here") == config
    assert convert.config_from_hf(convert.config_to_hf(config), "here") == config


def test_missing_fields_are_the_releases():
    assert convert.config_from_yaml({}, "here") == VQConfig()
    assert convert.config_from_yaml({"model": {"params": {"ddconfig": {"dropout": 0}}}}, "here") == VQConfig()
    assert convert.config_from_hf({"attn_resolutions": None, "initializer_range": 0.02}, "here") == VQConfig()


def test_the_config_of_transformers_is_read():
    pytest.importorskip("transformers")
    from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig

    assert convert.config_from_hf(ChameleonVQVAEConfig().to_dict(), "here") == VQConfig()


@pytest.mark.parametrize(
    ("read", "values", "message"),
    [
        ("yaml", {"model": {"params": {"ddconfig": {"double_z": True}}}}, "^f: double_z is True, and only False is supported$"),
        ("yaml", {"model": {"params": {"ddconfig": {"out_ch": 1}}}}, "^f: out_ch is 1, and only 3 is supported$"),
        ("yaml", {"model": {"params": {"embed_dim": "256"}}}, "^f: VQConfig.embed_dim: expected int"),
        ("yaml", {"model": [1]}, "^f: model is .* expected a mapping"),
        ("yaml", {"model": {"params": {"ddconfig": {"ch": 48}}}}, "^f: .*48 is not a multiple of norm_groups 32"),
        ("hf", {"double_latent": True}, "^f: double_latent is True, and only False is supported$"),
        ("hf", {"attn_type": None}, "^f: attn_type is None, and only 'vanilla' is supported$"),
    ],
)  # fmt: skip
def test_configs_that_are_not_built_are_refused(read, values, message):
    with pytest.raises(ConvertError, match=message):
        getattr(convert, f"config_from_{read}")(values, "f")


@pytest.mark.parametrize(("field", "value"), [("patch_size", 4), ("norm_groups", 16)])
def test_a_codec_that_only_we_can_run_is_not_exported(field, value):
    config = VQConfig.from_dict(CONFIG.to_dict() | {field: value})
    for export in (convert.config_to_yaml, convert.config_to_hf, lambda c: convert.to_torch({}, c)):
        with pytest.raises(ConvertError, match=f"{field} {value} cannot be exported"):
            export(config)
