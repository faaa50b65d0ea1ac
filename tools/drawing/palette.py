"""The colours of a product: the named one, and those that go with it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from tools.drawing.product import Product, generator

Color = NDArray[np.float32]  # (3,) sRGB, 0-255
Palette = Mapping[str, Color]

NAMED: dict[str, tuple[int, int, int]] = {
    "black": (38, 38, 41),
    "white": (240, 239, 236),
    "gray": (138, 140, 143),
    "red": (205, 36, 40),
    "orange": (240, 126, 28),
    "yellow": (245, 206, 44),
    "green": (48, 142, 72),
    "blue": (38, 92, 190),
    "purple": (122, 58, 162),
    "pink": (242, 142, 178),
    "brown": (118, 72, 42),
}
NEUTRALS = frozenset({"black", "white", "gray"})
# What a pattern or a detail may have on the colour: always far from it.
ACCENTS = {
    "black": ("white", "gray", "red"),
    "white": ("blue", "black", "red", "gray"),
    "gray": ("white", "black"),
    "red": ("white", "black"),
    "orange": ("white", "cream"),
    "yellow": ("white", "black"),
    "green": ("white", "black"),
    "blue": ("white", "yellow"),
    "purple": ("white", "pink"),
    "pink": ("white", "purple"),
    "brown": ("white", "cream"),
}
FIXED: dict[str, tuple[int, int, int]] = {
    "shade": (22, 18, 18),
    "light": (255, 253, 248),
    "cream": (236, 222, 192),
    "dark": (44, 42, 44),
    "sole": (238, 235, 228),
    "gum": (176, 118, 66),
    "steel": (186, 190, 196),
    "gold": (206, 166, 84),
    "oak": (190, 140, 88),
    "walnut": (104, 66, 42),
    "leather": (138, 84, 46),
    "glow": (255, 238, 196),
}


def palette(product: Product) -> Palette:
    """Return the product's paints by name: main, accent, thread, metal, wood and the fixed ones."""
    rng = generator(product, "palette")
    colors: dict[str, Color] = {
        name: np.array(rgb, np.float32) for name, rgb in (FIXED | NAMED).items()
    }
    main = _vary(product.color, rng)
    accent = str(rng.choice(ACCENTS[product.color]))
    warm = product.style in ("vintage", "elegant")
    colors["main"] = main
    colors["accent"] = colors[
        "cream" if product.style == "vintage" and accent == "white" else accent
    ]
    colors["lens"] = 0.25 * main + 0.4 * colors["dark"]
    colors["thread"] = colors["dark"] if product.color in ("white", "yellow") else colors["cream"]
    colors["metal"] = colors["gold" if warm and rng.random() < 0.7 else "steel"]
    colors["wood"] = colors["walnut" if rng.random() < 0.4 else "oak"]
    return colors


def _vary(name: str, rng: np.random.Generator) -> Color:
    """Return a shade of a named colour: no two pieces are dyed alike."""
    base = np.array(NAMED[name], np.float32)
    spread = 3.0 if name in NEUTRALS else 7.0
    tinted = base + rng.uniform(-spread, spread, 3).astype(np.float32)
    low, high = (0.97, 1.02) if name in NEUTRALS else (0.97, 1.06)
    varied: Color = np.clip(tinted * np.float32(rng.uniform(low, high)), 8, 250)
    return varied
