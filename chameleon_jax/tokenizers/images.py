"""From the bytes of a picture file to the pixels that the codec reads, and back.

A file is not trusted before its header has been read. Its format is taken from its content, its size is checked
against our own limit before anything is decoded, and all that cannot become an 8-bit picture is a `DataError` with a reason.
What passes is prepared exactly as a release prepares it: Chameleon (facebookresearch/chameleon, `inference/image_tokenizer.py`),
its port in Transformers (`image_processing_pil_chameleon.py`), or Lumina-mGPT (Alpha-VLLM/Lumina-mGPT, `data/item_processor.py`).
"""

from __future__ import annotations

import dataclasses
import functools
import io
import threading
import warnings

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from chameleon_jax.configs import ImageConfig
from chameleon_jax.errors import DataError

# Wider than 8 bits: Pillow would clip the values at 255, so that most such pictures turn white.
_WIDE_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")

_OPENING = threading.Lock()  # warning filters belong to the process; only headers are read under it

_BLEND_PIXELS = 1 << 20  # pixels blended at one time; float64 needs 32 bytes for each


def open_image(data: bytes, config: ImageConfig) -> Image.Image:
    """Decode the bytes of a picture file to an RGB picture of its own size, alpha laid on white.

    EXIF rotation is not applied: Chameleon was trained without it.

    Raises DataError, with the reason, for anything but a single decodable picture in one of `config.formats` within
    `config.max_pixels`, both as it is and scaled to `config.resolution`.
    """
    if not data:
        raise DataError("image is empty (0 bytes)")
    try:
        with _OPENING, warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=config.formats)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(f"image is too large: {_one_line(error)}") from error
    except Image.UnidentifiedImageError as error:
        raise DataError(_describe_foreign(data, config)) from error
    except KeyError as error:
        raise DataError(f"ImageConfig.formats: Pillow knows no image format {error}") from error
    except Exception as error:  # decoders raise many kinds of exception on damaged headers
        raise DataError(f"image header cannot be read: {_one_line(error)}") from error
    return flatten(image, config)


def flatten(image: Image.Image, config: ImageConfig) -> Image.Image:
    """An opened picture in RGB, alpha laid on white. Raises DataError as `open_image` does."""
    _check_header(image, config)
    try:
        image.load()
        return _composite(image) if config.preprocessing == "hf" else _to_rgb(image)
    except Exception as error:  # decoders raise many kinds of exception on damaged bodies
        raise DataError(f"{image.format} image cannot be decoded: {_one_line(error)}") from error


def prepare(image: Image.Image, config: ImageConfig) -> Float[np.ndarray, "H W 3"]:
    """Scale and crop an RGB picture as `config.preprocessing` says, and map 0..255 to floats around 0.

    `meta` and `hf` give a square of `config.resolution`; `lumina` one of a few sizes of about as many pixels, whose sides are
    multiples of `config.grid_pixels`. Values are exactly [-1, 1], with `hf` [-1, 0.989].
    """
    plan = _plan(*image.size, config)
    for half in plan.halvings:
        image = image.resize(half, Image.Resampling.BOX)
    image = image.resize(plan.scaled, plan.resampling)  # always, even to the size that it has
    width, height = plan.crop
    left, top = (image.width - width) // 2, (image.height - height) // 2
    values = np.asarray(image.crop((left, top, left + width, top + height)))
    if config.preprocessing == "hf":
        return (values * 0.0078).astype(np.float32) - np.float32(1)
    return (values / 255.0 * 2.0 - 1.0).astype(np.float32)


def load_pixels(data: bytes, config: ImageConfig) -> Float[np.ndarray, "H W 3"]:
    """`open_image`, then `prepare`. Raises DataError with the reason."""
    return prepare(open_image(data, config), config)


def pixels_of(data: bytes | Image.Image, config: ImageConfig) -> Float[np.ndarray, "H W 3"]:
    """`load_pixels` of a file's bytes, or the same of an opened picture. Raises DataError with the reason."""
    if isinstance(data, Image.Image):
        return prepare(flatten(data, config), config)
    if not isinstance(data, bytes):
        raise DataError(f"a picture is the bytes of a file or a PIL picture; {type(data).__name__} was given")
    return load_pixels(data, config)


def to_8_bits(pixels: Float[np.ndarray, "*B H W 3"]) -> UInt8[np.ndarray, "*B H W 3"]:
    """Prepared pixels in [-1, 1] as 8 bits; rounds, where `to_uint8` truncates what a codec made.

    With `preprocessing` "meta" these are the bits that they were.
    """
    return np.round((pixels + 1) * 127.5).astype(np.uint8)


def to_png(image: Image.Image, *, quick: bool = False) -> bytes:
    """A PNG file of a picture; `quick` where speed counts more than size."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1 if quick else 6)
    return file.getvalue()


def to_uint8(pixels: Float[np.ndarray, "*B H W 3"]) -> UInt8[np.ndarray, "*B H W 3"]:
    """Pixels in [-1, 1], clamped, to 0..255. Truncates and does not round, as Chameleon does."""
    unit = (np.clip(np.asarray(pixels, np.float32), -1.0, 1.0) + np.float32(1.0)) / np.float32(2.0)
    return (unit * np.float32(255.0)).astype(np.uint8)


def to_image(pixels: Float[np.ndarray, "H W 3"]) -> Image.Image:
    """One decoded picture as an 8-bit RGB picture."""
    return Image.fromarray(to_uint8(pixels))


@dataclasses.dataclass(frozen=True)
class _ResizePlan:
    """Sizes, each (width, height), that a picture goes through: halvings, one resize, and what is cut from the centre."""

    scaled: tuple[int, int]
    crop: tuple[int, int]
    resampling: Image.Resampling = Image.Resampling.LANCZOS
    halvings: tuple[tuple[int, int], ...] = ()


def _plan(width: int, height: int, config: ImageConfig) -> _ResizePlan:
    side = config.resolution
    if config.preprocessing == "lumina":
        return _plan_by_grid(width, height, config)
    if config.preprocessing == "hf":  # the short side is the resolution, the long one is cut to an integer
        scaled = side * width // min(width, height), side * height // min(width, height)
    else:  # in this order of operations, and rounded half to even
        scale = side / min(width, height)
        scaled = round(scale * width), round(scale * height)
    return _ResizePlan(scaled=scaled, crop=(side, side))


def _plan_by_grid(width: int, height: int, config: ImageConfig) -> _ResizePlan:
    """Of the sizes, that of the nearest shape; halved while it is still covered, scaled until it is just covered."""

    def likeness(crop: tuple[int, int]) -> float:
        across, down = crop[0] / width, crop[1] / height
        return min(across, down) / max(across, down)

    sizes = grid_sizes(config.resolution // config.grid_pixels, config.grid_pixels)
    crop = max(sizes, key=lambda size: (likeness(size), size))
    halvings = []
    while width >= 2 * crop[0] and height >= 2 * crop[1]:
        width, height = width // 2, height // 2
        halvings.append((width, height))
    scale = max(crop[0] / width, crop[1] / height)
    scaled = round(width * scale), round(height * scale)
    return _ResizePlan(scaled=scaled, crop=crop, resampling=Image.Resampling.BICUBIC, halvings=tuple(halvings))


@functools.cache
def grid_sizes(side: int, grid_pixels: int) -> tuple[tuple[int, int], ...]:
    """(width, height) in pixels of the pictures that a grid vocabulary sees: no more area than `side` x `side` units of the grid.

    Of all sizes in whole units those that cannot grow on both sides, and of these the ones no longer than 4 to 1.
    """
    most = side**2
    units = [
        (width, height)
        for width in range(1, most + 1)
        for height in range(max(1, most // (width + 1)), most // width + 1)
        if max(width, height) <= 4 * min(width, height)
    ]
    return tuple((width * grid_pixels, height * grid_pixels) for width, height in units)


def _check_header(image: Image.Image, config: ImageConfig) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise DataError(f"image has no pixels ({width}x{height})")
    if width * height > config.max_pixels:
        raise DataError(f"image of {width}x{height} = {width * height} pixels exceeds max_pixels {config.max_pixels}")
    scaled_width, scaled_height = _plan(width, height, config).scaled
    # A picture as small as the resolution asks for no more memory than the run needs anyway.
    if scaled_width * scaled_height > max(config.max_pixels, config.resolution**2):
        raise DataError(
            f"image of {width}x{height} is too narrow: scaled to {scaled_width}x{scaled_height} it exceeds max_pixels "
            f"{config.max_pixels}"
        )
    # A JPEG with further pictures behind the first (depth map, stereo, preview) opens as MPO: the first is the picture.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise DataError(f"{image.format} image is animated ({image.n_frames} frames)")
    if image.mode in _WIDE_MODES:
        raise DataError(f"{image.format} image has mode {image.mode}, wider than 8 bits: convert it to 8 bits first")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    rgba = image.convert("RGBA")
    if rgba.getchannel("A").getextrema()[0] == 255:
        return image.convert("RGB")
    values = np.asarray(rgba)
    blended = np.empty((*values.shape[:2], 3), np.uint8)
    rows = max(1, _BLEND_PIXELS // values.shape[1])
    for top in range(0, values.shape[0], rows):  # in strips: a whole picture in float64 could take gigabytes
        strip = values[top : top + rows]
        alpha = strip[..., 3:] / 255.0
        blended[top : top + rows] = ((1 - alpha) * 255 + alpha * strip[..., :3]).astype(np.uint8)
    return Image.fromarray(blended)


def _composite(image: Image.Image) -> Image.Image:
    """As `_to_rgb`, with Pillow's integer blending and by what the header says of transparency."""
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _describe_foreign(data: bytes, config: ImageConfig) -> str:
    """Say what the bytes look like, so that the reader of a rejects file knows what to mend."""
    head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    allowed = ", ".join(config.formats)
    if b"<svg" in head:
        return f"not a {allowed} image: it is SVG, which must be rendered to pixels first"
    if head.startswith((b"<!doctype", b"<html", b"<head", b"<body")):
        return f"not a {allowed} image: it is an HTML page"
    if head.startswith((b"<?xml", b"{", b"[")):
        return f"not a {allowed} image: it is XML or JSON text"
    for magic, name in (
        (b"\xff\xd8\xff", "JPEG"), (b"\x89png\r\n\x1a\n", "PNG"), (b"gif8", "GIF"), (b"bm", "BMP"),
        (b"ii*\x00", "TIFF"), (b"mm\x00*", "TIFF"), (b"%pdf", "PDF"), (b"%!ps", "PostScript"),
    ):  # fmt: skip
        if head.startswith(magic):
            state = "damaged" if name in config.formats else "not an allowed format"
            return f"not a readable {allowed} image: it begins like {name} ({state})"
    if head.startswith(b"riff") and head[8:12] == b"webp":
        return f"not a readable {allowed} image: it begins like WEBP (damaged or not an allowed format)"
    return f"not a {allowed} image: its content is of no known image format"


def _one_line(error: BaseException) -> str:
    return " ".join(f"{error or type(error).__name__}".split())[:200]
