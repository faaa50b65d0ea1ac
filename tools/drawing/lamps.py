"""The parts of table lamps."""

from __future__ import annotations

import numpy as np

from tools.drawing.part import Part, bowl, corners, ellipse, gleam, symmetric, tube


def lamp(style: str, rng: np.random.Generator) -> list[Part]:
    """Return a table lamp with a coloured shade."""
    below = rng.uniform(0.27, 0.33)
    above = below * {"elegant": 0.80, "vintage": 0.42}.get(style, rng.uniform(0.55, 0.72))
    tall = rng.uniform(0.34, 0.42)
    oval = below * 0.16
    low = tall + rng.uniform(0.40, 0.50)
    foot = rng.uniform(0.14, 0.18)
    parts: list[Part] = []
    stem = "wood" if style == "casual" else "metal"
    base = ellipse(0, low, foot, foot * 0.26)
    if style == "elegant":
        parts.append(Part(base, stem, stem, depth=0.03))
        parts.append(Part(tube([(0, tall - 0.02), (0, low)], 0.026), stem, stem, depth=0.02))
        parts += [
            Part(ellipse(0, tall + f * (low - tall), 0.045, 0.045), "glass", "sole", depth=0.04)
            for f in (0.3, 0.5, 0.7)
        ]
    elif style == "vintage":
        parts.append(Part(base, stem, stem, depth=0.03))
        urn = symmetric(
            [
                *corners([(0.03, tall - 0.02)]),
                (0.035, tall + 0.10),
                (0.075, tall + 0.17),
                (0.10, tall + 0.25),
                (0.045, low - 0.07),
                *corners([(foot * 0.7, low - 0.01)]),
                *bowl(foot * 0.7, low, 0.03),
            ]
        )
        parts.append(Part(urn, stem, stem, depth=0.05))
    elif rng.random() < 0.5:
        parts += [
            Part(tube([(0.0, tall), (x, low + y)], 0.03, 0.024), stem, stem, depth=0.015)
            for x, y in ((0.02, -0.05), (-0.19, 0.0), (0.19, 0.0))
        ]
    else:
        belly = symmetric(
            [
                *corners([(0.04, tall - 0.02)]),
                (0.05, tall + 0.08),
                (0.15, tall + 0.20),
                (0.165, low - 0.12),
                *corners([(0.09, low - 0.02)]),
                *bowl(0.09, low, 0.02),
            ]
        )
        parts.append(Part(belly, "ceramic", patterned=False, depth=0.10))
        parts.append(gleam(ellipse(-0.06, tall + 0.2, 0.02, 0.06), 0.5, 0.012))
    waist = 0.5 * (above + below) - (0.05 if style == "vintage" else 0.0)
    shade = symmetric(
        [
            (0.0, -oval * 0.5),
            (above * 0.7, -oval * 0.38),
            *corners([(above, 0.0)]),
            (waist, tall * 0.5),
            *corners([(below, tall)]),
            (below * 0.6, tall + oval * 0.75),
            (0.0, tall + oval),
        ]
    )
    parts.append(Part(shade, "upholstery", depth=0.12, bend=0.06))
    parts.append(
        Part(
            ellipse(-0.02, tall * 0.72, below * 0.5, tall * 0.34),
            paint="glow",
            material="flat",
            alpha=0.32,
            soft=0.07,
            inside=True,
            shadow=0,
        )
    )
    for y, half in ((0.006, above), (tall - 0.008, below)):
        sag = oval * (half / below)
        hem = tube(
            [
                (-half * 1.02, y),
                (-half * 0.6, y + sag * 0.75),
                (0.0, y + sag),
                (half * 0.6, y + sag * 0.75),
                (half * 1.02, y),
            ],
            0.02,
        )
        paint = "accent" if style != "casual" else "main"
        parts.append(
            Part(hem, "upholstery", paint, patterned=False, inside=True, depth=0.01, tone=0.9)
        )
    hole = ellipse(0, 0.0, above * 0.96, oval * 0.9 * (above / below))
    parts.append(Part(hole, "upholstery", "glow", patterned=False, tone=0.85, depth=0.03, shadow=0))
    if style == "vintage":
        parts += [
            Part(
                tube(
                    [
                        (x * below, tall + oval * (1 - x * x) * 0.98),
                        (x * below, tall + oval * (1 - x * x) + 0.05),
                    ],
                    0.012,
                ),
                "upholstery",
                "cream",
                depth=0.008,
            )
            for x in np.linspace(-0.96, 0.96, 23)
        ]
    return parts
