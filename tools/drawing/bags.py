"""The parts of handbags, totes and duffel bags."""

from __future__ import annotations

import numpy as np

from tools.drawing.part import (
    Part,
    box,
    corners,
    curve,
    ellipse,
    gloom,
    seam,
    stitches,
    symmetric,
    tube,
)


def bag(style: str, rng: np.random.Generator) -> list[Part]:
    """Return a handbag; a duffel if it is sporty, a tote if it is casual."""
    if style == "sporty":
        return _duffel(rng)
    return _tote(rng) if style == "casual" else _handbag(style, rng)


def _handbag(style: str, rng: np.random.Generator) -> list[Part]:
    wide = rng.uniform(0.40, 0.46)
    tall = rng.uniform(0.52, 0.62)
    arch = rng.uniform(0.26, 0.36)
    narrow = rng.uniform(0.06, 0.12)
    body = symmetric(
        [
            *corners([(wide - narrow, 0.0)]),
            (wide - narrow * 0.4, tall * 0.4),
            (wide, tall * 0.85),
            (wide - 0.02, tall - 0.01),
            (wide - 0.08, tall),
            (0.0, tall + 0.008),
        ]
    )
    fall = tall * rng.uniform(0.42, 0.55)
    flap = symmetric(
        [
            (0.0, -0.025),
            (wide - narrow - 0.05, -0.02),
            (wide - narrow + 0.012, 0.02),
            (wide - narrow * 0.6 + 0.01, fall * 0.6),
            (wide * 0.72, fall * 0.9),
            (0.0, fall * 1.06),
        ]
    )
    grip = rng.uniform(0.18, 0.24)
    handle = tube(
        [
            (-grip, 0.02),
            (-grip * 0.92, -arch * 0.7),
            (0.0, -arch),
            (grip * 0.92, -arch * 0.7),
            (grip, 0.02),
        ],
        0.042,
    )
    inner = "leather" if style == "vintage" else "main"
    parts = [
        Part(handle, "leather", inner, patterned=False, depth=0.02, tone=0.92),
        Part(body, "leather", depth=0.12),
        gloom(tube([(-wide, fall * 0.9), (0.0, fall * 1.1), (wide, fall * 0.9)], 0.08), 0.3),
        Part(flap, "leather", depth=0.06, shadow=0.45),
    ]
    edge = [
        (-wide + narrow * 0.6, fall * 0.55),
        (-wide * 0.70, fall * 0.84),
        (0.0, fall * 0.99),
        (wide * 0.70, fall * 0.84),
        (wide - narrow * 0.6, fall * 0.55),
    ]
    if style == "vintage":
        parts += stitches(edge)
        for side in (-1, 1):
            x = side * wide * 0.5
            parts.append(
                Part(
                    box(x - 0.032, -0.02, x + 0.032, fall * 1.25, 0.015),
                    "leather",
                    "leather",
                    depth=0.015,
                )
            )
            parts.append(
                Part(
                    box(x - 0.045, fall * 0.98, x + 0.045, fall * 1.14, 0.01),
                    "metal",
                    "metal",
                    depth=0.012,
                    holes=(box(x - 0.028, fall * 1.02, x + 0.028, fall * 1.10, 0.006),),
                )
            )
    else:
        parts.append(seam(edge, 0.007, 0.3))
        parts.append(
            Part(box(-0.045, fall * 0.93, 0.045, fall * 1.14, 0.02), "metal", "metal", depth=0.02)
        )
        parts.append(
            Part(ellipse(0.0, fall * 1.04, 0.018, 0.018), "metal", "metal", depth=0.015, tone=0.7)
        )
    for side in (-1, 1):
        x = side * grip
        ring = ellipse(x, 0.015, 0.036, 0.036)
        parts.append(
            Part(ring, "metal", "metal", depth=0.012, holes=(ellipse(x, 0.015, 0.02, 0.02),))
        )
    return parts


def _tote(rng: np.random.Generator) -> list[Part]:
    wide = rng.uniform(0.34, 0.42)
    tall = rng.uniform(0.66, 0.80)
    arch = rng.uniform(0.28, 0.42)
    body = symmetric(
        [
            *corners([(wide, 0.0)]),
            (wide * 0.98, tall * 0.5),
            *corners([(wide * 0.93, tall)]),
            (0.0, tall + 0.012),
        ]
    )
    grip = wide * 0.48
    parts = []
    for lift, tone in ((0.03, 0.65), (0.0, 0.95)):
        line = [
            (-grip, 0.08),
            (-grip * 0.95, -arch * 0.6),
            (-grip * 0.5, -arch - lift),
            (0.0, -arch * 1.06 - lift),
            (grip * 0.5, -arch - lift),
            (grip * 0.95, -arch * 0.6),
            (grip, 0.08),
        ]
        parts.append(Part(tube(line, 0.048), "fabric", patterned=False, depth=0.015, tone=tone))
        if lift:
            parts.append(
                Part(
                    symmetric([(0.0, -0.012), *corners([(wide, 0.0)]), (0.0, 0.03)]),
                    patterned=False,
                    tone=0.5,
                    depth=0.03,
                )
            )
            parts.append(Part(body, "fabric", depth=0.11))
            parts.append(seam([(-wide, 0.05), (0.0, 0.058), (wide, 0.05)]))
    for side in (-1, 1):
        x = side * grip
        parts.append(
            Part(
                box(x - 0.03, 0.04, x + 0.03, 0.17, 0.008),
                "fabric",
                patterned=False,
                depth=0.012,
                tone=0.95,
            )
        )
        parts += stitches([(x - 0.02, 0.06), (x + 0.02, 0.15)])
    if rng.random() < 0.5:
        parts.append(
            Part(
                box(-0.09, tall * 0.42, 0.09, tall * 0.62, 0.01), "leather", "leather", depth=0.015
            )
        )
    return parts


def _duffel(rng: np.random.Generator) -> list[Part]:
    wide = rng.uniform(0.46, 0.54)
    tall = rng.uniform(0.42, 0.48)
    body = symmetric(
        [
            (0.0, 0.0),
            (wide * 0.8, 0.01),
            (wide * 0.97, 0.10),
            (wide, tall * 0.6),
            (wide * 0.95, tall * 0.95),
            (wide * 0.7, tall),
            (0.0, tall),
        ]
    )
    parts = [Part(body, "fabric", depth=0.13)]
    parts.append(
        Part(
            tube([(-wide * 0.8, 0.06), (0.0, 0.05), (wide * 0.8, 0.06)], 0.022),
            "metal",
            "dark",
            inside=True,
            depth=0.01,
        )
    )
    for side in (-1, 1):
        end = curve(
            [
                *corners([(side * wide * 0.78, -0.1)]),
                (side * wide * 0.72, tall * 0.5),
                *corners(
                    [
                        (side * wide * 0.78, tall + 0.1),
                        (side * (wide + 0.1), tall + 0.1),
                        (side * (wide + 0.1), -0.1),
                    ]
                ),
            ]
        )
        parts.append(Part(end, "fabric", "dark", inside=True, depth=0.05))
    for lift, tone in ((0.02, 0.7), (0.0, 1.0)):
        arch = [
            (-0.22, tall),
            (-0.20, 0.12),
            (-0.15, -0.12),
            (0.0, -0.19 - lift),
            (0.15, -0.12),
            (0.20, 0.12),
            (0.22, tall),
        ]
        if tone == 1.0:
            parts.append(Part(tube(arch, 0.045), "fabric", "accent", depth=0.015, shadow=0.4))
            parts.append(
                Part(box(-0.07, -0.225, 0.07, -0.155, 0.03), "leather", "dark", depth=0.03)
            )
    return parts
