"""The patterns of cloth and glaze: where the second colour shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tools.drawing.product import Product, generator

Field = NDArray[np.float32]


@dataclass(frozen=True)
class Pattern:
    """A pattern's measures, in units of the product."""

    name: str
    period: float
    share: float  # of the period that the second colour takes; under a half: the first stays named
    angle: float


def pattern_of(product: Product) -> Pattern:
    """Return the measures of a product's pattern."""
    rng = generator(product, "pattern")
    angle = {
        "striped": float(rng.choice([0, 0, np.pi / 2, np.pi / 4])),
        "dotted": float(rng.choice([0, np.pi / 4])),
        "checked": float(rng.choice([0, 0, np.pi / 4])),
    }.get(product.pattern, 0.0)
    period = {"striped": 0.115, "dotted": 0.13, "checked": 0.15}.get(product.pattern, 1.0)
    share = {"striped": 0.34, "dotted": 0.29, "checked": 0.25}.get(product.pattern, 0.0)
    return Pattern(product.pattern, period * rng.uniform(0.8, 1.25), share, angle)


def coverage(pattern: Pattern, x: Field, y: Field, angle: float, pixel: float) -> Field:
    """Return how much of the second colour (0-1) lies at x, y; a pixel is `pixel` units wide."""
    turn = pattern.angle + angle
    u = (x * np.cos(turn) + y * np.sin(turn)) / pattern.period
    v = (y * np.cos(turn) - x * np.sin(turn)) / pattern.period
    edge = max(pixel / pattern.period, 1e-3)
    if pattern.name == "striped":
        return _band(v, pattern.share, edge)
    if pattern.name == "checked":
        # Woven: a band alone is half as dense as the square where two cross.
        both = _band(u, pattern.share, edge) + _band(v, pattern.share, edge)
        return both * np.float32(0.42)
    if pattern.name == "dotted":
        odd = np.floor(v) % 2 * np.float32(0.5)
        du, dv = (u + odd) % 1 - 0.5, v % 1 - 0.5
        return _step(pattern.share - np.sqrt(du * du + dv * dv), edge)
    return np.zeros_like(x)


def _band(t: Field, share: float, edge: float) -> Field:
    return _step(share / 2 - np.abs(t % 1 - 0.5), edge)


def _step(distance: Field, edge: float) -> Field:
    smooth: Field = np.clip(distance / edge + 0.5, 0, 1).astype(np.float32)
    return smooth
