"""The parts of bottles."""

from __future__ import annotations

import numpy as np

from tools.drawing.part import Part, bowl, box, corners, curve, gleam, gloom, seam, symmetric, tube


def bottle(style: str, rng: np.random.Generator) -> list[Part]:
    """Return a drinking bottle: of metal, of plastic if it is sporty, of glass if it is elegant."""
    wide = rng.uniform(0.15, 0.19)
    tall = rng.uniform(0.80, 0.95)
    neck = wide * (0.40 if style in ("elegant", "vintage") else 0.62)
    shoulder = (
        rng.uniform(0.26, 0.34) if style in ("elegant", "vintage") else rng.uniform(0.15, 0.20)
    )
    grip = wide * (0.86 if style == "sporty" else 1.0)
    body = symmetric(
        [
            *corners([(neck, 0.0)]),
            (neck, shoulder * 0.42),
            (wide * 0.92, shoulder),
            (wide, shoulder + 0.10),
            (grip, tall * 0.55),
            (wide, tall * 0.78),
            (wide, tall - 0.04),
            *bowl(wide * 0.98, tall - 0.015, 0.04),
        ]
    )
    cloth = {"elegant": "glass", "vintage": "glass", "sporty": "plastic"}.get(
        style, "metal" if rng.random() < 0.5 else "plastic"
    )
    parts = [Part(body, cloth, depth=0.12, bend=0.04)]
    parts.append(
        gleam(
            tube(
                [
                    (-wide * 0.58, shoulder + 0.05),
                    (-wide * 0.62, tall * 0.6),
                    (-wide * 0.6, tall - 0.06),
                ],
                0.035,
            ),
            0.55,
            0.009,
        )
    )
    parts.append(
        gleam(tube([(-neck * 0.45, 0.02), (-neck * 0.5, shoulder * 0.5)], 0.016), 0.4, 0.006)
    )
    parts.append(gloom(tube([(wide * 0.85, shoulder), (wide * 0.9, tall)], 0.07), 0.28, 0.03))
    if style == "elegant":
        parts.append(
            Part(box(-neck * 1.08, -0.075, neck * 1.08, 0.015, 0.012), "metal", "metal", depth=0.02)
        )
        parts.append(
            Part(
                tube([(-wide, tall * 0.86), (0.0, tall * 0.875), (wide, tall * 0.86)], 0.014),
                "metal",
                "metal",
                inside=True,
                depth=0.01,
            )
        )
    elif style == "vintage":
        parts.append(
            Part(box(-neck * 0.78, -0.09, neck * 0.78, 0.02, 0.015), "wood", "gum", depth=0.02)
        )
        parts.append(
            Part(
                box(-neck * 1.15, -0.005, neck * 1.15, 0.045, 0.015),
                cloth,
                patterned=False,
                depth=0.015,
            )
        )
        label = curve(
            [
                *corners([(-wide * 1.1, tall * 0.56)]),
                (0.0, tall * 0.575),
                *corners([(wide * 1.1, tall * 0.56), (wide * 1.1, tall * 0.74)]),
                (0.0, tall * 0.755),
                *corners([(-wide * 1.1, tall * 0.74)]),
            ]
        )
        parts.append(Part(label, "fabric", "cream", inside=True, depth=0.01))
        parts.append(
            seam(
                [(-wide * 0.6, tall * 0.64), (0.0, tall * 0.655), (wide * 0.6, tall * 0.64)],
                0.014,
                0.6,
            )
        )
    elif style == "sporty":
        parts += [
            gloom(
                tube([(-wide, y * tall), (0.0, y * tall + 0.015), (wide, y * tall)], 0.016),
                0.35,
                0.004,
            )
            for y in (0.46, 0.52, 0.58)
        ]
        parts.append(
            Part(box(-neck * 1.18, -0.075, neck * 1.18, 0.03, 0.02), "plastic", "dark", depth=0.03)
        )
        parts.append(
            Part(
                box(-neck * 0.42, -0.15, neck * 0.42, -0.06, 0.02), "plastic", "accent", depth=0.02
            )
        )
    else:
        parts.append(
            Part(
                tube(
                    [
                        (-neck * 0.8, -0.06),
                        (-neck * 0.6, -0.16),
                        (neck * 0.6, -0.16),
                        (neck * 0.8, -0.06),
                    ],
                    0.025,
                ),
                "plastic",
                "dark",
                depth=0.015,
            )
        )
        parts.append(
            Part(
                box(-neck * 1.1, -0.09, neck * 1.1, 0.02, 0.02),
                "wood" if rng.random() < 0.5 else "plastic",
                "wood" if rng.random() < 0.5 else "dark",
                depth=0.03,
            )
        )
    return parts
