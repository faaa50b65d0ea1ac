"""The parts of caps, knitted hats and hats with a brim."""

from __future__ import annotations

import numpy as np

from tools.drawing.part import Part, corners, curve, ellipse, gloom, seam, stitches, symmetric, tube


def hat(style: str, rng: np.random.Generator) -> list[Part]:
    """Return a cap (sporty), a knitted hat (casual) or a hat with a brim."""
    if style == "sporty":
        return _cap(rng)
    return _beanie(rng) if style == "casual" else _brimmed(style, rng)


def _cap(rng: np.random.Generator) -> list[Part]:
    tall = rng.uniform(0.34, 0.40)
    crown = curve(
        [
            *corners([(0.0, 0.42)]),
            (-0.01, 0.25),
            (0.08, 0.42 - tall * 0.85),
            (0.27, 0.42 - tall),
            (0.47, 0.42 - tall * 0.80),
            (0.57, 0.25),
            *corners([(0.60, 0.42)]),
            (0.3, 0.46),
        ]
    )
    peak = curve(
        [
            *corners([(0.27, 0.425)]),
            (0.42, 0.335),
            (0.60, 0.335),
            (0.75, 0.37),
            (0.86, 0.42),
            (0.905, 0.475),
            (0.875, 0.51),
            (0.74, 0.495),
            (0.58, 0.478),
            (0.42, 0.465),
        ]
    )
    top = 0.42 - tall
    own = "accent" if rng.random() < 0.4 else "main"
    return [
        Part(crown, depth=0.14),
        seam([(0.28, top), (0.33, 0.25), (0.33, 0.45)]),
        seam([(0.26, top), (0.13, 0.22), (0.12, 0.45)]),
        Part(ellipse(0.45, 0.22, 0.045, 0.05), "leather", "accent", inside=True, depth=0.02),
        Part(ellipse(0.27, top, 0.03, 0.015), "fabric", own, patterned=False, depth=0.02),
        gloom(tube([(0.30, 0.40), (0.45, 0.33), (0.62, 0.33)], 0.05), 0.35, 0.02),
        Part(peak, "fabric", own, depth=0.05, patterned=False),
        gloom(tube([(0.34, 0.47), (0.58, 0.480), (0.89, 0.52)], 0.05), 0.35, 0.02),
        *stitches([(0.46, 0.372), (0.62, 0.378), (0.75, 0.408), (0.87, 0.462)]),
    ]


def _beanie(rng: np.random.Generator) -> list[Part]:
    tall = rng.uniform(0.46, 0.56)
    crown = symmetric(
        [
            (0.0, 0.5 - tall),
            (0.13, 0.53 - tall),
            (0.26, 0.22),
            (0.30, 0.40),
            *corners([(0.30, 0.5)]),
            (0.0, 0.54),
        ]
    )
    brim = symmetric(
        [
            (0.0, 0.42),
            *corners([(0.31, 0.375)]),
            (0.335, 0.46),
            *corners([(0.32, 0.55)]),
            (0.0, 0.605),
        ]
    )
    parts = [Part(crown, "knit", depth=0.15)]
    parts += [
        gloom(tube([(x * 0.25, 0.5 - tall), (x, 0.25), (x * 1.1, 0.5)], 0.014), 0.20, 0.006)
        for x in np.linspace(-0.27, 0.27, 9)
    ]
    parts.append(Part(brim, "knit", patterned=False, depth=0.06, shadow=0.4, tone=0.93))
    parts += [
        gloom(tube([(x, 0.36), (x * 1.03, 0.62)], 0.012), 0.28, 0.004)
        for x in np.linspace(-0.30, 0.30, 17)
    ]
    if rng.random() < 0.65:
        puff = [
            (0.105 * r * np.cos(t), 0.455 - tall + 0.105 * r * np.sin(t))
            for t, r in zip(
                np.linspace(0, 2 * np.pi, 40, endpoint=False),
                rng.uniform(0.9, 1.08, 40),
                strict=True,
            )
        ]
        parts.append(Part(curve(puff, steps=3), "knit", "accent", depth=0.09))
    return parts


def _brimmed(style: str, rng: np.random.Generator) -> list[Part]:
    wide = rng.uniform(0.56, 0.66) if style == "elegant" else rng.uniform(0.46, 0.52)
    tall = rng.uniform(0.28, 0.36)
    dip = rng.uniform(0.02, 0.05)
    brim = symmetric(
        [
            (0.0, 0.31),
            (wide * 0.6, 0.33),
            (wide * 0.95, 0.345 - dip),
            (wide, 0.39 - dip),
            (wide * 0.7, 0.48),
            (0.0, 0.53),
        ]
    )
    crown = symmetric(
        [
            (0.0, 0.40 - tall + 0.035),
            (0.10, 0.40 - tall),
            (0.20, 0.43 - tall),
            (0.25, 0.28),
            *corners([(0.275, 0.40)]),
            (0.0, 0.46),
        ]
    )
    band = tube([(-0.30, 0.345), (0.0, 0.415), (0.30, 0.345)], 0.075)
    parts = [
        Part(brim, "fabric", depth=0.06, patterned=False),
        gloom(ellipse(0.03, 0.42, 0.32, 0.07), 0.4, 0.03),
        Part(crown, "fabric", depth=0.13, shadow=0.1),
        gloom(ellipse(0.0, 0.41 - tall, 0.06, 0.05), 0.25, 0.02),
        Part(
            band, "fabric", "accent" if style == "elegant" else "leather", inside=True, depth=0.02
        ),
    ]
    if style == "elegant":
        for side in (-1, 1):
            parts.append(
                Part(
                    curve([(0.2, 0.38), (0.2 + side * 0.07, 0.34), (0.2 + side * 0.08, 0.42)]),
                    paint="accent",
                    depth=0.02,
                )
            )
    else:
        parts += stitches(
            [
                (-wide * 0.9, 0.40 - dip),
                (-wide * 0.6, 0.46),
                (0.0, 0.505),
                (wide * 0.6, 0.46),
                (wide * 0.9, 0.40 - dip),
            ]
        )
    return parts
