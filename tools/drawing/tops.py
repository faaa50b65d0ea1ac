"""The parts of T-shirts and dresses, seen from above as they lie flat."""

from __future__ import annotations

import numpy as np

from tools.drawing.part import (
    Knots,
    Part,
    corners,
    curve,
    ellipse,
    gleam_fold,
    gloom,
    mirrored,
    seam,
    sided,
    symmetric,
    trim,
    tube,
)


def t_shirt(style: str, rng: np.random.Generator) -> list[Part]:
    """Return a T-shirt."""
    sleeve = rng.uniform(0.0, 0.05)
    waist = 0.27 if style == "elegant" else rng.uniform(0.29, 0.33)
    deep = rng.uniform(0.07, 0.10)
    vee = style == "elegant"
    body = symmetric(
        [
            *corners([(0.0, deep + 0.05)] if vee else []),
            *([] if vee else [(0.0, deep), (0.07, deep * 0.75)]),
            *corners([(0.13, 0.0)]),
            (0.22, 0.035),
            *corners([(0.33, 0.10)]),
            *corners([(0.30, 0.32)]),
            (waist - 0.01, 0.52),
            *corners([(waist + 0.01, 0.86)]),
            (0.15, 0.875),
            (0.0, 0.88),
        ]
    )
    parts: list[Part] = [
        Part(
            curve([(-0.12, 0.0), (0.0, -0.02), (0.12, 0.0), (0.06, 0.12), (-0.06, 0.12)]),
            patterned=False,
            tone=0.62,
            depth=0.03,
        )
    ]
    for side in (-1, 1):
        arm = mirrored(
            [
                *corners([(0.25, 0.055)]),
                (0.35, 0.115),
                (0.43, 0.20),
                *corners([(0.49 + sleeve, 0.30 + sleeve), (0.37 + sleeve * 0.6, 0.38 + sleeve)]),
                *corners([(0.27, 0.27)]),
            ],
            side,
        )
        paint = "accent" if style == "vintage" else "main"
        parts.append(Part(arm, paint=paint, angle=side * 0.75, depth=0.07))
        hem = sided([(0.47 + sleeve, 0.285 + sleeve), (0.35 + sleeve * 0.6, 0.365 + sleeve)], side)
        parts += [seam(hem)] if style != "sporty" else [trim(hem, 0.03, inside=True)]
        if style == "sporty":
            parts.append(trim(sided([(0.24, 0.03), (0.38, 0.14), (0.5, 0.28)], side), 0.022, True))
    parts.append(Part(body, depth=0.11))
    for side in (-1, 1):
        parts.append(
            gloom(tube(sided([(0.29, 0.30), (0.20, 0.40), (0.17, 0.55)], side), 0.03), 0.18)
        )
        if style == "sporty":
            parts.append(
                trim(sided([(0.305, 0.30), (waist, 0.52), (waist + 0.01, 0.9)], side), 0.05, True)
            )
    parts.append(seam([(-0.4, 0.845), (0.0, 0.86), (0.4, 0.845)]))
    throat: Knots = [
        (-0.13, 0.0),
        (-0.07, deep * 0.75),
        (0.0, deep),
        (0.07, deep * 0.75),
        (0.13, 0.0),
    ]
    if vee:
        throat = [(-0.13, 0.0), *corners([(0.0, deep + 0.05)]), (0.13, 0.0)]
    ribs = "accent" if style in ("sporty", "vintage") else "main"
    parts.append(Part(tube(throat, 0.026), "knit", ribs, patterned=False, depth=0.012, tone=0.93))
    if style == "casual" and rng.random() < 0.6:
        pocket = curve(
            corners([(0.06, 0.22), (0.18, 0.22), (0.18, 0.33), (0.12, 0.36), (0.06, 0.33)])
        )
        parts += [
            Part(pocket, depth=0.015, angle=np.pi / 2, shadow=0.25),
            seam([(0.06, 0.24), (0.18, 0.24)]),
        ]
    if style == "vintage":
        parts += [
            Part(ellipse(0, deep + 0.05 + n * 0.06, 0.011, 0.011), "plastic", "thread", depth=0.01)
            for n in range(3)
        ]
    return parts


def dress(style: str, rng: np.random.Generator) -> list[Part]:
    """Return a dress with a waist and a flared skirt."""
    long = rng.uniform(1.0, 1.3) if style == "elegant" else rng.uniform(0.8, 0.95)
    flare = rng.uniform(0.24, 0.30) if style == "elegant" else rng.uniform(0.30, 0.40)
    sleeves = style in ("casual", "vintage")
    top = 0.13 if sleeves else 0.10
    deep = rng.uniform(0.08, 0.14)
    body = symmetric(
        [
            (0.0, deep),
            (0.05, deep * 0.8),
            *corners([(top - 0.045, 0.0), (top + 0.005, 0.0)]),
            (top + 0.01, 0.10) if not sleeves else (0.165, 0.05),
            *corners([(0.165, 0.18)]),
            (0.15, 0.26),
            (0.125, 0.34),
            (0.16, 0.44),
            (flare * 0.80, 0.38 + (long - 0.38) * 0.55),
            *corners([(flare, long - 0.02)]),
            (flare * 0.66, long + 0.012),
            (flare * 0.33, long - 0.008),
            (0.0, long + 0.012),
        ]
    )
    parts: list[Part] = [
        Part(
            curve(
                [(-top + 0.04, 0.01), (0.0, 0.03), (top - 0.04, 0.01), (0.05, 0.15), (-0.05, 0.15)]
            ),
            patterned=False,
            tone=0.58,
            depth=0.03,
        )
    ]
    for side in (-1, 1) if sleeves else ():
        arm = mirrored(
            [
                *corners([(0.11, 0.01)]),
                (0.19, 0.05),
                *corners([(0.26, 0.15), (0.19, 0.20), (0.14, 0.16)]),
            ],
            side,
        )
        parts.append(Part(arm, depth=0.05, angle=side * 0.7))
    parts.append(Part(body, depth=0.10))
    for n in range(5):
        x = (n - 2) * 0.42
        line = [
            (x * 0.22, 0.37),
            (x * flare * 0.75, 0.37 + (long - 0.37) * 0.5),
            (x * flare, long + 0.02),
        ]
        parts.append(gloom(tube(line, 0.012, 0.05), 0.20, 0.012))
        parts.append(gleam_fold([(a + 0.025, b) for a, b in line]))
    belt = tube([(-0.16, 0.335), (0.0, 0.35), (0.16, 0.335)], 0.05 if style != "sporty" else 0.03)
    if style == "sporty":
        parts += [
            trim(
                sided(
                    [
                        (0.17, 0.17),
                        (0.125, 0.34),
                        (flare * 0.80, 0.38 + (long - 0.38) * 0.55),
                        (flare, long),
                    ],
                    side,
                ),
                0.03,
                True,
            )
            for side in (-1, 1)
        ]
    else:
        parts.append(
            Part(
                belt,
                "fabric",
                "accent" if style != "elegant" else "main",
                patterned=False,
                inside=True,
                depth=0.02,
                tone=0.8,
            )
        )
    if style == "vintage":
        parts += [
            Part(ellipse(0, deep + 0.03 + n * 0.05, 0.011, 0.011), "plastic", "thread", depth=0.01)
            for n in range(4)
        ]
        for side in (-1, 1):
            collar = mirrored(
                [
                    *corners([(0.0, deep)]),
                    (0.05, deep * 0.7),
                    *corners([(0.085, 0.0), (0.12, 0.02)]),
                    (0.11, 0.10),
                    (0.05, deep + 0.04),
                ],
                side,
            )
            parts.append(Part(collar, paint="cream", depth=0.02))
    if style == "elegant":
        parts.append(Part(ellipse(0.0, 0.345, 0.022, 0.022), "metal", "metal", depth=0.02))
    return parts
