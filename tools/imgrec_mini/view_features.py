"""Collect what the image side makes of many views of each product."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage.color import rgb2lab
from torch import nn

from tools.drawing import Product
from tools.drawing.picture import figure_of
from tools.imgrec_mini.encode import encode_pixels, pooled_features
from tools.imgrec_mini.examples import DRAWN_SIDE, Example
from tools.imgrec_mini.hard_views import CLEAN, CUT_OUT, hard_view, onto_square
from tools.imgrec_mini.projection import Matrix, Views

CHUNK = 16  # products whose views are made ahead
CENTRE = (0.3, 0.7)  # of each dimension: mostly product

log = logging.getLogger("tools.imgrec_mini")


def collect(
    trained: Any,
    image_side: Any,
    lower: nn.Sequential,
    examples: Sequence[Example],
    products: Sequence[Product],
    kinds: Sequence[str],
    backgrounds: Sequence[Image.Image],
    side: int,
    seed: int,
) -> Views:
    """Return the features of `image_side` for a view of each of these kinds of each example.

    Args:
        trained: the whole model as trained; it says where the words lie.
        products: what drawn examples are, in their order; for the kinds CUT_OUT and CLEAN.
    """

    def views_of(number: int) -> NDArray[np.uint8]:
        rng = np.random.default_rng([seed, number])
        image = examples[number].image
        cutout = cut_out(products[number]) if {CLEAN, CUT_OUT} & {*kinds} else None
        return np.stack([hard_view(kind, image, cutout, backgrounds, side, rng) for kind in kinds])

    features, words = [], []
    with ThreadPoolExecutor(os.cpu_count()) as pool, torch.no_grad():
        for at in range(0, len(examples), CHUNK):
            views = list(pool.map(views_of, range(at, min(at + CHUNK, len(examples)))))
            flat = np.concatenate(views)
            rows = pooled_features(image_side, flat, lower).numpy()
            features.append(rows.reshape(len(views), len(kinds), -1))
            whole = np.stack([each[0] for each in views])
            words.append(encode_pixels(trained, whole, lower).numpy())
            if at % (20 * CHUNK) == 0:
                log.info("views of %d of %d products", at + len(views), len(examples))
    facts = [example.facts for example in examples]
    named = all("color" in each for each in facts)
    colors = (
        np.array([each["color"] for each in facts])
        if named
        else np.stack([central_color(example.image) for example in examples])
    )
    categories = np.array([each["category"] for each in facts])
    return Views(np.concatenate(features), np.concatenate(words), categories, colors)


def cut_out(product: Product) -> Image.Image:
    """Return a drawn product alone, RGBA, cropped to itself."""
    figure = figure_of(product, DRAWN_SIDE)
    color = figure.color / np.maximum(figure.alpha, 1e-3)[..., None]
    pixels = np.dstack([color.clip(0, 255), (figure.alpha * 255).clip(0, 255)]).astype(np.uint8)
    image = Image.fromarray(pixels, "RGBA")
    return image.crop(image.getchannel("A").getbbox())


def central_color(image: Image.Image) -> Matrix:
    """Return the mean Lab colour (3,) of the image's central part."""
    square = np.asarray(onto_square(image, 96))
    low, high = (round(96 * edge) for edge in CENTRE)
    lab = rgb2lab(square[low:high, low:high] / 255)
    return np.asarray(lab.reshape(-1, 3).mean(axis=0), np.float32)
