"""The pictures of training: real photos that know their class, drawn products that know it all."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.images.decode import Limits, decode
from tools.drawing import Product, draw, sample_product
from tools.imgrec_mini.captions import PHOTO_CATEGORIES, Facts

SOURCE_SIDE = 288  # longer side kept in memory; a view of training has 192 pixels
LIMITS = Limits(max_bytes=50_000_000, max_pixels=50_000_000)
DRAWN_SIDE = 224
WHITE = (255, 255, 255)


@dataclass(frozen=True)
class Example:
    """A picture and what is known of it."""

    image: Image.Image
    facts: Facts


def read_photos(folder: Path) -> list[Example]:
    """Read a folder of class folders; the class is the only fact of a photo."""
    files = sorted(file for file in folder.glob("*/*") if file.is_file())
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(_read_photo, files))


def sample_products(seed: int, count: int) -> list[Product]:
    """Return the first `count` products of a seed."""
    return [sample_product(np.random.default_rng((seed, number))) for number in range(count)]


def draw_examples(seed: int, count: int, cache: Path | None = None) -> list[Example]:
    """Draw `count` products; each is decided by its seed and its number alone.

    A cache file spares a resumed run the minutes of drawing; delete it when the drawing changes.
    """
    products = sample_products(seed, count)
    if cache is not None and cache.exists():
        pictures = np.load(cache, allow_pickle=False)
    else:
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            pictures = np.stack(list(pool.map(_pixels, products, chunksize=50)))
        if cache is not None:
            cache.parent.mkdir(parents=True, exist_ok=True)
            unfinished = cache.with_suffix(".tmp.npy")
            np.save(unfinished, pictures)
            unfinished.replace(cache)
    return [
        Example(Image.fromarray(pixels), _facts(product))
        for pixels, product in zip(pictures, products, strict=True)
    ]


def _read_photo(file: Path) -> Example:
    image = decode(file.read_bytes(), LIMITS, WHITE)
    image.thumbnail((SOURCE_SIDE, SOURCE_SIDE), Image.Resampling.BICUBIC)
    name = file.parent.name
    return Example(image, {"category": PHOTO_CATEGORIES.get(name, name)})


def _pixels(product: Product) -> NDArray[np.uint8]:
    return np.asarray(draw(product, DRAWN_SIDE))


def _facts(product: Product) -> Facts:
    return {
        "category": product.category,
        "color": product.color,
        "pattern": product.pattern,
        "style": product.style,
    }
