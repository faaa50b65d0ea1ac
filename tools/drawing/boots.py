"""The parts of boots."""

from __future__ import annotations

import numpy as np

from tools.drawing.part import Part, corners, curve, gloom, seam, stitches, tube


def boot(style: str, rng: np.random.Generator) -> list[Part]:
    """Return a boot; the toe points right."""
    heel = rng.uniform(0.10, 0.17) if style == "elegant" else rng.uniform(0.05, 0.08)
    tall = rng.uniform(0.18, 0.42) if style == "elegant" else rng.uniform(-0.02, 0.14)
    wide = rng.uniform(0.35, 0.40)
    sharp = 0.03 if style == "elegant" else 0.0
    upper = curve(
        [
            *corners([(0.03, -tall)]),
            (0.2, 0.012 - tall),
            *corners([(0.03 + wide, -tall)]),
            (0.40, 0.15),
            (0.41, 0.34),
            (0.50, 0.47),
            (0.64, 0.53),
            (0.78, 0.56 + sharp),
            (0.87, 0.64 + sharp),
            *corners([(0.89 + sharp, 0.74)]),
            *corners([(0.04, 0.74)]),
            (0.02, 0.60),
            (0.06, 0.46),
            (0.05, 0.20),
        ]
    )
    thick = 0.035 if style == "elegant" else 0.07
    sole = curve(
        [
            *corners([(0.01, 0.71), (0.91 + sharp, 0.71)]),
            (0.93 + sharp, 0.725),
            (0.915 + sharp, 0.715 + thick),
            (0.86, 0.725 + thick),
            *corners([(0.42, 0.725 + thick)]),
            *corners([(0.35, 0.725 + thick), (0.32, 0.74 + heel), (0.02, 0.74 + heel)]),
        ]
    )
    back = curve(
        [(0.04, 0.005 - tall), (0.2, -0.03 - tall), (0.02 + wide, 0.005 - tall), (0.2, 0.03 - tall)]
    )
    parts = [
        Part(back, "leather", patterned=False, tone=0.5, depth=0.03),
        Part(upper, "leather", depth=0.15),
        gloom(tube([(0.40, 0.42), (0.30, 0.50), (0.33, 0.60)], 0.05), 0.25),
        gloom(tube([(0.0, 0.71), (0.9, 0.72)], 0.06), 0.35),
    ]
    if style == "elegant":
        parts.append(seam([(0.22, -tall), (0.23, 0.4), (0.20, 0.72)], 0.008, 0.4))
        parts.append(
            Part(
                tube([(0.0, 0.42), (0.2, 0.45), (0.5, 0.44)], 0.05),
                "leather",
                "dark",
                inside=True,
                depth=0.02,
            )
        )
        parts.append(
            Part(
                curve(corners([(0.27, 0.41), (0.34, 0.41), (0.34, 0.48), (0.27, 0.48)])),
                "metal",
                "metal",
                depth=0.02,
                inside=True,
            )
        )
    else:
        parts += stitches([(0.20, 0.70), (0.22, 0.52), (0.30, 0.42), (0.31, 0.02 - tall)])
        parts += stitches([(0.62, 0.55), (0.60, 0.64), (0.66, 0.74)])
        parts.append(
            Part(
                tube([(0.03, 0.02 - tall), (0.2, 0.035 - tall), (0.45, 0.02 - tall)], 0.06),
                "knit" if style == "casual" else "leather",
                "thread" if style == "casual" else "leather",
                inside=True,
                depth=0.02,
            )
        )
        rows = int((0.42 + tall) / 0.085)
        for n in range(rows):
            y = 0.42 - n * 0.085
            lace = tube([(0.315, y + 0.02), (0.37, y), (0.42, y - 0.035)], 0.022)
            parts.append(Part(lace, "fabric", "thread", depth=0.012, shadow=0.4))
    parts.append(Part(sole, "rubber", "gum" if style == "vintage" else "dark", depth=0.03))
    return parts
