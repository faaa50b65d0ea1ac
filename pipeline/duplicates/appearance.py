"""How an image looks, small enough to keep for many: perceptual hashes, colors, a thumbnail."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy import ndimage

from pipeline.duplicates.pairs import Kind
from pipeline.images.decode import Decoded

HASH_SIZE = 16  # 256 bits: with 64, shirts on the same hanger are alike
SIDE = 256  # pixels of the longer side at which sharpness is measured
THUMB_SIDE = 64  # pixels of the longer side; what is looked for crops in
COLOR_GRID = 8

# Measured on 300 copies of photos of clothing, and on 300 pairs of the most similar photos that are
# no copies: of re-encoded, resized and mirrored copies at most 8 bits differ, of the others 40 and
# more. A crop correlates by 0.84 and more; hash and colors tell it from another shirt.
MAX_BITS = 24  # of 256
MAX_COLOR = 16.0  # of 255: mean difference of the color grids
SHARES = 0.4 * 1.07 ** np.arange(14)  # of the larger image's longer side that a crop may have
MIN_CORRELATION = 0.83
MAX_CROP_BITS = 8  # of 64
MAX_CROP_COLOR = 6.5
MIN_TEMPLATE = 12  # pixels


@dataclass(frozen=True)
class Appearance:
    """One image.

    Attributes:
        width, height: pixels of the file.
        sharpness: variance of the Laplacian of the image at 256 pixels.
        thumb: (h, w, 3) uint8, at most 64 pixels on the longer side.
        bits, mirrored_bits: (256,) bool, the perceptual hash of the image and of its mirror image.
    """

    width: int
    height: int
    sharpness: float
    thumb: NDArray[np.uint8]
    bits: NDArray[np.bool_]
    mirrored_bits: NDArray[np.bool_]

    @cached_property
    def colors(self) -> NDArray[np.float32]:
        return color_grid(Image.fromarray(self.thumb))


def appearance(decoded: Decoded) -> Appearance:
    """Describe a decoded image."""
    image = decoded.image
    small = image.copy()
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    gray = np.asarray(small.convert("L"), np.float32)
    thumb = small.copy()
    thumb.thumbnail((THUMB_SIDE, THUMB_SIDE), Image.Resampling.BOX)
    width, height = decoded.size or image.size
    return Appearance(
        width,
        height,
        # Pech-Pacheco et al. 2000: the variance of the Laplacian as a measure of focus.
        round(float(ndimage.laplace(gray).var()), 1),
        np.asarray(thumb),
        perceptual_hash(small, HASH_SIZE),
        perceptual_hash(ImageOps.mirror(small), HASH_SIZE),
    )


def perceptual_hash(image: Image.Image, size: int) -> NDArray[np.bool_]:
    bits: NDArray[np.bool_] = imagehash.phash(image, hash_size=size).hash.ravel()
    return bits


def color_grid(image: Image.Image) -> NDArray[np.float32]:
    """Return (8, 8, 3) mean colors: a hash knows no color, and a shirt comes in several."""
    grid = image.resize((COLOR_GRID, COLOR_GRID), Image.Resampling.BOX)
    return np.asarray(grid, np.float32)


def compare(one: Appearance, other: Appearance) -> Kind | None:
    """Tell how two images are the same; None where nothing but their vectors says so."""
    if _near(one.bits, other.bits, MAX_BITS) and _same_colors(one.colors, other.colors):
        return Kind.REENCODED
    flipped = other.colors[:, ::-1]
    if _near(one.bits, other.mirrored_bits, MAX_BITS) and _same_colors(one.colors, flipped):
        return Kind.MIRRORED
    if is_crop(one.thumb, other.thumb) or is_crop(other.thumb, one.thumb):
        return Kind.CROPPED
    return None


def is_crop(part: NDArray[np.uint8], whole: NDArray[np.uint8]) -> bool:
    """Tell whether one thumbnail is a part of the other.

    The part is laid on the whole at several sizes. Where it correlates best, hash and colors of
    what it covers must be its own.
    """
    # At first use: its import takes half a second, and only crops need it.
    from skimage.feature import match_template

    gray_part, gray_whole = (Image.fromarray(each).convert("L") for each in (part, whole))
    target = np.asarray(gray_whole, np.float32)
    longer = max(target.shape)
    best = (0.0, 0, 0, 0, 0)
    for share in SHARES:
        scale = share * longer / max(gray_part.size)
        width, height = round(gray_part.width * scale), round(gray_part.height * scale)
        if min(width, height) < MIN_TEMPLATE or width > whole.shape[1] or height > whole.shape[0]:
            continue
        template = np.asarray(gray_part.resize((width, height), Image.Resampling.BILINEAR))
        scores = match_template(target, template.astype(np.float32))  # type: ignore[no-untyped-call]
        top, left = np.unravel_index(int(scores.argmax()), scores.shape)
        best = max(best, (float(scores[top, left]), int(left), int(top), width, height))
    score, x, y, width, height = best
    if score < MIN_CORRELATION:
        return False
    covered = Image.fromarray(whole[y : y + height, x : x + width])
    image = Image.fromarray(part)
    if not _near(perceptual_hash(covered, 8), perceptual_hash(image, 8), MAX_CROP_BITS):
        return False
    return _same_colors(color_grid(covered), color_grid(image), MAX_CROP_COLOR)


def _near(one: NDArray[np.bool_], other: NDArray[np.bool_], limit: int) -> bool:
    return int((one != other).sum()) <= limit


def _same_colors(
    one: NDArray[np.float32], other: NDArray[np.float32], limit: float = MAX_COLOR
) -> bool:
    return float(np.abs(one - other).mean()) <= limit
