"""The parts of watches."""

from __future__ import annotations

import numpy as np

from tools.drawing.part import (
    Part,
    Points,
    box,
    corners,
    curve,
    ellipse,
    gloom,
    stitches,
    symmetric,
    tube,
)


def watch(style: str, rng: np.random.Generator) -> list[Part]:
    """Return a wristwatch with a coloured strap and dial."""
    face = rng.uniform(0.20, 0.24)
    strap = rng.uniform(0.125, 0.16) if style != "elegant" else rng.uniform(0.10, 0.12)
    square = style == "sporty" and rng.random() < 0.6
    cloth = "rubber" if style == "sporty" else "leather"
    parts: list[Part] = []
    for side in (-1, 1):
        end = 0.56 if side > 0 else 0.50
        band = symmetric(
            [
                *corners([(strap, side * 0.14)]),
                (strap * 0.92, side * 0.32),
                (strap * 0.80, side * (end - 0.05)),
                (strap * 0.5, side * end),
                (0.0, side * (end + 0.012)),
            ]
        )
        parts.append(Part(band, cloth, depth=0.06))
        if style in ("vintage", "casual"):
            parts += [
                s
                for x in (-1, 1)
                for s in stitches(
                    [(x * strap * 0.8, side * 0.22), (x * strap * 0.68, side * (end - 0.06))]
                )
            ]
        if style == "sporty":
            parts += [
                gloom(tube([(-strap, side * y), (strap, side * y)], 0.02), 0.35, 0.005)
                for y in (0.30, 0.36, 0.42)
            ]
        if side > 0:
            parts += [
                Part(
                    ellipse(0, 0.36 + n * 0.055, 0.012, 0.012),
                    paint="shade",
                    inside=True,
                    alpha=0.8,
                    shadow=0,
                )
                for n in range(3)
            ]
        else:
            parts.append(
                Part(
                    box(-strap * 0.95, -0.535, strap * 0.95, -0.44, 0.02),
                    "metal",
                    "metal",
                    depth=0.015,
                    holes=(box(-strap * 0.65, -0.515, strap * 0.65, -0.46, 0.01),),
                )
            )
    parts.append(
        Part(box(face * 0.95, -0.03, face + 0.04, 0.03, 0.01), "metal", "metal", depth=0.02)
    )
    case, dial = _ring(square, face), _ring(square, face * 0.82)
    parts.append(
        Part(
            case,
            "plastic" if style == "sporty" else "metal",
            "dark" if style == "sporty" else "metal",
            depth=0.045,
            shadow=0.45,
        )
    )
    parts.append(Part(dial, "flat", "main", patterned=False))
    parts.append(gloom(_ring(square, face * 0.84), 0.0))
    digits = "thread"
    for n in range(12):
        t = n * np.pi / 6
        sin, cos = np.sin(t), np.cos(t)
        near = 0.60 if n % 3 else 0.52
        mark = tube(
            [(face * near * sin, -face * near * cos), (face * 0.72 * sin, -face * 0.72 * cos)],
            0.014 if n % 3 else 0.022,
        )
        parts.append(Part(mark, "flat", digits, inside=True, shadow=0))
    hour, minute = rng.uniform(0, 2 * np.pi, 2)
    for t, reach, width in ((hour, 0.42, 0.026), (minute, 0.62, 0.018)):
        hand = tube(
            [(0.0, 0.0), (face * reach * np.sin(t), -face * reach * np.cos(t))], width, width * 0.5
        )
        parts.append(Part(hand, "flat", digits, shadow=0.3))
    if style == "vintage":
        parts.append(Part(ellipse(0, face * 0.38, 0.045, 0.045), "flat", "cream", shadow=0))
        parts.append(
            Part(
                tube([(0, face * 0.38), (0.0, face * 0.38 - 0.03)], 0.008), "flat", "dark", shadow=0
            )
        )
    parts.append(Part(ellipse(0, 0, 0.016, 0.016), "metal", "metal", depth=0.01))
    glare = curve(
        [
            (-face * 0.6, -face * 0.35),
            (-face * 0.1, -face * 0.72),
            (face * 0.15, -face * 0.68),
            (-face * 0.58, face * 0.1),
        ]
    )
    parts.append(Part(glare, paint="light", alpha=0.22, soft=0.006, shadow=0))
    return parts


def _ring(square: bool, radius: float) -> Points:
    return (
        box(-radius, -radius, radius, radius, radius * 0.35)
        if square
        else ellipse(0, 0, radius, radius)
    )
