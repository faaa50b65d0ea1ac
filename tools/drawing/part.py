"""The parts a product is made of, and the outlines they are made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]  # (n, 2): x to the right, y down, in units of the product's own
Knots = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Part:
    """A piece of one material; later parts lie on earlier ones."""

    outline: Points
    material: str = "fabric"
    paint: str = "main"  # a key of the product's palette
    holes: tuple[Points, ...] = ()
    patterned: bool = True  # only "main" paint carries the pattern
    angle: float = 0.0  # of the pattern, radians
    bend: float = 0.0  # how far a pattern sags around a round body, units
    tone: float = 1.0  # brightness: an inner side is darker
    depth: float = 0.10  # how far from the edge the surface curves, units
    inside: bool = False  # clipped to the last part that is not inside
    alpha: float = 1.0
    soft: float = 0.0  # blur of the edge, units: a decal of light or shade
    shadow: float = 0.3  # how dark its shadow on the parts below is


def curve(knots: Knots, closed: bool = True, steps: int = 10) -> Points:
    """Return a Catmull-Rom spline through the knots; a knot given twice is a sharp corner."""
    k = np.asarray(knots, float)
    if closed:
        a, b, c, d = np.roll(k, 1, 0), k, np.roll(k, -1, 0), np.roll(k, -2, 0)
    else:
        k = np.vstack([k[:1], k, k[-1:]])
        a, b, c, d = k[:-3], k[1:-2], k[2:-1], k[3:]
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    a, b, c, d = (p[:, None, :] for p in (a, b, c, d))
    spline = 0.5 * (
        2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3
    )
    spline = np.where(np.abs(b - c).max(2, keepdims=True) < 1e-9, b, spline)  # a corner has no loop
    points: Points = spline.reshape(-1, 2)
    return points if closed else np.vstack([points, k[-1:]])


def symmetric(knots: Knots) -> Points:
    """Return the closed curve of a right half, given from top to bottom, and its mirror image."""
    # A knot on the axis is not mirrored: given twice it would be a corner.
    return curve([*knots, *((-x, y) for x, y in reversed(knots) if x)])


def corners(knots: Knots) -> list[tuple[float, float]]:
    """Return the knots, each a sharp corner."""
    return [knot for knot in knots for _ in range(2)]


def ellipse(x: float, y: float, rx: float, ry: float, steps: int = 48) -> Points:
    """Return an ellipse around (x, y)."""
    t = np.linspace(0, 2 * np.pi, steps, endpoint=False)
    return np.stack([x + rx * np.cos(t), y + ry * np.sin(t)], 1)


def box(left: float, top: float, right: float, bottom: float, r: float = 0.02) -> Points:
    """Return a rectangle with corners of radius r."""
    r = min(r, (right - left) / 2, (bottom - top) / 2)
    t = np.linspace(0, np.pi / 2, 7)
    centers = ((right - r, bottom - r), (left + r, bottom - r), (left + r, top + r))
    arcs = [
        np.stack([x + r * np.cos(t + n * np.pi / 2), y + r * np.sin(t + n * np.pi / 2)], 1)
        for n, (x, y) in enumerate((*centers, (right - r, top + r)))
    ]
    return np.vstack(arcs)


def bowl(half: float, y: float, sag: float) -> list[tuple[float, float]]:
    """Return the right half of a round foot, seen a little from above: knots for `symmetric`."""
    angles = np.linspace(0.12, np.pi / 2, 6)
    return [(half * float(np.cos(a)), y + sag * float(np.sin(a))) for a in angles]


def tube(knots: Knots, width: float, end: float | None = None) -> Points:
    """Return a band along a smooth open line, `width` wide at its start and `end` at its end."""
    line = curve(knots, closed=False, steps=8)
    ahead = np.gradient(line, axis=0)
    ahead /= np.linalg.norm(ahead, axis=1, keepdims=True) + 1e-9
    across = np.stack([-ahead[:, 1], ahead[:, 0]], 1)
    half = np.linspace(width, width if end is None else end, len(line))[:, None] / 2
    return np.vstack([line + across * half, (line - across * half)[::-1]])


def seam(knots: Knots, width: float = 0.006, alpha: float = 0.35) -> Part:
    """Return a dark line on the part below."""
    return Part(tube(knots, width), paint="shade", alpha=alpha, inside=True, shadow=0)


def stitches(knots: Knots, paint: str = "thread", width: float = 0.009) -> list[Part]:
    """Return a dashed line on the part below."""
    line = curve(knots, closed=False, steps=8)
    steps = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    gaps = []
    for start in np.arange(0.020, steps[-1], 0.034):
        x = np.interp([start, start + 0.014], steps, line[:, 0])
        y = np.interp([start, start + 0.014], steps, line[:, 1])
        gaps.append(tube([(x[0], y[0]), (x[1], y[1])], width * 2))
    band = tube(knots, width)
    return [Part(band, "flat", paint, tuple(gaps), inside=True, shadow=0, alpha=0.9)]


def stretched(part: Part, across: float) -> Part:
    """Return the part, so many times as wide."""
    by = np.array([across, 1.0])
    holes = tuple(hole * by for hole in part.holes)
    return replace(part, outline=part.outline * by, holes=holes)


def gleam(outline: Points, alpha: float = 0.35, soft: float = 0.02) -> Part:
    """Return a soft reflection of light on the part below."""
    return Part(outline, paint="light", alpha=alpha, soft=soft, inside=True, shadow=0)


def gloom(outline: Points, alpha: float = 0.3, soft: float = 0.03) -> Part:
    """Return a soft shadow on the part below."""
    return Part(outline, paint="shade", alpha=alpha, soft=soft, inside=True, shadow=0)


def gleam_fold(line: Knots) -> Part:
    """Return the lit side of a fold."""
    band = tube(line, 0.008, 0.035)
    return Part(band, paint="light", alpha=0.13, soft=0.010, inside=True, shadow=0)


def trim(knots: Knots, width: float, inside: bool = False) -> Part:
    """Return a band of the accent colour."""
    return Part(tube(knots, width), "fabric", "accent", inside=inside, depth=0.02, shadow=0.1)


def sided(knots: Knots, side: int) -> list[tuple[float, float]]:
    """Return the knots on the right (1) or mirrored to the left (-1)."""
    return [(x * side, y) for x, y in knots]


def mirrored(knots: Knots, side: int) -> Points:
    """Return a closed curve on the right (1) or mirrored to the left (-1)."""
    return curve(sided(knots, side))
