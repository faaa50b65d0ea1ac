"""Draw a product in a scene."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps

from tools.drawing import (
    backpacks,
    bags,
    boots,
    bottles,
    bottoms,
    chairs,
    eyewear,
    hats,
    lamps,
    mugs,
    shoes,
    sofas,
    tops,
    watches,
)
from tools.drawing.figure import Figure, Pose, fit, render
from tools.drawing.palette import palette
from tools.drawing.part import Part
from tools.drawing.pattern import pattern_of
from tools.drawing.product import Product, generator
from tools.drawing.scene import LYING, compose

Shape = Callable[[str, np.random.Generator], list[Part]]
SHAPES: dict[str, Shape] = {
    "shoe": shoes.shoe,
    "boot": boots.boot,
    "bag": bags.bag,
    "backpack": backpacks.backpack,
    "t-shirt": tops.t_shirt,
    "dress": tops.dress,
    "skirt": bottoms.skirt,
    "shorts": bottoms.shorts,
    "trousers": bottoms.trousers,
    "hat": hats.hat,
    "watch": watches.watch,
    "sunglasses": eyewear.sunglasses,
    "mug": mugs.mug,
    "bottle": bottles.bottle,
    "teapot": mugs.teapot,
    "chair": chairs.chair,
    "sofa": sofas.sofa,
    "lamp": lamps.lamp,
}
OVERSAMPLING = 2


def draw(product: Product, size: int = 256) -> Image.Image:
    """Return the picture of a product, size x size, RGB; equal arguments give equal pictures."""
    picture = compose(product, _lit_from_left(product, size), size)
    return ImageOps.mirror(picture) if _right(product) else picture


def figure_of(product: Product, size: int) -> Figure:
    """Return the product alone, as it lies in the picture of `size`."""
    figure = _lit_from_left(product, size)
    if not _right(product):
        return figure
    return Figure(figure.color[:, ::-1], figure.alpha[:, ::-1], figure.main[:, ::-1])


def _right(product: Product) -> bool:
    """Say whether the light comes from the right: then all is drawn the other way round."""
    return bool(generator(product, "light").random() < 0.4)


def _lit_from_left(product: Product, size: int) -> Figure:
    parts = SHAPES[product.category](product.style, generator(product, "shape"))
    rng = generator(product, "pose")
    side = size * OVERSAMPLING
    # What lies may lie askew; what stands is upright but for the camera.
    rotation = float(rng.normal(0, 0.07 if product.category in LYING else 0.02))
    pose = Pose(1.0, rotation, bool(rng.random() < 0.5), float(rng.uniform(-0.04, 0.04)))
    extent = float(rng.uniform(0.70, 0.85))
    free = (0.94 - extent) / 2
    center = (
        side * (0.5 + float(rng.uniform(-free, free)) * 0.7),
        side * (0.5 + float(rng.uniform(-free, free)) * 0.7),
    )
    pose = fit(parts, pose, side * extent, center)
    noise = rng.standard_normal((side, side), np.float32)
    layer = render(parts, pose, palette(product), pattern_of(product), noise)
    return reduced(layer)


def reduced(layer: Figure) -> Figure:
    """Return a layer at the size of the picture."""
    channels = [*np.moveaxis(layer.color, 2, 0), layer.alpha, layer.main]
    small = [np.asarray(Image.fromarray(c).reduce(OVERSAMPLING)) for c in channels]
    return Figure(np.stack(small[:3], 2), small[3], small[4])
