"""The parts of sneakers and pumps."""

from __future__ import annotations

import numpy as np

from tools.drawing.part import Part, corners, curve, gloom, seam, stitches, stretched, tube


def shoe(style: str, rng: np.random.Generator) -> list[Part]:
    """Return a lace-up shoe, or a pump if it is elegant; the toe points right."""
    if style == "elegant":
        return pump(rng)
    long = float(rng.uniform(1.08, 1.22))
    return [stretched(part, long) for part in sneaker(style, rng)]


def sneaker(style: str, rng: np.random.Generator) -> list[Part]:
    """Return a low shoe with laces on a rubber sole."""
    thick = {"sporty": 0.15, "casual": 0.10}.get(style, 0.075) + rng.uniform(-0.01, 0.015)
    collar = rng.uniform(-0.05, 0.02)
    toe = rng.uniform(-0.03, 0.03)
    upper = curve(
        [
            *corners([(0.02, 0.50)]),
            (0.00, 0.34),
            (0.02, 0.18),
            (0.015, 0.06 - collar),
            *corners([(0.06, 0.02 - collar)]),
            (0.16, 0.09),
            (0.26, 0.085),
            *corners([(0.35, 0.00 - collar * 0.3)]),
            *corners([(0.40, 0.03 - collar * 0.3)]),
            (0.52, 0.14),
            (0.66, 0.235),
            (0.80, 0.265 + toe),
            (0.92, 0.32 + toe),
            (0.98, 0.41),
            *corners([(0.985, 0.50)]),
        ]
    )
    lip = 0.03 if style == "sporty" else 0.012
    sole = curve(
        [
            *corners([(-0.012 - lip, 0.45)]),
            (0.20, 0.475),
            (0.50, 0.475),
            (0.80, 0.47),
            *corners([(1.0, 0.43)]),
            (1.015, 0.47),
            (0.985, 0.485 + thick * 0.75),
            (0.90, 0.48 + thick),
            (0.50, 0.48 + thick),
            (0.10, 0.48 + thick * 1.05),
            (0.0 - lip, 0.47 + thick),
        ]
    )
    inner = curve(
        [
            (0.055, 0.03 - collar),
            (0.17, 0.10),
            (0.27, 0.095),
            (0.36, 0.01 - collar * 0.3),
            (0.30, -0.035 - collar * 0.3),
            (0.15, -0.01 - collar * 0.6),
        ]
    )
    cloth = "leather" if style == "vintage" or rng.random() < 0.4 else "fabric"
    parts = [
        Part(inner, "fabric", tone=0.5, patterned=False, depth=0.03),
        Part(upper, cloth, depth=0.13),
        gloom(tube([(0.0, 0.47), (0.5, 0.49), (1.0, 0.45)], 0.07), 0.35),
    ]
    if style == "sporty":
        for n in range(3):
            x = 0.36 + n * 0.085
            band = tube([(x + 0.085, 0.16 + n * 0.025), (x, 0.48)], 0.042)
            parts.append(Part(band, "leather", "accent", inside=True, depth=0.02))
        parts.append(
            Part(
                curve(
                    [
                        *corners([(-0.1, 0.6), (-0.1, 0.3)]),
                        (0.06, 0.29),
                        (0.13, 0.40),
                        *corners([(0.14, 0.6)]),
                    ]
                ),
                cloth,
                "accent",
                inside=True,
                depth=0.04,
            )
        )
    elif style == "vintage":
        parts += stitches([(0.30, 0.10), (0.33, 0.30), (0.45, 0.36), (0.62, 0.40), (0.70, 0.47)])
        parts += stitches([(0.03, 0.22), (0.12, 0.30), (0.15, 0.47)])
    else:
        parts.append(seam([(0.30, 0.09), (0.33, 0.30), (0.40, 0.48)]))
        parts.append(seam([(0.03, 0.25), (0.11, 0.32), (0.13, 0.48)]))
        if rng.random() < 0.6:
            cap = curve(
                [
                    *corners([(0.80, 0.2)]),
                    (0.77, 0.36),
                    *corners([(0.82, 0.55), (1.1, 0.55), (1.1, 0.2)]),
                ]
            )
            parts.append(Part(cap, "rubber", "sole", inside=True, depth=0.08))
    for n in range(4):
        x, y = 0.385 + n * 0.068, 0.055 + n * 0.048 - collar * 0.25 * (1 - n / 4)
        lace = tube([(x - 0.035, y + 0.075), (x, y + 0.02), (x + 0.035, y - 0.02)], 0.024)
        parts.append(Part(lace, "fabric", "thread", depth=0.012, shadow=0.45))
    tread = "gum" if style == "vintage" else "sole"
    parts.append(Part(sole, "rubber", tread, depth=0.05, shadow=0.3))
    if style == "sporty":
        parts.append(
            Part(
                tube([(-0.02, 0.535), (0.4, 0.555), (1.0, 0.515)], 0.022),
                "rubber",
                "accent",
                inside=True,
            )
        )
        for n in range(12):
            x = 0.03 + n * 0.08
            parts.append(seam([(x, 0.47 + thick * 0.75), (x, 0.7)], 0.02, 0.45))
    else:
        parts.append(
            seam(
                [
                    (-0.02, 0.455 + thick * 0.8),
                    (0.5, 0.465 + thick * 0.8),
                    (1.0, 0.45 + thick * 0.75),
                ],
                0.012,
                0.3,
            )
        )
    return parts


def pump(rng: np.random.Generator) -> list[Part]:
    """Return a shoe with a high heel."""
    heel = rng.uniform(0.26, 0.44)
    thin = rng.uniform(0.035, 0.08)
    top = 0.40 - heel

    def arch(x: float) -> float:
        t = min(max((0.76 - x) / 0.56, 0.0), 1.0)
        return 0.475 - (0.205 - top) * t * t * (3 - 2 * t)

    upper = curve(
        [
            *corners([(0.03, top - 0.10)]),
            (0.10, top + 0.08),
            (0.22, top + 0.17),
            (0.40, arch(0.40) - 0.11),
            (0.54, arch(0.54) - 0.125),
            (0.65, arch(0.65) - 0.155),
            *corners([(0.74, 0.28)]),
            (0.86, 0.34),
            (0.97, 0.425),
            *corners([(1.0, 0.462)]),
            (0.85, 0.477),
            *((x, arch(x)) for x in (0.72, 0.60, 0.48, 0.36, 0.26)),
            (0.20, top + 0.27),
            *corners([(0.02, top + 0.20)]),
            (-0.01, top + 0.06),
        ]
    )
    spike = curve(
        [
            *corners([(0.0, top + 0.13)]),
            (0.10, top + 0.20),
            *corners([(0.21, top + 0.26)]),
            (0.12, top + 0.30),
            (0.06 + thin, 0.38),
            *corners([(0.045 + thin, 0.495), (0.045, 0.495)]),
            (0.035, 0.36),
        ]
    )
    under = tube([(x, arch(x) + 0.004) for x in (0.17, 0.30, 0.42, 0.54, 0.66, 0.80, 0.98)], 0.035)
    lining = curve(
        [
            *corners([(0.035, top - 0.095)]),
            (0.13, top - 0.02),
            (0.30, arch(0.3) - 0.16),
            (0.50, arch(0.5) - 0.18),
            *corners([(0.735, 0.275)]),
            (0.54, arch(0.54) - 0.08),
            (0.30, arch(0.30) - 0.06),
            (0.12, top + 0.15),
        ]
    )
    parts = [
        Part(lining, "leather", "cream", tone=0.75, depth=0.04),
        Part(spike, "leather", patterned=False, tone=0.9, depth=0.03),
        Part(under, "leather", "dark", depth=0.02),
        Part(upper, "leather", depth=0.07),
    ]
    if rng.random() < 0.5:
        for side in (-1, 1):
            wing = curve(
                [
                    (0.80, 0.32),
                    (0.80 + side * 0.07, 0.27 + side * 0.02),
                    (0.80 + side * 0.08, 0.36 + side * 0.02),
                ]
            )
            parts.append(Part(wing, "fabric", patterned=False, depth=0.02, tone=0.95))
    return parts
