"""The parts of backpacks."""

from __future__ import annotations

import numpy as np

from tools.drawing.part import Part, box, corners, curve, stitches, symmetric, tube


def backpack(style: str, rng: np.random.Generator) -> list[Part]:
    """Return a backpack seen from the front."""
    wide = rng.uniform(0.31, 0.37)
    tall = rng.uniform(0.84, 0.98)
    dome = rng.uniform(0.10, 0.18)
    body = symmetric(
        [
            (0.0, 0.0),
            (wide * 0.6, dome * 0.25),
            (wide * 0.93, dome * 1.2),
            (wide, tall * 0.5),
            (wide * 1.02, tall * 0.85),
            (wide * 0.9, tall * 0.985),
            (0.0, tall),
        ]
    )
    loop = tube([(-0.09, 0.03), (-0.07, -0.08), (0.07, -0.08), (0.09, 0.03)], 0.032)
    parts: list[Part] = []
    for side in (-1, 1):
        strap = [
            (side * wide * 0.7, 0.08),
            (side * (wide + 0.10), 0.20),
            (side * (wide + 0.11), tall * 0.55),
            (side * wide * 0.98, tall * 0.88),
        ]
        parts.append(Part(tube(strap, 0.06), "fabric", "dark", depth=0.02))
        pocket = curve(
            [
                (side * wide * 0.9, tall * 0.58),
                (side * (wide + 0.075), tall * 0.64),
                (side * (wide + 0.08), tall * 0.9),
                (side * wide * 0.9, tall * 0.94),
            ]
        )
        parts.append(Part(pocket, "fabric", tone=0.8, patterned=False, depth=0.05))
    parts += [Part(loop, "fabric", "dark", depth=0.012), Part(body, "fabric", depth=0.14)]
    if style == "vintage":
        flap = symmetric(
            [
                (0.0, -0.012),
                (wide * 0.62, dome * 0.2),
                (wide * 0.98, dome * 1.2),
                *corners([(wide * 1.02, tall * 0.42)]),
                (wide * 0.6, tall * 0.475),
                (0.0, tall * 0.48),
            ]
        )
        parts.append(Part(flap, "fabric", depth=0.07, shadow=0.45))
        parts += stitches(
            [
                (-wide, tall * 0.39),
                (-wide * 0.6, tall * 0.445),
                (0.0, tall * 0.45),
                (wide * 0.6, tall * 0.445),
                (wide, tall * 0.39),
            ]
        )
        for side in (-1, 1):
            x = side * wide * 0.5
            parts.append(
                Part(
                    box(x - 0.032, tall * 0.25, x + 0.032, tall * 0.62, 0.012),
                    "leather",
                    "leather",
                    depth=0.015,
                )
            )
            parts.append(
                Part(
                    box(x - 0.045, tall * 0.50, x + 0.045, tall * 0.56, 0.01),
                    "metal",
                    "metal",
                    depth=0.01,
                    holes=(box(x - 0.03, tall * 0.515, x + 0.03, tall * 0.545, 0.004),),
                )
            )
        parts.append(
            Part(
                box(-wide * 0.7, tall * 0.66, wide * 0.7, tall * 0.92, 0.04),
                "fabric",
                depth=0.04,
                patterned=False,
                shadow=0.3,
            )
        )
        return parts
    zip_line = [
        (-wide * 0.86, tall * 0.50),
        (-wide * 0.80, dome * 1.5),
        (-wide * 0.5, dome * 0.75),
        (0.0, dome * 0.55),
        (wide * 0.5, dome * 0.75),
        (wide * 0.80, dome * 1.5),
        (wide * 0.86, tall * 0.50),
    ]
    parts.append(Part(tube(zip_line, 0.018), "metal", "dark", inside=True, depth=0.01))
    pocket = symmetric(
        [
            (0.0, tall * 0.53),
            (wide * 0.66, tall * 0.54),
            (wide * 0.80, tall * 0.62),
            (wide * 0.80, tall * 0.88),
            (wide * 0.7, tall * 0.94),
            (0.0, tall * 0.945),
        ]
    )
    sporty = style == "sporty"
    parts.append(Part(pocket, "fabric", depth=0.06, patterned=False, shadow=0.4))
    parts.append(
        Part(
            tube(
                [(-wide * 0.74, tall * 0.60), (0.0, tall * 0.58), (wide * 0.74, tall * 0.60)], 0.018
            ),
            "metal",
            "dark",
            inside=True,
            depth=0.01,
        )
    )
    if sporty:
        for side in (-1, 1):
            parts.append(
                Part(
                    tube(
                        [
                            (side * wide * 0.1, tall * 0.92),
                            (side * wide * 0.42, tall * 0.76),
                            (side * wide * 0.1, tall * 0.64),
                        ],
                        0.03,
                    ),
                    "fabric",
                    "accent",
                    inside=True,
                    depth=0.01,
                )
            )
            cord = [
                (side * wide * 0.62, tall * 0.22),
                (-side * wide * 0.62, tall * 0.36),
                (side * wide * 0.62, tall * 0.48),
            ]
            parts.append(Part(tube(cord, 0.016), "rubber", "accent", depth=0.01))
    else:
        parts.append(
            Part(
                box(-0.075, tall * 0.27, 0.075, tall * 0.40, 0.012),
                "leather",
                "leather",
                depth=0.015,
            )
        )
        parts += stitches([(-0.06, tall * 0.29), (0.06, tall * 0.29)])
        parts.append(
            Part(
                box(-wide * 0.6, tall * 0.60, -wide * 0.55, tall * 0.68, 0.01),
                "metal",
                "metal",
                depth=0.01,
            )
        )
    return parts
