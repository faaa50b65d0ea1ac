"""Colors as the file means them: its embedded profile, applied."""

from __future__ import annotations

import hashlib
import io
import threading
from typing import TYPE_CHECKING

from cachetools import LRUCache, cached
from PIL import Image

if TYPE_CHECKING:
    from PIL.ImageCms import ImageCmsTransform

# The color space in a profile's header (ICC.1, 7.2.6) -> Pillow's mode.
MODES = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}
SAME = 2  # of 255: a profile that changes no color by more is one of sRGB
IGNORED = "its color profile {} and was ignored: its colors may be wrong"


def to_srgb(image: Image.Image, profile: bytes, side: int) -> tuple[Image.Image, str | None]:
    """Return an image of mode L, RGB, RGBA or CMYK in sRGB, and a warning where that cannot be.

    An image whose profile is that of sRGB is returned as it is. Another one is first reduced to at
    most `side` pixels, which is cheaper than to convert all.
    """
    mode = MODES.get(profile[16:20])
    if mode is None:
        return image, IGNORED.format("is not one for gray, RGB or CMYK")
    if mode != {"RGBA": "RGB", "L": "RGB"}.get(image.mode, image.mode) and mode != image.mode:
        return image, IGNORED.format(f"is one for {mode}, but the image is {image.mode}")
    from PIL import ImageCms  # takes milliseconds, and most images need none

    try:
        transform = _transform(profile, mode)
        if transform is None:
            return image, None
        image.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
        colors = transform.apply(image if image.mode == mode else image.convert(mode))
    except (OSError, ValueError, ImageCms.PyCMSError):
        return image, IGNORED.format("cannot be used")
    if image.mode == "RGBA":
        colors.putalpha(image.getchannel("A"))
    return colors, None


def _key(profile: bytes, mode: str) -> tuple[bytes, str]:
    return hashlib.sha256(profile).digest(), mode


# By digest: a profile may have megabytes, and most files of a shop have the same few.
@cached(LRUCache(32), key=_key, lock=threading.Lock())
def _transform(profile: bytes, mode: str) -> ImageCmsTransform | None:
    """Return what turns colors into sRGB; None where that would change nothing."""
    from PIL import ImageCms

    transform = ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
        mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    if mode == "CMYK":
        return transform
    probe = _probe().convert(mode)
    out = transform.apply(probe)
    before, after = probe.convert("RGB").tobytes(), out.tobytes()
    if max(abs(a - b) for a, b in zip(before, after, strict=True)) <= SAME:
        return None
    return transform


def _probe() -> Image.Image:
    """Return 9 x 9 x 9 colors, all of gray's shades among them."""
    steps = [min(255, 32 * n) for n in range(9)]
    colors = [(r, g, b) for r in steps for g in steps for b in steps]
    colors += [(shade, shade, shade) for shade in range(256)]
    probe = Image.new("RGB", (len(colors), 1))
    probe.putdata(colors)
    return probe
