"""From a decoded image to the square that the model sees; pure functions of pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

from pipeline.settings import Settings

# Part of every fingerprint: raise it when a line below changes what the model sees.
VERSION = 2

Remover = Callable[[Image.Image], Image.Image]
"""RGB image -> mask in mode L of the same size: 255 is product, 0 is background."""

FOREGROUND = 128  # mask values from here up count as product
# Pixels around the largest object that belong to its soft edge.
EDGE = 4
# A cut-out outside of these shares of the image is a failure of the mask, not a product.
MIN_KEPT, MAX_KEPT = 0.01, 0.98
# U2Net leaves some striped or pale cloth half transparent: such a mask has many values in the
# middle. On 420 photos of clothing, the 5 masks with a share above 0.35 were all bad, the 415 below
# were usable but for a few.
UNSURE_LOW, UNSURE_HIGH = 32, 224
MAX_UNSURE = 0.35


@dataclass(frozen=True)
class Preprocessing:
    """The parameters that decide what the model sees; a part of the fingerprint."""

    size: tuple[int, int]
    padding: float
    bg_color: tuple[int, int, int]
    rembg_model: str | None

    @classmethod
    def from_settings(cls, settings: Settings) -> Preprocessing:
        return cls(
            size=settings.preprocess_size,
            # Margin belongs to the cut-out: without one there is none, and it must not split
            # otherwise equal fingerprints.
            padding=settings.preprocess_padding if settings.use_bg_removal else 0.0,
            bg_color=settings.preprocess_bg_color,
            rembg_model=settings.rembg_model if settings.use_bg_removal else None,
        )

    def parameters(self) -> dict[str, Any]:
        return {"version": VERSION, **asdict(self)}


@dataclass(frozen=True)
class PreparedImage:
    """What the model sees, and a warning where it is not cut out although that was requested."""

    image: Image.Image
    warning: str | None = None


def prepare(image: Image.Image, spec: Preprocessing, remover: Remover | None) -> PreparedImage:
    """Return the image that the model sees, RGB of `spec.size`.

    With a remover: cut out, lay on the background colour, crop tightly, pad to the target's shape
    with a margin of `spec.padding` times the longer side, resize. Without, or when the cut-out is
    implausible: pad, resize.
    """
    if remover is None:
        return PreparedImage(_fit(image, spec, padding=0.0))
    mask = remover(image)
    problem = implausible(mask)
    if problem:
        return PreparedImage(
            _fit(image, spec, padding=0.0),
            f"background removal {problem}; the uncut image was used",
        )
    canvas = Image.new("RGB", image.size, spec.bg_color)
    cut = Image.composite(image, canvas, mask)
    box = mask.point(lambda value: 255 if value >= FOREGROUND else 0).getbbox()
    return PreparedImage(_fit(cut.crop(box), spec, padding=spec.padding))


def largest_object(mask: Image.Image) -> Image.Image:
    """Return the mask with its largest connected foreground object only."""
    from scipy import ndimage  # few queries need it

    values = np.asarray(mask)
    labels, count = ndimage.label(values >= FOREGROUND, structure=np.ones((3, 3)))
    if count < 2:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0  # background
    own = ndimage.binary_dilation(labels == int(sizes.argmax()), iterations=EDGE)
    return Image.fromarray(np.where(own, values, 0).astype(np.uint8))


def implausible(mask: Image.Image) -> str | None:
    """Say in a few words what is wrong with a mask; None for a good one."""
    values = np.asarray(mask)
    foreground_share = float((values >= FOREGROUND).mean())
    if foreground_share < MIN_KEPT:
        return f"kept almost nothing ({foreground_share:.1%} of the pixels)"
    if foreground_share > MAX_KEPT:
        return f"kept almost everything ({foreground_share:.1%} of the pixels)"
    touched = values > UNSURE_LOW
    unsure = float((touched & (values < UNSURE_HIGH)).sum() / max(1, int(touched.sum())))
    if unsure > MAX_UNSURE:
        return f"left the product half transparent ({unsure:.0%} of its pixels)"
    return None


def _fit(image: Image.Image, spec: Preprocessing, padding: float) -> Image.Image:
    """Pad to the target's aspect ratio, plus `padding` on each side, and resize to it."""
    target_width, target_height = spec.size
    margin = round(padding * max(image.size))
    inner_width, inner_height = image.width + 2 * margin, image.height + 2 * margin
    aspect = target_width / target_height
    width = max(inner_width, round(inner_height * aspect))
    height = max(inner_height, round(inner_width / aspect))
    canvas = Image.new("RGB", (width, height), spec.bg_color)
    canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return canvas.resize(spec.size, Image.Resampling.LANCZOS)
