"""Vectors that lie like those of a shop: kinds, styles within kinds, pictures within styles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]

HOW = (
    "2,000 styles in 50 kinds, sizes as 1/sqrt(rank); kind, style and picture are drawn from a "
    "spectrum that falls as 1/i^0.6 over 512 rotated axes, with weights 0.8, 0.8, 0.5 about a "
    "common mean, then brought to unit length"
)
DIM, KINDS, STYLES, BLOCK = 512, 50, 2000, 65_536


def clustered(count: int, seed: int, file: Path | None = None) -> Vectors:
    """Draw (count, 512) float32 unit vectors; the world is the same for each seed.

    Args:
        file: where they lie mapped; None keeps them in memory.
    """
    world = np.random.default_rng(7)
    spectrum = np.arange(1, DIM + 1) ** -0.6
    spectrum /= np.linalg.norm(spectrum)
    turn = np.linalg.qr(world.normal(size=(DIM, DIM)))[0].astype(np.float32)
    shares = 1 / np.arange(1, STYLES + 1) ** 0.5
    kinds = world.normal(size=(KINDS, DIM)) * spectrum
    styles = 0.8 * kinds[world.integers(KINDS, size=STYLES)]
    styles += 0.8 * world.normal(size=(STYLES, DIM)) * spectrum
    styles += world.normal(size=DIM) * spectrum
    rows: Vectors = (
        np.empty((count, DIM), np.float32)
        if file is None
        else np.lib.format.open_memmap(file, "w+", np.float32, (count, DIM))
    )
    rng = np.random.default_rng(seed)
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        which = rng.choice(STYLES, size, p=shares / shares.sum())
        drawn = rng.standard_normal((size, DIM), np.float32) * (0.5 * spectrum).astype(np.float32)
        drawn = (drawn + styles[which].astype(np.float32)) @ turn
        rows[start : start + size] = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return rows
