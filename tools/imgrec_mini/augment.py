"""Random views of a product picture that keep its class and the name of its colour."""

from __future__ import annotations

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

WHITE = (255, 255, 255)


def random_view(image: Image.Image, side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return another picture of the same product -> (side, side, 3).

    Flip, crop, tilt, pad to a square as the product's preprocessing does, and what cameras and
    web shops do to pixels: re-compression, blur, other light. Hue is never turned: colour must
    stay what its name says.
    """
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.8:
        image = _random_crop(image, rng)
    background = WHITE if rng.random() < 0.8 else _random_tint(rng)
    view = _onto_square(image, side, background, rng)
    if rng.random() < 0.15:
        small = int(rng.integers(side // 3, side))
        view = view.resize((small, small), Image.Resampling.BILINEAR)
        view = view.resize((side, side), Image.Resampling.BILINEAR)
    elif rng.random() < 0.1:
        view = view.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.5))))
    if rng.random() < 0.2:
        view = recompress(view, int(rng.integers(25, 90)))
    return other_light(np.asarray(view), rng)


def _random_crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    area = rng.uniform(0.5, 1.0)
    aspect = math.exp(rng.uniform(-0.25, 0.25))
    width = min(1.0, math.sqrt(area * aspect)) * image.width
    height = min(1.0, math.sqrt(area / aspect)) * image.height
    left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
    return image.crop((round(left), round(top), round(left + width), round(top + height)))


def _random_tint(rng: np.random.Generator) -> tuple[int, int, int]:
    """A plain wall or table: any brightness, little colour."""
    gray = rng.uniform(40, 255)
    red, green, blue = np.clip(gray + rng.normal(0, 12, 3), 0, 255).astype(int).tolist()
    return red, green, blue


def _onto_square(
    image: Image.Image, side: int, background: tuple[int, int, int], rng: np.random.Generator
) -> Image.Image:
    """Scale, tilt and shift in one resampling; what lies outside the picture is `background`."""
    margin = rng.uniform(0, 0.15) if rng.random() < 0.5 else 0.0
    scale = max(image.size) * (1 + 2 * margin) / side  # source pixels in a pixel of the view
    angle = math.radians(rng.uniform(-15, 15)) if rng.random() < 0.3 else 0.0
    stretch = math.exp(rng.uniform(-0.1, 0.1))
    a, b = scale * stretch * math.cos(angle), -scale * math.sin(angle)
    d, e = scale * math.sin(angle), scale / stretch * math.cos(angle)
    slack = max(0.0, side - max(image.size) / scale) / 2
    middle_x = side / 2 + rng.uniform(-slack, slack)
    middle_y = side / 2 + rng.uniform(-slack, slack)
    c = image.width / 2 - a * middle_x - b * middle_y
    f = image.height / 2 - d * middle_x - e * middle_y
    return image.transform(
        (side, side),
        Image.Transform.AFFINE,
        (a, b, c, d, e, f),
        Image.Resampling.BILINEAR,
        fillcolor=background,
    )


def recompress(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def other_light(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Change exposure, contrast and white balance, each a little: one look-up a channel."""
    levels = np.arange(256, dtype=np.float32)
    gains = rng.uniform(0.8, 1.2) * np.exp(rng.normal(0, 0.02, 3))
    contrast, gamma = rng.uniform(0.8, 1.2), math.exp(rng.uniform(-0.2, 0.2))
    out = np.empty_like(pixels)
    for channel in range(3):
        curve = 255 * (np.clip(levels * gains[channel], 0, 255) / 255) ** gamma
        curve = (curve - 128) * contrast + 128
        out[..., channel] = np.clip(curve, 0, 255).astype(np.uint8)[pixels[..., channel]]
    return out
