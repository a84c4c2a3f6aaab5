"""A tokenizer bundle is saved, checked and fingerprinted as one thing."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from chameleon_jax import cli
from chameleon_jax.configs import ImageConfig, VQConfig, text_and_image
from chameleon_jax.errors import TokenizerError
from chameleon_jax.generation.reader import Pieces
from chameleon_jax.tokenizers import vqgan
from chameleon_jax.tokenizers.bundle import TokenizerBundle
from chameleon_jax.tokenizers.text import train_bpe
from experiments import extend_tokenizer

CODEC = VQConfig(
    resolution=8,
    channels=8,
    channel_multipliers=(1, 2),
    res_blocks=1,
    latent_channels=8,
    embed_dim=4,
    codes=16,
    norm_groups=4,
)
SIZES = text_and_image(image_codes=16, reserved=4, text_tokens=300, codes_per_image=16)
GRIDS = text_and_image(image_codes=16, reserved=100, text_tokens=300, codes_per_image=40, image_span="grid")
LUMINA = ImageConfig(preprocessing="lumina", resolution=16, grid_pixels=4)


def random_codec(config, seed):
    """A codec of random weights, without compiling the initialisers."""
    chance = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda key: vqgan.init(key, config), jax.random.key(0))
    params = jax.tree.map(lambda leaf: chance.normal(0, 0.3, leaf.shape).astype(leaf.dtype), shapes)
    return vqgan.Codec(params=params, config=config)


def make(sizes=SIZES, image=ImageConfig(resolution=8), seed=0):  # noqa: B008
    text = train_bpe(["the quick brown fox jumps over the lazy dog"] * 4, sizes)
    return TokenizerBundle.of_pictures(images=image, text=text, vqgan=random_codec(CODEC, seed))


def with_vqgan(bundle, vqgan):
    codecs = {"image": dataclasses.replace(bundle.codecs["image"], vqgan=vqgan)}
    return dataclasses.replace(bundle, codecs=codecs)


@pytest.fixture(scope="module")
def bundle():
    return make()


@pytest.fixture
def pixels():
    return np.random.default_rng(0).uniform(-1, 1, (3, 8, 8, 3)).astype(np.float32)


def test_a_saved_bundle_loads_equal(bundle, pixels, tmp_path):
    bundle.save(tmp_path / "new" / "bundle")
    loaded = TokenizerBundle.load(tmp_path / "new" / "bundle")
    assert loaded.fingerprint() == bundle.fingerprint()
    assert (loaded.vocab_config, loaded.pictures.config, loaded.vocab) == (
        bundle.vocab_config,
        bundle.pictures.config,
        bundle.vocab,
    )
    np.testing.assert_array_equal(loaded.text.encode("a lazy fox"), bundle.text.encode("a lazy fox"))
    np.testing.assert_array_equal(loaded.pictures.encode(pixels), bundle.pictures.encode(pixels))


def test_images_become_rows_of_codes_and_come_back_as_pixels(bundle, pixels):
    codes = bundle.pictures.encode(pixels)
    grid = np.asarray(jax.jit(vqgan.encode, static_argnums=2)(bundle.pictures.vqgan.params, pixels, CODEC))
    np.testing.assert_array_equal(codes, grid.reshape(3, 16))
    assert codes.dtype == np.int32 and codes.min() >= 0 and codes.max() < 16
    decoded = bundle.pictures.decode(codes)
    assert decoded.shape == (3, 8, 8, 3) and decoded.dtype == np.float32
    one = np.asarray(jax.jit(vqgan.decode, static_argnums=2)(bundle.pictures.vqgan.params, grid[1:2], CODEC))
    np.testing.assert_allclose(decoded[1:2], one, atol=1e-5)


@pytest.mark.parametrize(
    ("codes", "reason"),
    [
        (np.zeros((1, 15), np.int32), r"shape \(1, 15\), expected \(batch, 16\)"),
        (np.zeros(16, np.int32), "expected"),
        (np.full((1, 16), 16), r"16\.\.16 is outside 0\.\.15"),
        (np.full((1, 16), -1), "outside"),
    ],
)
def test_codes_that_do_not_fit_are_refused(bundle, codes, reason):
    with pytest.raises(TokenizerError, match=reason):
        bundle.pictures.decode(codes)


def test_every_part_changes_the_fingerprint(bundle):
    other = dataclasses.replace(CODEC, dropout=0.1)
    text = train_bpe(["another corpus of other words"] * 4, SIZES)
    prints = {
        bundle.fingerprint(),
        make(seed=1).fingerprint(),
        make(image=ImageConfig(resolution=8, max_pixels=10)).fingerprint(),
        dataclasses.replace(bundle, text=text, vocab_config=text.vocab_config).fingerprint(),
        with_vqgan(bundle, vqgan.Codec(params=bundle.pictures.vqgan.params, config=other)).fingerprint(),
    }
    assert len(prints) == 5
    assert make().fingerprint() == bundle.fingerprint()
    assert all(len(p) == 16 for p in prints)


def without_decoder(codec):
    kept = ("encoder", "quant_conv", "quantize")
    return vqgan.Codec(params={name: codec.params[name] for name in kept}, config=codec.config)


def test_a_bundle_without_a_codec_serves_text_and_says_how_to_get_one(bundle, pixels, tmp_path):
    bare = with_vqgan(bundle, None)
    bare.save(tmp_path)
    assert not list(tmp_path.glob("vqgan.*"))
    loaded = TokenizerBundle.load(tmp_path)
    assert loaded.pictures.vqgan is None and loaded.fingerprint() == bare.fingerprint() != bundle.fingerprint()
    for call in (lambda: loaded.pictures.encode(pixels), lambda: loaded.pictures.decode(np.zeros((1, 16), np.int32))):
        with pytest.raises(TokenizerError, match=r"no image codec .* experiments\.convert \.\.\. --vqgan FILE$"):
            call()


def test_a_bundle_without_a_codec_does_not_take_up_one_that_lies_there(bundle, tmp_path):
    bundle.save(tmp_path)
    with pytest.raises(TokenizerError, match=r"has a vqgan\.json that is not of this bundle"):
        with_vqgan(bundle, None).save(tmp_path)
    assert TokenizerBundle.load(tmp_path).fingerprint() == bundle.fingerprint()


def test_an_encoder_alone_reads_pictures_and_does_not_write_them(bundle, pixels, tmp_path):
    with_vqgan(bundle, without_decoder(bundle.pictures.vqgan)).save(tmp_path)
    loaded = TokenizerBundle.load(tmp_path)
    assert not loaded.pictures.can_decode and bundle.pictures.can_decode
    codes = loaded.pictures.encode(pixels)
    np.testing.assert_array_equal(codes, bundle.pictures.encode(pixels))
    with pytest.raises(TokenizerError, match=r"no decoder: .* --vqgan FILE"):
        loaded.pictures.decode(codes)


def test_grids_are_encoded_and_decoded_at_their_own_size():
    bundle = make(sizes=GRIDS, image=LUMINA)  # of 16 pixels, not the codec's 8: that binds fixed spans only
    bundle.check()
    wide = np.random.default_rng(0).uniform(-1, 1, (2, 8, 16, 3)).astype(np.float32)
    codes = bundle.pictures.encode(wide)
    rows = np.asarray(jax.jit(vqgan.encode, static_argnums=2)(bundle.pictures.vqgan.params, wide, CODEC))
    assert rows.shape == (2, 4, 8)
    np.testing.assert_array_equal(codes, rows)
    assert bundle.pictures.decode(codes).shape == wide.shape
    for flat in (codes.reshape(2, 32), np.zeros((1, 16), np.int32)):
        with pytest.raises(TokenizerError, match=r"expected \(batch, height, width\)"):
            bundle.pictures.decode(flat)
    with pytest.raises(TokenizerError, match="8x8 = 64 codes, 40 are the most"):
        bundle.vocab.modalities[1].span(bundle.pictures.encode(np.zeros((1, 16, 16, 3)))[0])
    with pytest.raises(TokenizerError, match="multiples of 2"):
        bundle.pictures.encode(np.zeros((1, 8, 7, 3)))


def test_a_picture_of_another_size_is_refused_where_spans_are_fixed(bundle):
    with pytest.raises(TokenizerError, match="8x16 pixels, the codec wants 8 a side"):
        bundle.pictures.encode(np.zeros((1, 8, 16, 3)))


CONTRADICTIONS = {
    "codes": (lambda: make(sizes=SIZES.with_row("image", ids=15)), "'image' has 15 codes in the table but 16 in its codec"),
    "codes an image": (lambda: make(sizes=SIZES.with_row("image", length=9)), "9 codes in a span in the table but 16"),
    "resolution": (lambda: make(image=ImageConfig(resolution=16)), "16 resolution of images.json but 8 resolution"),
    "text": (
        lambda: dataclasses.replace(make(), vocab_config=make().vocab_config.with_row("text", ids=999)),
        "ids of the vocabulary but .* ids of the text tokenizer",
    ),
    "same size, other layout": (
        lambda: dataclasses.replace(
            make(), text=train_bpe([], text_and_image(image_codes=15, reserved=5, text_tokens=256, codes_per_image=16)),
            vocab_config=text_and_image(image_codes=16, reserved=4, text_tokens=256, codes_per_image=16),
        ),
        "vocab.json and tokenizer.json differ",
    ),
    "squares for grids": (lambda: make(sizes=GRIDS), "prepared as 'meta', the grid spans of 'image' need lumina"),
    "many sizes for squares": (
        lambda: make(image=ImageConfig(preprocessing="lumina", resolution=8, grid_pixels=4)),
        "prepared as 'lumina', the fixed spans of 'image' need meta or hf",
    ),
    "the unit of the grid": (
        lambda: make(sizes=GRIDS, image=ImageConfig(preprocessing="lumina", resolution=16, grid_pixels=16)),
        "grid_pixels is 16, but 2 codes of 2 pixels, the unit of the grid, are 4",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_contradicting_parts_are_refused_with_both_numbers(case, tmp_path):
    build, reason = CONTRADICTIONS[case]
    with pytest.raises(TokenizerError, match=reason):
        build().save(tmp_path)


@pytest.mark.parametrize("name", ["vocab.json", "images.json", "tokenizer.json", "vqgan.json", "vqgan.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_missing_or_cut_part_is_named(bundle, tmp_path, name, damage):
    bundle.save(tmp_path)
    path = tmp_path / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(TokenizerError, match=name.replace(".", r"\.")):
        TokenizerBundle.load(tmp_path)


def test_an_unknown_field_of_a_part_is_named(bundle, tmp_path):
    bundle.save(tmp_path)
    values = json.loads((tmp_path / "images.json").read_text())
    (tmp_path / "images.json").write_text(json.dumps(values | {"resolutoin": 8}))
    with pytest.raises(TokenizerError, match=r"images\.json .*resolutoin.*did you mean 'resolution'"):
        TokenizerBundle.load(tmp_path)


def test_an_extension_keeps_all_ids_and_tells_what_it_extends(bundle, tmp_path):
    extended = bundle.with_added(("<brush>", "</brush>"))
    assert extended.vocab.size == bundle.vocab.size + 2
    assert extended.added_ids == {"<brush>": bundle.vocab.size, "</brush>": bundle.vocab.size + 1}
    assert extended.vocab.modalities == bundle.vocab.modalities
    assert extended.fingerprint() != bundle.fingerprint()
    extended.save(tmp_path / "extended")
    loaded = TokenizerBundle.load(tmp_path / "extended")
    assert loaded.vocab_config == extended.vocab_config and loaded.fingerprint() == extended.fingerprint()
    twice = loaded.with_added((*loaded.vocab_config.added, "<pen>"))
    assert twice.with_added(twice.vocab_config.added[:2]).fingerprint() == extended.fingerprint()
    assert twice.with_added(()).fingerprint() == bundle.fingerprint()


def test_no_text_becomes_an_added_id_and_an_added_id_says_nothing(bundle):
    extended = bundle.with_added(("<brush>",))
    for text in ("<brush>", "a <brush> fox", " <brush>"):
        ids = extended.text.encode(text)
        np.testing.assert_array_equal(ids, bundle.text.encode(text))
        assert extended.text.decode([*ids, extended.added_ids["<brush>"]]) == text
    (shown,) = Pieces(extended).describe([extended.added_ids["<brush>"]])
    assert (shown["kind"], shown["piece"]) == ("marker", "<brush>")
    with pytest.raises(TokenizerError, match="leave the vocabulary"):
        bundle.text.decode([bundle.vocab.size])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("<pad>",), "'<pad>' is the name of an id already"),
        (("the",), "'the' is the name of an id already"),
        (("<a>", "<a>"), "added has a name twice"),
        (("",), "not empty"),
        (("a b",), "without spaces"),
    ],
)
def test_names_that_cannot_be_added_are_refused(bundle, names, message):
    with pytest.raises(TokenizerError, match=message):
        bundle.with_added(names)


def test_the_command_extends_a_bundle(bundle, tmp_path, capsys):
    bundle.save(tmp_path / "old")
    flags = ["--tokenizer", str(tmp_path / "old"), "--name", "<brush>", "--output", str(tmp_path / "new")]
    for code in (0, 2):  # the second time there is something already
        with pytest.raises(SystemExit) as stop:
            cli.run(extend_tokenizer.main, None, "doc", add_flags=extend_tokenizer._flags, workdir=False, argv=flags)
        assert stop.value.code == code
    out = capsys.readouterr()
    assert f"extends {bundle.fingerprint()}" in out.out and "not an empty folder" in out.err
    assert TokenizerBundle.load(tmp_path / "new").added_ids == {"<brush>": bundle.vocab.size}
