"""Read and decode images. All validation of untrusted image files happens in this module."""

from __future__ import annotations

import errno
import hashlib
import io
import math
import os
import re
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from PIL import Image, PngImagePlugin, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from pipeline.errors import (
    BadImage,
    ImageOutOfMemory,
    ImageTooLarge,
    UnsupportedImage,
    one_line,
)
from pipeline.images.color import to_srgb
from pipeline.images.decode_cost import (
    BYTES_PER_PIXEL,
    decode_cost,
    reject_decompression_bomb,
    require_pixels,
    webp_size,
)
from pipeline.images.formats import readable, unsupported
from pipeline.images.memory_budget import MemoryBudget
from pipeline.images.mend import PNG_START, completions, without_metadata
from pipeline.settings import Settings

# Raise it when the pixels of some files change. It is no part of the fingerprint: most files have
# no color profile, and their vectors, an old index and trained heads stay good.
DECODING = 2  # 2: color profiles, inverted CMYK, 16 bits, WhiteIsZero
# Errors of a process without descriptors or memory, and of a disk or file server that is away.
NO_IMAGE_TO_BLAME = frozenset(
    {
        *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENXIO, errno.ENODEV),
        *(errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH),
        *(errno.ECONNRESET, errno.ECONNREFUSED),
    }
)
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

BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # TIFF
PLANAR, SEPARATE = 284, 2
SETTING_LIKE = re.compile(r"\b[A-Z][A-Z0-9]*_[A-Z0-9_]+\b")

# Of 1,500 photos of clothing, white on white among them, the plainest has a range of 88 between its
# darkest and its brightest part; a blank JPEG or a scanned sheet has 0 to 6.
BLANK_SIDE, BLANK_RANGE = 64, 10
BLANK = "the image is blank, all of one color: it will be similar to any other blank image only"

# Formats whose decoders take a part that was never written for gray or green. In their coded pixels
# so many zeros do not follow each other.
COMPRESSED, MANY_ZEROS = ("WEBP", "AVIF", "HEIF"), 4096
ENDS_IN_ZEROS = (
    "the file ends in zeros, as after an interrupted copy: a part of the image may be missing"
)

# Text and profiles of a PNG: Photoshop writes profiles and histories of 1 MiB and more. What is
# larger is cut away, see `without_metadata`.
PngImagePlugin.MAX_TEXT_CHUNK = 16 * 1024**2  # bytes of one, unpacked
PngImagePlugin.MAX_TEXT_MEMORY = 32 * 1024**2  # bytes of all

# Pillow warns on stderr of metadata that it cannot read, with a line of its own code.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

# Our own limit is checked from the header, before any pixel is decoded, and is lower than Pillow's;
# Pillow's would be a second, unconfigurable one.
Image.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True)
class Limits:
    """What an image may cost; `budget` is shared by all that are decoded at the same time."""

    max_pixels: int
    max_bytes: int
    budget: MemoryBudget = field(default_factory=MemoryBudget, compare=False)
    min_side: int = MIN_SIDE

    @classmethod
    def of(cls, settings: Settings, budget: MemoryBudget | None = None) -> Limits:
        """Return the limits of the settings, with a budget of their own by default."""
        return cls(settings.max_image_pixels, settings.max_image_bytes, budget or MemoryBudget())


def read_image(path: Path, limits: Limits) -> bytes:
    """Return the file's bytes.

    Raises:
        BadImage: missing, unreadable, empty or larger than `limits.max_bytes`.
        OSError: the process or a file server is in trouble, and no image is to blame.
    """
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            # Not by its size alone: a pipe has none, and a file may grow meanwhile.
            data = stream.read(limits.max_bytes + 1) if size <= limits.max_bytes else b""
        if size > limits.max_bytes or len(data) > limits.max_bytes:
            what = f"{size:,} bytes, more" if size > limits.max_bytes else "more bytes"
            raise ImageTooLarge(
                f"the file has {what} than MAX_IMAGE_BYTES ({limits.max_bytes:,})", "read"
            )
    except OSError as error:
        if error.errno in NO_IMAGE_TO_BLAME or (error.errno == errno.EIO and _is_away(path)):
            raise
        raise BadImage(f"the file cannot be read: {error.strerror}", "read") from error
    if not data:
        raise BadImage("the file is empty (0 bytes)", "read")
    return data


def _is_away(path: Path) -> bool:
    """Tell whether a whole file system cannot be read, in place of one file on a bad sector.

    A soft mount of NFS says EIO for each file while its server is away. `statvfs` asks the server.
    """
    try:
        os.statvfs(path.parent)
    except OSError:
        return True
    return False


def sha256(data: bytes) -> str:
    """Return the content hash that names an image in every cache."""
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Decoded:
    """An 8-bit sRGB image, and what is wrong with its file although it could be read.

    `size` is the width and height of the file's own pixels, before it was turned upright.
    """

    image: Image.Image
    warnings: tuple[str, ...] = ()
    size: tuple[int, int] = (0, 0)


class _CorruptError(Exception):
    """A decoder gave up; `cut_off` if it had come to the end of the file."""

    def __init__(self, reason: str, *, cut_off: bool = False) -> None:
        super().__init__(reason)
        self.cut_off = cut_off


def decode(
    data: bytes, limits: Limits, background: tuple[int, int, int], side: int = WORK_SIDE
) -> Image.Image:
    """Decode to 8-bit sRGB, see `decode_with_warnings`."""
    return decode_with_warnings(data, limits, background, side).image


def decode_with_warnings(
    data: bytes, limits: Limits, background: tuple[int, int, int], side: int = WORK_SIDE
) -> Decoded:
    """Decode to 8-bit sRGB, turned upright, at most `WORK_SIDE` pixels on the longer side.

    A JPEG whose longer side keeps at least `side` pixels is decoded at 1/2, 1/4 or 1/8, which skips
    most of the work. First frame of an animation; alpha is laid on `background`; 16-bit, CMYK,
    palette and gray images become RGB; an embedded color profile is applied. A file whose pixels
    are whole, although its metadata or its end is not, is decoded with a warning.

    Raises:
        BadImage: not an image of a known format, too small, too many pixels, truncated, broken, or
            larger than the memory budget.
        ImageOutOfMemory: an allocation failed; without other images beside it, it may succeed.
    """
    declared = webp_size(data)
    if declared is None:
        return _decode_or_mend(
            data, lambda data: _decode(data, limits, background, side, limits.budget)
        )
    require_pixels(declared, limits.max_pixels)
    with limits.budget.reserve(BYTES_PER_PIXEL * declared[0] * declared[1]):
        return _decode_or_mend(
            data, lambda data: _decode(data, limits, background, side, MemoryBudget())
        )


def _decode_or_mend(data: bytes, decode: Callable[[bytes], Decoded]) -> Decoded:
    try:
        return decode(data)
    except _CorruptError as error:
        reason, cut_off = str(error), error.cut_off  # not the error: it keeps the image's memory
    try:
        pixels = without_metadata(data)
        if pixels is not None:
            mended = decode(pixels)
            what = "its metadata is too large or broken and was ignored, with any color profile"
            return replace(mended, warnings=(*mended.warnings, what))
        complete = completions(data) if cut_off else None
        if complete is not None:
            mended, other = decode(complete[0]), decode(complete[1])
            if mended.image.tobytes() == other.image.tobytes():
                what = "the end marker of the JPEG is missing; its pixels are complete"
                return replace(mended, warnings=(*mended.warnings, what))
    except (_CorruptError, LookupError, ValueError, ArithmeticError, struct.error):
        pass  # it cannot be mended
    raise BadImage(reason)


def _decode(
    data: bytes, limits: Limits, background: tuple[int, int, int], side: int, budget: MemoryBudget
) -> Decoded:
    try:
        image = Image.open(io.BytesIO(data), formats=readable())
    except UnidentifiedImageError as error:
        if data.startswith(PNG_START):  # a chunk behind the header may be the reason
            raise _CorruptError("the image is corrupt: its chunks cannot be read") from error
        raise UnsupportedImage(unsupported(data)) from error
    except Exception as error:  # Pillow's plugins let through whatever a broken field does to them
        raise _broken(error, data) from error
    with image:
        require_pixels(image.size, limits.max_pixels)
        width, height = image.size
        if min(width, height) < limits.min_side:
            raise BadImage(
                f"the image is {width}x{height} pixels, but each side must have at least "
                f"{limits.min_side}"
            )
        _require_readable_planes(image)
        try:
            reject_decompression_bomb(image, data, limits.max_pixels)
            # In the image's own shape: in a square one, a 4:3 photo would be decoded twice as
            # large, because of its shorter side.
            share = side / max(width, height)
            image.draft(None, (max(1, int(width * share)), max(1, int(height * share))))
            with budget.reserve(decode_cost(image, width * height)):
                image.load()
                profile = image.info.get("icc_profile")
                gray = _gray_range(image)
                # Before the modes change: converting drops the EXIF block that holds the rotation.
                # In one go: a name for the image in between would keep it while it is scaled.
                rgb, warning = _to_rgb(
                    _turn_upright(_whole_blocks(image, width, height)), background, profile, gray
                )
                rgb.thumbnail((WORK_SIDE, WORK_SIDE), Image.Resampling.BICUBIC, reducing_gap=2.0)
        except BadImage:
            raise
        except Exception as error:  # as above
            raise _broken(error, data) from error
    warnings = [warning] if warning else []
    if image.format in COMPRESSED and not data[-MANY_ZEROS:].strip(b"\0"):
        warnings.append(ENDS_IN_ZEROS)
    if _is_blank(rgb):
        warnings.append(BLANK)
    return Decoded(rgb, tuple(warnings), (width, height))


def _is_blank(rgb: Image.Image) -> bool:
    small = rgb.resize((BLANK_SIDE, BLANK_SIDE), Image.Resampling.BOX, reducing_gap=1.0)
    channels = cast(tuple[tuple[int, int], ...], small.getextrema())
    return max(highest - lowest for lowest, highest in channels) <= BLANK_RANGE


def _require_readable_planes(image: Image.Image) -> None:
    """Refuse a TIFF whose colors lie apart with more than 8 bits: Pillow reads them as 8 bits."""
    if not isinstance(image, TiffImageFile) or image.tag_v2.get(PLANAR) != SEPARATE:
        return
    bits = image.tag_v2.get(BITS_PER_SAMPLE, (1,))
    if len(bits) > 1 and max(bits) > 8:
        raise BadImage(
            f"the TIFF image has {max(bits)} bits in separate planes, which is not read: save it "
            "with interleaved channels, or as PNG"
        )


def _whole_blocks(image: Image.Image, width: int, height: int) -> Image.Image:
    """Cut off the last row and column of a reduced JPEG where less than a block made them.

    They look like whole ones, and would shift everything by up to half a pixel.
    """
    if image.format != "JPEG":
        return image
    for scale in (2, 4, 8):  # of libjpeg's, those that Pillow asks for
        if (math.ceil(width / scale), math.ceil(height / scale)) == image.size:
            return image.crop((0, 0, max(1, width // scale), max(1, height // scale)))
    return image


def _broken(error: Exception, data: bytes) -> Exception:
    if isinstance(error, MemoryError):
        return ImageOutOfMemory()
    # A WebP says how long it is.
    short = data[:4] == b"RIFF" and 8 + int.from_bytes(data[4:8], "little") > len(data)
    if short or "truncated" in str(error).lower():
        return _CorruptError("the image is cut off (truncated file)", cut_off=True)
    reason = one_line(error)
    if SETTING_LIKE.search(reason):  # a constant of a library, which nobody can set
        reason = "its content is more than the decoder accepts"
    return _CorruptError(f"the image is corrupt: {reason}")


def _turn_upright(image: Image.Image) -> Image.Image:
    # Not ImageOps.exif_transpose: it writes the EXIF block again, and fails over a strange field in
    # it that every viewer passes by.
    try:
        turn = UPRIGHT.get(image.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:  # a block that cannot be read turns nothing
        return image
    return image if turn is None else image.transpose(turn)


def _gray_range(image: Image.Image) -> tuple[float, float] | None:
    """Return the values of black and white in a TIFF with gray of 9 to 16 bits.

    Pillow neither scales 12 bits nor turns WhiteIsZero where a pixel has more than 8 bits.
    """
    if not isinstance(image, TiffImageFile) or not image.mode.startswith("I;16"):
        return None
    (bits, *_) = image.tag_v2.get(BITS_PER_SAMPLE, (16,))
    white = float(2 ** min(16, int(bits)) - 1)
    return (white, 0.0) if image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO else (0.0, white)


def _to_rgb(
    image: Image.Image,
    background: tuple[int, int, int],
    profile: bytes | None,
    gray: tuple[float, float] | None,
) -> tuple[Image.Image, str | None]:
    """Return the image in sRGB with its alpha laid on the background, and a warning or None."""
    if image.mode.startswith(("I", "F")):
        image = _to_8_bits(image, gray)
    elif image.mode == "La":  # Pillow converts premultiplied gray to this alone
        image = image.convert("LA")
    if _is_transparent(image):
        image = image.convert("RGBA")
    elif image.mode in ("RGBA", "RGBX", "P", "PA"):
        image = image.convert("RGB")
    elif image.mode in ("1", "LA"):
        image = image.convert("L")
    warning = None
    if profile:
        image, warning = to_srgb(image, profile, WORK_SIDE)
    if image.mode != "RGBA":
        return image.convert("RGB"), warning
    canvas = Image.new("RGBA", image.size, (*background, 255))
    return Image.alpha_composite(canvas, image).convert("RGB"), warning


def _is_transparent(image: Image.Image) -> bool:
    if not image.has_transparency_data:
        return False
    # A BMP whose alpha is zero everywhere has none: browsers and Windows show it as opaque.
    return image.format not in ("BMP", "DIB") or image.getchannel("A").getextrema() != (0, 0)


def _to_8_bits(image: Image.Image, gray: tuple[float, float] | None) -> Image.Image:
    """Scale 16- or 32-bit gray to 0..255; the type does not say how much of its range is used.

    Args:
        gray: the values of black and white, where they are known.

    A large one is thinned out to at most twice `WORK_SIDE`: in float64 it would cost gigabytes.
    """
    import numpy as np  # not at the top: the command line checks images, too, and starts faster

    pixels = np.asarray(image)
    step = math.ceil(max(pixels.shape) / (2 * WORK_SIDE))
    values = np.nan_to_num(pixels[::step, ::step].astype(np.float64))
    if gray is not None and (gray[0] > gray[1] or gray[1] < 65_535):
        values = (values - gray[0]) * (255.0 / (gray[1] - gray[0]))
        return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
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
