"""Put a product in a scene: a background, a shadow, the light of the room."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from tools.drawing import backdrop
from tools.drawing.figure import Figure
from tools.drawing.product import Product, generator
from tools.drawing.shading import Field

# Categories seen from above, lying on a surface; the others stand on it.
LYING = frozenset({"t-shirt", "dress", "skirt", "shorts", "trousers", "hat", "watch", "sunglasses"})


def compose(product: Product, figure: Figure, size: int) -> Image.Image:
    """Return the picture: background, shadow, product, light of the scene."""
    rng = generator(product, "scene")
    lies = product.category in LYING
    rows = np.flatnonzero(figure.alpha.max(axis=1) > 0.5)
    backdrops = backdrop.LYING if lies else backdrop.STANDING
    behind = backdrops[rng.integers(len(backdrops))]
    canvas = behind(backdrop.View(size, product.color, float(rows.max()) / size, rng))
    shadow = _around(figure, size) if lies else _on_floor(figure, size)
    canvas = canvas * (1 - shadow[..., None])
    canvas = canvas * (1 - figure.alpha[..., None]) + figure.color
    return _photographed(canvas, product, rng, size)


def _around(figure: Figure, size: int) -> Field:
    """Return the shadow (0-1) of a thing that lies: its shape, moved away from the light."""
    solid = _solid(figure)
    moved = Image.new("L", solid.size)
    moved.paste(solid, (round(size * 0.016), round(size * 0.021)))
    return _blurred(moved, size * 0.016) * np.float32(0.42)


def _on_floor(figure: Figure, size: int) -> Field:
    """Return the shadow (0-1) of a thing that stands: wide and soft, dark where it touches."""
    solid = _solid(figure)
    left, top, right, bottom = solid.getbbox() or (0, 0, size, size)
    tall = bottom - top
    # The lower half, flattened on the floor.
    flat = max(int(tall * 0.16), 3)
    low = solid.crop((left, bottom - int(tall * 0.55), right, bottom))
    floor = Image.new("L", solid.size)
    floor.paste(low.resize((right - left + size // 16, flat)), (left, bottom - int(flat * 0.72)))
    feet = Image.new("L", solid.size)
    touching = solid.crop((left, bottom - max(size // 28, 2), right, bottom))
    feet.paste(touching, (left + size // 100, bottom - size // 40))
    dark = 0.5 * (_blurred(floor, size * 0.022) + _blurred(feet, size * 0.008))
    return np.asarray(np.minimum(dark, np.float32(0.75)), np.float32)


def _solid(figure: Figure) -> Image.Image:
    return Image.fromarray((figure.alpha * 255).clip(0, 255).astype(np.uint8))


def _blurred(mask: Image.Image, radius: float) -> Field:
    soft = np.asarray(mask.filter(ImageFilter.GaussianBlur(radius)), np.float32)
    scaled: Field = soft / np.float32(255)
    return scaled


def _photographed(
    canvas: backdrop.Canvas, product: Product, rng: np.random.Generator, size: int
) -> Image.Image:
    """Return the canvas as a camera saw it: tint, vignette, noise."""
    warmth = rng.normal(0, 0.016)  # of lamplight; below 0, of daylight
    tint = 1 + rng.normal(0, 0.008, 3) + warmth * np.array([1.0, 0.1, -1.2])
    if product.style == "vintage":
        tint *= (1.01, 1.0, 0.97)
    t = np.linspace(-1, 1, size, dtype=np.float32)
    vignette = 1 - np.float32(rng.uniform(0, 0.09)) * (t[:, None] ** 2 + t[None, :] ** 2)
    canvas = canvas * tint.astype(np.float32) * vignette[..., None]
    canvas = canvas + rng.standard_normal((size, size, 1), np.float32) * np.float32(2.0)
    return Image.fromarray(canvas.clip(0, 255).astype(np.uint8))
