"""Read and decode images. All validation of untrusted image files happens in this module."""

from __future__ import annotations

import hashlib
import io
import math
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from pipeline.errors import BadImage, ImageOutOfMemory, ImageTooLarge, UnsupportedImage
from pipeline.images.decode_cost import (
    BYTES_PER_PIXEL,
    decode_cost,
    reject_decompression_bomb,
    webp_size,
)
from pipeline.images.memory_budget import MemoryBudget

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MIN_SIDE = 8  # below this there is no product to see, only a tracking pixel
WORK_SIDE = 1024  # decoded images are reduced to this: four times what a 224 px model sees

EXIF_ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Our own limit is checked from the header, before any pixel is decoded, and is lower than Pillow's;
# Pillow's would be a second, unconfigurable one.
Image.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True)
class Limits:
    """What an image may cost; `room` is shared by all that are decoded at the same time."""

    max_pixels: int
    max_bytes: int
    budget: MemoryBudget = field(default_factory=MemoryBudget, compare=False)


def read_image(path: Path, limits: Limits) -> bytes:
    """Return the file's bytes.

    Raises:
        BadImage: missing, unreadable, empty or larger than `limits.max_bytes`.
    """
    try:
        size = path.stat().st_size
        if size > limits.max_bytes:
            raise ImageTooLarge(
                f"the file has {size:,} bytes, more than MAX_IMAGE_BYTES ({limits.max_bytes:,})",
                "read",
            )
        data = path.read_bytes()
    except OSError as error:
        raise BadImage(f"the file cannot be read: {error.strerror}", "read") from error
    if not data:
        raise BadImage("the file is empty (0 bytes)", "read")
    return data


def sha256(data: bytes) -> str:
    """Return the content hash that names an image in every cache."""
    return hashlib.sha256(data).hexdigest()


def decode(
    data: bytes, limits: Limits, background: tuple[int, int, int], side: int = WORK_SIDE
) -> Image.Image:
    """Decode to 8-bit RGB, turned upright, at most `WORK_SIDE` pixels on the longer side.

    A JPEG whose longer side keeps at least `side` pixels is decoded at 1/2, 1/4 or 1/8, which skips
    most of the work. First frame of an animation; alpha is laid on `background`; 16-bit, CMYK,
    palette and gray images become RGB.

    Raises:
        BadImage: not an image of a known format, too small, too many pixels, truncated, broken, or
            larger than the memory budget.
        ImageOutOfMemory: an allocation failed; without other images beside it, it may succeed.
    """
    declared = webp_size(data)
    if declared is not None:
        _require_pixels(declared, limits)
        with limits.budget.reserve(BYTES_PER_PIXEL * declared[0] * declared[1]):
            return _decode(data, limits, background, side, MemoryBudget())
    return _decode(data, limits, background, side, limits.budget)


def _decode(
    data: bytes, limits: Limits, background: tuple[int, int, int], side: int, budget: MemoryBudget
) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise UnsupportedImage(
            f"the file is not an image of a supported format ({', '.join(FORMATS)})"
        ) from error
    except Exception as error:  # Pillow's plugins let through whatever a broken field does to them
        raise _broken(error) from error
    with image:
        _require_pixels(image.size, limits)
        width, height = image.size
        if min(width, height) < MIN_SIDE:
            raise BadImage(
                f"the image is {width}x{height} pixels, but each side must have at least {MIN_SIDE}"
            )
        try:
            reject_decompression_bomb(image, data, limits.max_pixels)
            # In the image's own shape: in a square one, a 4:3 photo would be decoded twice as
            # large, because of its shorter side.
            share = side / max(width, height)
            image.draft(None, (max(1, int(width * share)), max(1, int(height * share))))
            with budget.reserve(decode_cost(image, width * height)):
                image.load()
                # Before the modes change: converting drops the EXIF block that holds the rotation.
                # In one go: a name for the image in between would keep it while it is scaled.
                rgb = _to_rgb(_turn_upright(_whole_blocks(image, width, height)), background)
                rgb.thumbnail((WORK_SIDE, WORK_SIDE), Image.Resampling.BICUBIC, reducing_gap=2.0)
        except BadImage:
            raise
        except Exception as error:  # as above
            raise _broken(error) from error
    return rgb


def _require_pixels(size: tuple[int, int], limits: Limits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise ImageTooLarge(
            f"the image has {width}x{height} = {width * height:,} pixels, "
            f"more than MAX_IMAGE_PIXELS ({limits.max_pixels:,})"
        )


def _whole_blocks(image: Image.Image, width: int, height: int) -> Image.Image:
    """Cut off the last row and column of a reduced JPEG where less than a block made them.

    They look like whole ones, and would shift everything by up to half a pixel.
    """
    if image.format != "JPEG":
        return image
    scale = round(width / image.width)
    whole = (width // scale, height // scale)
    if whole == image.size:
        return image
    return image.crop((0, 0, *whole))


def _broken(error: Exception) -> BadImage:
    if isinstance(error, MemoryError):
        return ImageOutOfMemory()
    if "truncated" in str(error).lower():
        return BadImage("the image is cut off (truncated file)")
    return BadImage(f"the image is corrupt: {error}")


def _turn_upright(image: Image.Image) -> Image.Image:
    # Not ImageOps.exif_transpose: it writes the EXIF block again, and fails over a strange field in
    # it that every viewer passes by.
    try:
        turn = UPRIGHT.get(image.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:  # a block that cannot be read turns nothing
        return image
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return _to_8_bits(image).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGBA", rgba.size, (*background, 255))
        return Image.alpha_composite(canvas, rgba).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16- or 32-bit gray to 0..255; the type does not say how much of its range is used.

    A large one is thinned out to at most twice `WORK_SIDE`: in float64 it would cost gigabytes.
    """
    import numpy as np  # not at the top: the command line checks images, too, and starts faster

    pixels = np.asarray(image)
    step = math.ceil(max(pixels.shape) / (2 * WORK_SIDE))
    values = np.nan_to_num(pixels[::step, ::step].astype(np.float64))
    top = float(values.max(initial=0))
    if top <= 1.0 and pixels.dtype.kind == "f":
        scale = 255.0
    elif top <= 255:
        scale = 1.0
    elif top <= 65_535:
        scale = 255.0 / 65_535
    else:
        scale = 255.0 / top
    return Image.fromarray(np.clip(values * scale, 0, 255).astype(np.uint8))


def crop(image: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
    """Return a part of an upright image: x, y, width and height as fractions of it.

    Raises:
        BadImage: fewer pixels are left than an image must have.
    """
    x, y, width, height = box
    left, top = round(x * image.width), round(y * image.height)
    right, bottom = round((x + width) * image.width), round((y + height) * image.height)
    part = image.crop((left, top, min(right, image.width), min(bottom, image.height)))
    if min(part.size) < MIN_SIDE:
        raise BadImage(
            f"the box holds {part.width}x{part.height} pixels of the image, but each side must "
            f"have at least {MIN_SIDE}"
        )
    return part


def encode_jpeg(image: Image.Image, quality: int = 90) -> bytes:
    """Return the image as JPEG bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
