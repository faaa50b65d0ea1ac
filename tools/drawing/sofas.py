"""The parts of sofas."""

from __future__ import annotations

import numpy as np

from tools.drawing.part import Part, box, corners, curve, ellipse, symmetric, tube


def sofa(style: str, rng: np.random.Generator) -> list[Part]:
    """Return a sofa of two or three seats."""
    wide = rng.uniform(0.52, 0.60)
    back = rng.uniform(0.22, 0.30)
    arm = rng.uniform(0.10, 0.13)
    seats = int(rng.integers(2, 4))
    leg = "metal" if style == "elegant" else "wood"
    low = back + 0.28
    parts: list[Part] = []
    for side in (-1, 1):
        parts.append(
            Part(
                tube(
                    [(side * (wide - 0.08), low - 0.04), (side * (wide - 0.07), low + 0.10)],
                    0.05,
                    0.03,
                ),
                leg,
                leg,
                depth=0.02,
            )
        )
    curl = 0.05 if style == "vintage" else 0.0
    rest = symmetric(
        [
            (0.0, -curl),
            (wide * 0.5, -0.005 - curl * 0.4),
            (wide * 0.86, 0.01),
            (wide * 0.93, 0.06),
            *corners([(wide * 0.95, low - 0.1)]),
            (0.0, low - 0.1),
        ]
    )
    parts.append(Part(rest, "upholstery", depth=0.08, tone=0.93))
    inner = wide - arm
    for n in range(seats):
        left, right = -inner + 2 * inner * n / seats, -inner + 2 * inner * (n + 1) / seats
        if style == "elegant":
            parts += [
                Part(
                    ellipse(left + (right - left) * f, y, 0.012, 0.012),
                    "upholstery",
                    patterned=False,
                    tone=0.7,
                    depth=0.01,
                )
                for f, y in ((0.25, 0.09), (0.75, 0.09), (0.5, 0.16))
            ]
        else:
            parts.append(
                Part(
                    box(left + 0.006, 0.045, right - 0.006, back + 0.05, 0.05),
                    "upholstery",
                    depth=0.055,
                    shadow=0.35,
                )
            )
    base = box(-wide + 0.03, back + 0.12, wide - 0.03, low, 0.02)
    parts.append(Part(base, "upholstery", depth=0.04, tone=0.85, patterned=False))
    for n in range(seats):
        left, right = -inner + 2 * inner * n / seats, -inner + 2 * inner * (n + 1) / seats
        parts.append(
            Part(
                box(left + 0.003, back + 0.015, right - 0.003, back + 0.145, 0.045),
                "upholstery",
                depth=0.045,
                shadow=0.4,
            )
        )
    top = back * rng.uniform(0.45, 0.65)
    for side in (-1, 1):
        x = side * (wide - arm / 2)
        if style == "vintage":
            roll = curve(
                [
                    *corners([(x - arm * 0.45, low)]),
                    (x - arm * 0.45, top + 0.12),
                    (x - arm * 0.62, top + 0.04),
                    (x, top - 0.03),
                    (x + arm * 0.62, top + 0.04),
                    (x + arm * 0.45, top + 0.12),
                    *corners([(x + arm * 0.45, low)]),
                ]
            )
            parts.append(Part(roll, "upholstery", depth=0.05, shadow=0.4))
            parts.append(
                Part(
                    ellipse(x, top + 0.045, arm * 0.36, arm * 0.36),
                    "upholstery",
                    patterned=False,
                    depth=0.025,
                    tone=0.9,
                )
            )
        else:
            round_ = 0.06 if style == "casual" else 0.02
            parts.append(
                Part(
                    box(x - arm / 2, top, x + arm / 2, low + 0.005, round_),
                    "upholstery",
                    depth=0.055,
                    shadow=0.4,
                )
            )
    if rng.random() < 0.6:
        x = inner * 0.62 * float(rng.choice([-1, 1]))
        size = 0.09
        pillow = curve(
            [
                (x - size, back - 0.12),
                (x, back - 0.11),
                (x + size, back - 0.13),
                (x + size * 0.95, back - 0.03),
                (x + size, back + 0.055),
                (x, back + 0.045),
                (x - size, back + 0.05),
                (x - size * 0.95, back - 0.03),
            ]
        )
        parts.append(Part(pillow, "upholstery", "accent", depth=0.05, shadow=0.4))
    return parts
