"""Picture files become pixels exactly as in Chameleon, or are refused with a reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from chameleon_jax.configs import ImageConfig
from chameleon_jax.errors import ConfigError, DataError
from chameleon_jax.tokenizers import images

CONFIG = ImageConfig(resolution=16, max_pixels=100_000)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def random_image(mode, size, seed=0):
    bands = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], bands), np.uint8)
    return Image.frombytes(mode, size, values.tobytes())


def png_header(width, height, depth=8, color=2, extra=b""):
    """A PNG of a few bytes that claims to be of any size."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


def reference_rgb(image):
    """Alpha on white as the specification says, in float64, truncated."""
    rgba = np.asarray(image.convert("RGBA"))
    if image.mode == "RGB" or (rgba[..., 3] == 255).all():
        return np.asarray(image.convert("RGB"))
    alpha = rgba[..., 3:].astype(np.float64) / 255.0
    return np.trunc((1 - alpha) * 255 + alpha * rgba[..., :3]).astype(np.uint8)


def reference_resize(values, width, height):
    """Separable Lanczos (a = 3) with antialiasing in float64, rounded to 8 bits after each pass as 8-bit resamplers do."""

    def weights(old, new):
        scale = old / new
        support = 3.0 * max(scale, 1.0)
        matrix = np.zeros((new, old))
        for i in range(new):
            centre = (i + 0.5) * scale
            low, high = max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), old)
            x = (np.arange(low, high) - centre + 0.5) / max(scale, 1.0)
            row = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)
            matrix[i, low:high] = row / row.sum()
        return matrix

    def to_8_bit(x):
        return np.clip(np.floor(x + 0.5), 0, 255)

    across = to_8_bit(np.einsum("ow,hwc->hoc", weights(values.shape[1], width), values.astype(np.float64)))
    return to_8_bit(np.einsum("oh,hwc->owc", weights(values.shape[0], height), across))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "1", "P"])
@pytest.mark.parametrize("size", [(16, 16), (37, 20), (9, 31), (200, 65)])
def test_pixels_follow_the_specification_in_every_mode(mode, size):
    image = random_image("RGB" if mode in ("P", "1") else mode, size)
    image = image.convert(mode) if mode in ("P", "1") else image
    pixels = images.load_pixels(encoded(image), CONFIG)

    width, height = size
    scale = 16 / min(size)
    new = (round(scale * width), round(scale * height))
    resized = reference_resize(reference_rgb(image), *new)
    left, top = (new[0] - 16) // 2, (new[1] - 16) // 2
    expected = resized[top : top + 16, left : left + 16] / 255.0 * 2 - 1
    assert pixels.shape == (16, 16, 3) and pixels.dtype == np.float32
    steps = np.abs(pixels - expected) / (2 / 255)
    assert steps.max() < 1.01  # fixed-point weights of the real resampler may round the other way
    assert (steps > 0.5).mean() < 0.02


def stored(image, kind="PNG", **options):
    """The picture as any reader of the file finds it."""
    return encoded(image, kind, **options), Image.open(io.BytesIO(encoded(image, kind, **options)))


def palette(transparent):
    image = random_image("RGB", (60, 33), 7).quantize(12)
    return stored(image, transparency=3) if transparent else stored(image)


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6
    return stored(random_image("RGB", (70, 40), 8), "JPEG", exif=exif, quality=90)


def interlaced():
    """An 8x8 grey PNG in Adam7 order, which Pillow reads and cannot write."""
    values = np.random.default_rng(9).integers(0, 256, (8, 8), np.uint8)
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    lines = [row for top, left, down, across in passes for row in values[top::down, left::across]]
    body = zlib.compress(b"".join(b"\0" + line.tobytes() for line in lines))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 1)), (b"IDAT", body), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), values)
    return data, Image.open(io.BytesIO(data))


def opaque_alpha():
    image = random_image("RGBA", (50, 31), 10)
    image.putalpha(255)
    return stored(image)


ODD = {
    "black and white": lambda: stored(random_image("L", (61, 47), 1).convert("1")),
    "grey": lambda: stored(random_image("L", (300, 77), 2)),
    "grey with alpha": lambda: stored(random_image("LA", (45, 91), 3)),
    "palette": lambda: palette(transparent=False),
    "palette with transparency": lambda: palette(transparent=True),
    "alpha": lambda: stored(random_image("RGBA", (130, 200), 4)),
    "alpha that hides nothing": opaque_alpha,
    "grey with a transparent level": lambda: stored(random_image("L", (40, 50), 5), transparency=100),
    "CMYK": lambda: stored(random_image("CMYK", (90, 120), 6), "JPEG"),
    "1x1": lambda: stored(random_image("RGB", (1, 1))),
    "1xN": lambda: stored(random_image("RGB", (1, 5))),
    "Nx1": lambda: stored(random_image("RGB", (7, 1))),
    "just the size": lambda: stored(random_image("RGB", (512, 512))),
    "wide and odd": lambda: stored(random_image("RGB", (777, 513))),
    "high and odd": lambda: stored(random_image("RGB", (515, 1031))),
    "half to even": lambda: stored(random_image("RGB", (1023, 1025))),
    "turned by EXIF": rotated,
    "interlaced": interlaced,
    "lossless WEBP": lambda: stored(random_image("RGBA", (64, 100), 11), "WEBP", lossless=True),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_pictures_follow_the_rules_of_chameleon_to_the_bit(case):
    data, image = ODD[case]()
    width, height = image.size
    scale = 512 / min(width, height)
    resized = Image.fromarray(reference_rgb(image)).resize((round(scale * width), round(scale * height)), Image.LANCZOS)
    left, top = (resized.width - 512) // 2, (resized.height - 512) // 2
    values = np.asarray(resized)[top : top + 512, left : left + 512].astype(np.float64)
    np.testing.assert_array_equal(
        images.load_pixels(data, ImageConfig()), (values / 255.0 * 2.0 - 1.0).astype(np.float32)
    )


@pytest.mark.parametrize("case", ODD)
def test_odd_pictures_equal_those_of_transformers(case):
    port = pytest.importorskip("transformers.models.chameleon.image_processing_pil_chameleon")
    data, image = ODD[case]()
    theirs = port.ChameleonImageProcessorPil()(image, return_tensors="np")["pixel_values"][0]
    ours = images.load_pixels(data, ImageConfig(preprocessing="hf"))
    np.testing.assert_array_equal(ours, theirs.transpose(1, 2, 0))


def reference_sizes(most):
    """Width and height in units: no more than `most` units, no longer than 4 to 1, and too many with one more on both sides."""
    sides = [(w, h) for w in range(1, most + 1) for h in range(1, most // w + 1)]
    return {(w, h) for w, h in sides if (w + 1) * (h + 1) > most and w <= 4 * h and h <= 4 * w}


@pytest.mark.parametrize("case", ODD)
def test_odd_pictures_keep_about_their_shape_on_a_grid(case):
    data, image = ODD[case]()
    picture = Image.fromarray(reference_rgb(image))
    width, height = picture.size
    best = max(
        reference_sizes(256),
        key=lambda s: (min(s[0] / width, s[1] / height) / max(s[0] / width, s[1] / height), s),
    )
    crop_width, crop_height = 32 * best[0], 32 * best[1]
    while min(picture.width / crop_width, picture.height / crop_height) >= 2:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.BOX)
    scale = max(crop_width / picture.width, crop_height / picture.height)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.BICUBIC)
    left, top = (picture.width - crop_width) // 2, (picture.height - crop_height) // 2
    values = np.asarray(picture)[top : top + crop_height, left : left + crop_width].astype(np.float64)
    made = images.load_pixels(data, ImageConfig(preprocessing="lumina"))
    np.testing.assert_array_equal(made, (values / 255.0 * 2.0 - 1.0).astype(np.float32))


@pytest.mark.parametrize("side, count, longest", [(16, 49, 1024), (24, 73, 1536), (32, 97, 2048)])
def test_grids_have_few_sizes_up_to_four_to_one(side, count, longest):
    sizes = images.grid_sizes(side, 32)
    assert {(w // 32, h // 32) for w, h in sizes} == reference_sizes(side**2)
    assert len(sizes) == len(set(sizes)) == count
    assert max(map(max, sizes)) == longest and (32 * side, 32 * side) in sizes


@pytest.mark.parametrize(
    "picture, size",
    [((512, 512), (512, 512)), ((5000, 5000), (512, 512)), ((900, 600), (608, 416)), ((100, 4000), (256, 1024))],
)
def test_a_picture_on_a_grid_has_the_nearest_shape(picture, size):
    pixels = images.prepare(Image.new("RGB", picture), ImageConfig(preprocessing="lumina"))
    assert pixels.shape == (size[1], size[0], 3)


def test_a_large_picture_on_a_grid_is_halved_first():
    """A fine checkerboard is grey after one mean of 2x2; cubic scaling alone would leave a pattern."""
    board = np.indices((1024, 1024)).sum(0) % 2 * 255
    pixels = images.prepare(
        Image.fromarray(np.stack([board] * 3, -1).astype(np.uint8)), ImageConfig(preprocessing="lumina")
    )
    assert np.ptp(pixels) == 0 and abs(pixels[0, 0, 0]) < 0.01


def test_too_narrow_pictures_are_refused_on_a_grid_too():
    config = ImageConfig(preprocessing="lumina", max_pixels=1_000_000)
    with pytest.raises(DataError, match="1x2000 is too narrow: scaled to 256x512000"):
        images.load_pixels(encoded(Image.new("RGB", (1, 2000))), config)


def test_a_grid_must_divide_the_resolution():
    with pytest.raises(ConfigError, match="resolution 500 is not a multiple of grid_pixels 32"):
        ImageConfig(resolution=500, preprocessing="lumina")


def test_alpha_is_laid_on_white_with_truncation():
    image = random_image("RGBA", (64, 48), seed=3)
    opened = np.asarray(images.open_image(encoded(image), CONFIG))
    np.testing.assert_array_equal(opened, reference_rgb(image))


def test_blending_in_strips_changes_nothing(monkeypatch):
    data = encoded(random_image("RGBA", (40, 33), seed=4))
    whole = np.asarray(images.open_image(data, CONFIG))
    monkeypatch.setattr(images, "_BLEND_PIXELS", 90)
    np.testing.assert_array_equal(np.asarray(images.open_image(data, CONFIG)), whole)


def test_palette_transparency_is_laid_on_white():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    opened = images.open_image(encoded(image, transparency=1), CONFIG)
    assert opened.getpixel((0, 0)) == (255, 255, 255)


def test_cmyk_jpeg_is_converted_by_way_of_rgba():
    data = encoded(random_image("CMYK", (20, 20)), "JPEG")
    stored = Image.open(io.BytesIO(data))
    assert stored.mode == "CMYK"
    np.testing.assert_array_equal(np.asarray(images.open_image(data, CONFIG)), np.asarray(stored.convert("RGB")))


def test_exif_rotation_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(random_image("RGB", (30, 20)), "JPEG", exif=exif)
    assert images.open_image(data, CONFIG).size == (30, 20)


def test_an_icc_profile_changes_no_pixel():
    from PIL import ImageCms

    image = random_image("RGB", (20, 20))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    opened = images.open_image(encoded(image, icc_profile=profile), CONFIG)
    np.testing.assert_array_equal(np.asarray(opened), np.asarray(image))


def test_a_jpeg_with_a_second_picture_behind_the_first_gives_the_first():
    first, second = random_image("RGB", (16, 16), 1), random_image("RGB", (16, 16), 2)
    data = encoded(first, "MPO", save_all=True, append_images=[second], quality=95)
    alone = encoded(first, "JPEG", quality=95)
    np.testing.assert_array_equal(
        np.asarray(images.open_image(data, CONFIG)), np.asarray(images.open_image(alone, CONFIG))
    )


def test_one_pixel_fills_the_whole_picture():
    pixels = images.load_pixels(encoded(Image.new("RGB", (1, 1), (255, 0, 0))), CONFIG)
    np.testing.assert_array_equal(pixels, np.broadcast_to(np.array([1, -1, -1], np.float32), (16, 16, 3)))


def test_format_is_taken_from_content():
    webp = encoded(random_image("RGB", (20, 20)), "WEBP", lossless=True)
    assert images.load_pixels(webp, CONFIG).shape == (16, 16, 3)


def test_uint8_round_trip_truncates_and_clamps():
    levels = np.arange(256, dtype=np.uint8)
    exact = (levels / 255.0 * 2.0 - 1.0).astype(np.float32)
    back = images.to_uint8(np.stack([exact] * 3, -1)[None])[0, :, 0]
    assert np.all((levels.astype(int) - back >= 0) & (levels.astype(int) - back <= 1))
    edges = images.to_uint8(np.array([[-3.0, -1.0, 0.0], [0.999, 1.0, 7.0]], np.float32))
    assert edges.tolist() == [[0, 0, 127], [254, 255, 255]]
    assert images.to_image(np.zeros((2, 3, 3), np.float32)).size == (3, 2)


def animated(kind):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


def zip_text_bomb():
    body = b"key\0\0" + zlib.compress(b"a" * (80 << 20))
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    return png_header(8, 8, extra=chunk)


SIXTEEN_BIT = Image.frombytes("I;16", (4, 4), np.arange(16, dtype=np.uint16).tobytes())
REFUSED = {
    "0 bytes": (lambda: b"", r"empty \(0 bytes\)"),
    "HTML named .jpg": (lambda: b"<!DOCTYPE html><html><body>404</body></html>", "it is an HTML page"),
    "SVG": (lambda: b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "it is SVG"),
    "XML error page": (lambda: b'<?xml version="1.0"?><Error>AccessDenied</Error>', "XML or JSON text"),
    "JSON error": (lambda: b'{"error": "gone"}', "XML or JSON text"),
    "random bytes": (lambda: bytes(range(1, 200)), "no known image format"),
    "truncated JPEG": (lambda: encoded(random_image("RGB", (64, 64)), "JPEG")[:900], "cannot be decoded: .*truncated"),
    "truncated PNG": (lambda: encoded(random_image("RGB", (64, 64)))[:900], "cannot be decoded"),
    "truncated WEBP": (
        lambda: encoded(random_image("RGB", (64, 64)), "WEBP")[:400],
        "header cannot be read|damaged|decoded",
    ),
    "JPEG of 4 bytes": (lambda: b"\xff\xd8\xff\xe0", "begins like JPEG|header cannot be read"),
    "animated GIF, not allowed": (lambda: animated("GIF"), "begins like GIF"),
    "animated PNG": (lambda: animated("PNG"), r"PNG image is animated \(2 frames\)"),
    "animated WEBP": (lambda: animated("WEBP"), r"WEBP image is animated \(2 frames\)"),
    "TIFF, not allowed": (lambda: encoded(random_image("RGB", (8, 8)), "TIFF"), "begins like TIFF"),
    "BMP, not allowed": (lambda: encoded(random_image("RGB", (8, 8)), "BMP"), "begins like BMP"),
    "16-bit grey": (lambda: encoded(SIXTEEN_BIT), "wider than 8 bits"),
    "over the pixel limit": (lambda: png_header(400, 251), r"400x251 = 100400 pixels exceeds max_pixels 100000"),
    "bomb of 10000x10000": (lambda: png_header(10_000, 10_000, 1, 0), "too large|exceeds max_pixels"),
    "bomb of 60000x60000": (lambda: png_header(60_000, 60_000, 1, 0), "too large"),
    "1x20000": (lambda: encoded(Image.new("RGB", (1, 20_000))), "1x20000 is too narrow: scaled to 16x320000"),
    "20000x1": (lambda: encoded(Image.new("RGB", (20_000, 1))), "too narrow"),
    "compressed text bomb": (zip_text_bomb, "header cannot be read|cannot be decoded"),
    "no pixels": (lambda: png_header(0, 8), "no pixels|header cannot be read|cannot be decoded|damaged"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_with_a_reason(case):
    make, reason = REFUSED[case]
    with pytest.raises(DataError, match=reason) as caught:
        images.load_pixels(make(), CONFIG)
    assert "\n" not in str(caught.value)


def test_float_and_32_bit_pictures_are_refused_where_their_format_is_allowed():
    config = ImageConfig(resolution=16, formats=("TIFF",))
    for mode in ("F", "I"):
        with pytest.raises(DataError, match="wider than 8 bits"):
            images.load_pixels(encoded(Image.new(mode, (4, 4)), "TIFF"), config)


def test_an_unknown_format_name_is_named():
    with pytest.raises(DataError, match="no image format 'JPGE'"):
        images.open_image(b"abc", ImageConfig(formats=("JPGE",)))


def test_pictures_over_the_limit_are_never_decoded(monkeypatch):
    decoded = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: decoded.append(image.size))
    for case in ("bomb of 10000x10000", "bomb of 60000x60000", "over the pixel limit", "1x20000"):
        with pytest.raises(DataError):
            images.load_pixels(REFUSED[case][0](), CONFIG)
    assert decoded == []


def test_damaged_bytes_never_raise_anything_but_data_error():
    rng = np.random.default_rng(0)
    originals = [encoded(random_image("RGB", (24, 24)), kind) for kind in ("PNG", "JPEG", "WEBP")]
    for round_number in range(300):
        data = bytearray(originals[round_number % 3])
        for position in rng.integers(0, len(data), 4):
            data[position] = rng.integers(0, 256)
        try:
            pixels = images.load_pixels(bytes(data), CONFIG)
        except DataError:
            continue
        assert pixels.shape == (16, 16, 3) and np.abs(pixels).max() <= 1
