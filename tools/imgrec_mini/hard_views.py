"""Views of a product that are further from the shop's image than those of `augment`.

A part of it, small on another background, turned, seen askew: what a customer's photo may be, and
what must not change the embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from tools.imgrec_mini.augment import WHITE, other_light, random_view, recompress

PHOTO_KINDS = ("whole", "mild", "most", "half", "small", "turned", "askew")
CUT_OUT = "cut out"
CLEAN = "clean"
DRAWN_KINDS = ("whole", "mild", "most", CUT_OUT, "small")
MARGIN = 0.1  # of the longer edge: PREPROCESS_PADDING
SHARES = {"most": (0.6, 0.85), "half": (0.4, 0.6)}  # of each dimension


def hard_view(
    kind: str,
    image: Image.Image,
    cutout: Image.Image | None,
    photos: Sequence[Image.Image],
    side: int,
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """Return a random view of one of the kinds above -> (side, side, 3).

    Args:
        cutout: the product alone, RGBA; only for the kinds CUT_OUT and CLEAN.
        photos: their corners serve as backgrounds.
    """
    if kind == "whole":
        return np.asarray(onto_square(image, side))
    if kind == "mild":
        return random_view(image, side, rng)
    if kind == "small":
        angle = rng.uniform(-10, 10) if rng.random() < 0.3 else 0.0
        turned = image.convert("RGBA").rotate(angle, Image.Resampling.BICUBIC, expand=True)
        return _photographed(_paste(turned, rng.uniform(0.35, 0.8), photos, side, rng), rng)
    if kind == CLEAN:
        assert cutout is not None
        return np.asarray(onto_white(cutout, side))
    if kind == CUT_OUT:
        assert cutout is not None
        seen = askew(cutout, rng, (0, 0, 0, 0))
        return _photographed(_paste(seen, rng.uniform(0.45, 0.9), photos, side, rng), rng)
    if kind == "turned":
        view = _turned(image, rng)
    elif kind == "askew":
        view = _part(askew(image, rng, any_color(rng)), rng.uniform(0.7, 1), rng)
    else:
        view = _part(image, rng.uniform(*SHARES[kind]), rng)
    return _photographed(onto_square(view, side), rng)


def onto_square(image: Image.Image, side: int) -> Image.Image:
    """Scale and pad with white, as the product prepares an image without background removal."""
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    square = Image.new("RGB", (side, side), WHITE)
    corner = ((side - size[0]) // 2, (side - size[1]) // 2)
    square.paste(image.resize(size, Image.Resampling.BICUBIC), corner)
    return square


def onto_white(cutout: Image.Image, side: int) -> Image.Image:
    """Put an RGBA image on white, as the product prepares an image with background removal."""
    edge = round(max(cutout.size) * (1 + 2 * MARGIN))
    square = Image.new("RGB", (edge, edge), WHITE)
    corner = ((edge - cutout.width) // 2, (edge - cutout.height) // 2)
    square.paste(cutout.convert("RGB"), corner, cutout.getchannel("A"))
    return square.resize((side, side), Image.Resampling.BICUBIC)


def _part(image: Image.Image, share: float, rng: np.random.Generator) -> Image.Image:
    """Crop to about `share` of each dimension, anywhere."""
    width, height = (
        edge * min(1.0, share * math.exp(rng.uniform(-0.1, 0.1))) for edge in image.size
    )
    left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
    return image.crop((round(left), round(top), round(left + width), round(top + height)))


def _turned(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    angle = rng.uniform(5, 25) * rng.choice((-1, 1))
    fill = WHITE if rng.random() < 0.6 else any_color(rng)
    whole = bool(rng.random() < 0.6)
    return image.rotate(angle, Image.Resampling.BICUBIC, expand=whole, fillcolor=fill)


def askew(image: Image.Image, rng: np.random.Generator, fill: tuple[int, ...]) -> Image.Image:
    """Return the image as seen from the side: its corners move by up to 15 % of the edges."""
    width, height = image.size
    corners = np.array([(0, 0), (width, 0), (width, height), (0, height)], float)
    moved = corners + rng.uniform(-0.15, 0.15, (4, 2)) * image.size
    rows = []
    for (x, y), (u, v) in zip(moved, corners, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
    coefficients = np.linalg.solve(np.array(rows), corners.ravel())
    return image.transform(
        image.size,
        Image.Transform.PERSPECTIVE,
        coefficients.tolist(),
        Image.Resampling.BICUBIC,
        fillcolor=fill,
    )


def _paste(
    image: Image.Image,
    share: float,
    photos: Sequence[Image.Image],
    side: int,
    rng: np.random.Generator,
) -> Image.Image:
    """Put an RGBA image, its longer edge `share` of the side, anywhere on another background."""
    scale = share * side / max(image.size)
    size = (max(8, round(image.width * scale)), max(8, round(image.height * scale)))
    small = image.resize(size, Image.Resampling.BICUBIC)
    canvas = background(photos, side, rng)
    left, top = (int(rng.integers(0, side - edge + 1)) for edge in size)
    canvas.paste(small.convert("RGB"), (left, top), small.getchannel("A"))
    return canvas


def background(photos: Sequence[Image.Image], side: int, rng: np.random.Generator) -> Image.Image:
    """Return a wall, a colour, a gradient or the corner of a photo: mostly floor."""
    kind = rng.random()
    if kind < 0.35:
        gray = rng.uniform(20, 255) + rng.normal(0, 12, 3)
        return Image.new("RGB", (side, side), tuple(np.clip(gray, 0, 255).astype(int).tolist()))
    if kind < 0.55:
        return Image.new("RGB", (side, side), any_color(rng))
    if kind < 0.75:
        ends = rng.uniform(30, 255, (2, 1, 1, 3))
        ends = (ends + 2 * ends.mean(axis=-1, keepdims=True)) / 3  # walls have little colour
        share = np.linspace(0, 1, side)[:, None, None]
        pixels = ends[0] * (1 - share) + ends[1] * share
        pixels = pixels + rng.normal(0, rng.uniform(0, 10), (side, side, 1))
        if rng.random() < 0.5:
            pixels = pixels.transpose(1, 0, 2)
        return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    photo = photos[int(rng.integers(len(photos)))]
    portion = rng.uniform(0.2, 0.5)
    width, height = round(photo.width * portion), round(photo.height * portion)
    left = 0 if rng.random() < 0.5 else photo.width - width
    top = 0 if rng.random() < 0.5 else photo.height - height
    corner = photo.crop((left, top, left + width, top + height))
    return corner.resize((side, side), Image.Resampling.BICUBIC)


def any_color(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = rng.integers(0, 256, 3).tolist()
    return red, green, blue


def _photographed(image: Image.Image, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Mirror, blur, compress and light another way, each at random."""
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.15:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.5))))
    if rng.random() < 0.2:
        image = recompress(image, int(rng.integers(25, 90)))
    pixels = np.asarray(image)
    return other_light(pixels, rng) if rng.random() < 0.5 else pixels
