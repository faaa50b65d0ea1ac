"""The parts of chairs."""

from __future__ import annotations

import numpy as np

from tools.drawing.part import Part, box, corners, ellipse, gloom, seam, symmetric, tube


def chair(style: str, rng: np.random.Generator) -> list[Part]:
    """Return a chair seen from the front, a little from above."""
    wide = rng.uniform(0.25, 0.29)
    back = rng.uniform(0.46, 0.56) if style == "elegant" else rng.uniform(0.38, 0.46)
    seat = back + 0.05
    low = seat + rng.uniform(0.42, 0.48)
    splay = rng.uniform(0.03, 0.09) if style == "casual" else rng.uniform(0.0, 0.03)
    leg = "metal" if style == "elegant" and rng.random() < 0.4 else "wood"
    parts: list[Part] = []
    for side in (-1, 1):
        parts.append(
            Part(
                tube(
                    [(side * wide * 0.78, seat), (side * (wide * 0.78 + splay * 0.5), low - 0.09)],
                    0.045,
                    0.026,
                ),
                leg,
                leg,
                depth=0.02,
                tone=0.7,
            )
        )
    if style == "vintage":
        parts.append(
            Part(
                tube([(-wide * 0.85, low - 0.2), (wide * 0.85, low - 0.2)], 0.026),
                leg,
                leg,
                depth=0.015,
                tone=0.8,
            )
        )
    for side in (-1, 1):
        post = [(side * wide * 0.86, back * 0.6), (side * wide * 0.86, seat)]
        parts.append(Part(tube(post, 0.045), leg, leg, depth=0.02))
    if style == "vintage":
        for side in (-1, 1):
            parts.append(
                Part(
                    tube([(side * wide * 0.88, -0.03), (side * wide * 0.86, seat)], 0.05),
                    leg,
                    leg,
                    depth=0.02,
                )
            )
            parts.append(
                Part(ellipse(side * wide * 0.88, -0.04, 0.032, 0.032), leg, leg, depth=0.03)
            )
        rest = symmetric(
            [
                (0.0, 0.0),
                (wide * 0.6, 0.012),
                *corners([(wide * 0.82, 0.03), (wide * 0.82, back * 0.80)]),
                (0.0, back * 0.78),
            ]
        )
    elif style == "elegant":
        rest = symmetric(
            [
                (0.0, -0.03),
                (wide * 0.6, 0.0),
                (wide * 0.95, 0.10),
                (wide * 0.98, back * 0.55),
                *corners([(wide * 0.82, back * 0.98)]),
                (0.0, back),
            ]
        )
    else:
        rest = symmetric(
            [
                (0.0, 0.0),
                (wide * 0.8, 0.01),
                (wide * 1.02, 0.07),
                (wide * 1.0, back * 0.6),
                (wide * 0.9, back * 0.85),
                (0.0, back * 0.9),
            ]
        )
    parts.append(Part(rest, "upholstery", depth=0.09))
    if style == "elegant":
        parts += [
            Part(
                ellipse(x, y, 0.014, 0.014),
                "upholstery",
                patterned=False,
                depth=0.01,
                tone=0.75,
                inside=True,
            )
            for x, y in ((-0.1, 0.13), (0.1, 0.13), (0.0, 0.24), (-0.1, 0.35), (0.1, 0.35))
        ]
    front = wide * 1.10
    cushion = symmetric(
        [
            (0.0, seat - 0.085),
            (wide * 0.86, seat - 0.08),
            (wide * 1.0, seat - 0.03),
            (front + 0.01, seat + 0.06),
            (front - 0.02, seat + 0.105),
            (0.0, seat + 0.115),
        ]
    )
    for side in (-1, 1):
        parts.append(
            Part(
                tube(
                    [(side * front * 0.88, seat + 0.05), (side * (front * 0.88 + splay), low)],
                    0.055,
                    0.032,
                ),
                leg,
                leg,
                depth=0.022,
            )
        )
    if style == "vintage":
        parts.append(
            Part(
                box(-front * 0.9, seat + 0.08, front * 0.9, seat + 0.15, 0.01),
                leg,
                leg,
                depth=0.015,
            )
        )
    parts.append(Part(cushion, "upholstery", depth=0.07, shadow=0.45))
    parts.append(
        gloom(tube([(-wide * 0.9, seat - 0.07), (wide * 0.9, seat - 0.07)], 0.06), 0.35, 0.02)
    )
    parts.append(
        seam([(-front, seat + 0.045), (0.0, seat + 0.058), (front, seat + 0.045)], 0.008, 0.3)
    )
    return parts
