"""The parts of skirts, shorts and trousers, seen from above as they lie flat."""

from __future__ import annotations

import numpy as np

from tools.drawing.part import (
    Part,
    corners,
    curve,
    ellipse,
    gleam_fold,
    gloom,
    mirrored,
    seam,
    sided,
    stitches,
    symmetric,
    trim,
    tube,
)


def skirt(style: str, rng: np.random.Generator) -> list[Part]:
    """Return a skirt: pleated, straight if it is elegant."""
    long = rng.uniform(0.55, 0.75)
    flare = 0.24 if style == "elegant" else rng.uniform(0.38, 0.48)
    hip = 0.25 if style == "elegant" else 0.26
    body = symmetric(
        [
            (0.0, 0.015),
            *corners([(0.18, 0.0)]),
            (hip - 0.01, 0.16),
            *((hip, 0.22) for _ in range(style == "elegant")),
            *corners([(flare, long - 0.03)]),
            (flare * 0.7, long),
            (flare * 0.4, long - 0.012),
            (0.0, long + 0.01),
        ]
    )
    back = Part(
        curve([(-0.18, 0.0), (0.0, -0.02), (0.18, 0.0), (0.0, 0.03)]), patterned=False, tone=0.55
    )
    parts = [back, Part(body, depth=0.11)]
    folds = 2 if style == "elegant" else int(rng.integers(5, 9))
    for n in range(folds):
        x = ((n + 0.5) / folds - 0.5) * 2
        line = [(x * 0.16, 0.08), (x * (flare + 0.16) / 2, long * 0.5), (x * flare, long + 0.02)]
        parts.append(gloom(tube(line, 0.012, 0.045), 0.30 if style != "elegant" else 0.15, 0.010))
        parts.append(gleam_fold([(a + 0.022, b) for a, b in line]))
    band = tube([(-0.2, 0.025), (0.0, 0.042), (0.2, 0.025)], 0.062)
    own = "accent" if style == "sporty" else "main"
    parts.append(Part(band, "fabric", own, patterned=False, inside=True, depth=0.02, tone=0.9))
    if style == "sporty":
        parts.append(
            trim([(-0.5, long - 0.05), (0.0, long - 0.025), (0.5, long - 0.05)], 0.03, True)
        )
    elif style == "vintage":
        parts += [
            Part(ellipse(0, 0.04 + n * 0.1, 0.016, 0.016), "plastic", "thread", depth=0.01)
            for n in range(5)
        ]
    elif style == "elegant":
        parts.append(seam([(0.1, long), (0.09, long * 0.72)], 0.012, 0.6))
    else:
        parts += stitches([(-0.42, long - 0.05), (0.0, long - 0.03), (0.42, long - 0.05)])
    return parts


def shorts(style: str, rng: np.random.Generator) -> list[Part]:
    """Return shorts."""
    return _legs(
        style, rng, long=float(rng.uniform(0.40, 0.52)), hem=float(rng.uniform(0.205, 0.245))
    )


def trousers(style: str, rng: np.random.Generator) -> list[Part]:
    """Return long trousers."""
    hem = {"elegant": 0.10, "sporty": 0.095, "vintage": 0.19}.get(style, 0.13)
    return _legs(
        style, rng, long=float(rng.uniform(1.05, 1.2)), hem=hem + float(rng.uniform(0, 0.02))
    )


def _legs(style: str, rng: np.random.Generator, long: float, hem: float) -> list[Part]:
    spread = rng.uniform(0.02, 0.05) + (0.01 if long < 0.6 else 0)
    parts: list[Part] = [
        Part(
            curve([(-0.19, 0.0), (0.0, -0.02), (0.19, 0.0), (0.0, 0.04)]),
            patterned=False,
            tone=0.55,
        )
    ]
    rise = 0.36 if long > 0.6 else 0.27
    thigh = (0.25 + spread + hem) / 2 + (0.02 if long > 0.6 else 0.0)
    knee = 0.62 if long > 0.6 else (rise + long) / 2
    for side in (-1, 1):
        leg = mirrored(
            [
                *corners([(-0.004, 0.02), (0.19, 0.0)]),
                (0.225, 0.15),
                (0.25, 0.28),
                (thigh, knee),
                *corners([(spread + hem, long)]),
                ((spread + hem + spread) / 2, long + 0.012),
                *corners([(spread, long)]),
                (spread * 0.7 + 0.01, knee),
                *corners([(0.012, rise), (-0.004, rise - 0.02)]),
            ],
            side,
        )
        parts.append(Part(leg, depth=0.075, shadow=0.2))
        middle = (spread + hem / 2, long)
        if style == "elegant":
            parts.append(
                gloom(tube(sided([(0.12, 0.12), (0.13, 0.5), middle], side), 0.012), 0.30, 0.006)
            )
        if style == "sporty":
            out = [
                (0.205, 0.0),
                (0.232, 0.2),
                (thigh - 0.02, knee),
                (spread + hem - 0.025, long + 0.02),
            ]
            parts.append(trim(sided(out, side), 0.035, True))
        else:
            pocket = sided([(0.11, 0.065), (0.14, 0.14), (0.24, 0.17)], side)
            parts += stitches(pocket) if style in ("casual", "vintage") else [seam(pocket)]
        parts.append(
            gloom(
                tube(sided([(0.02, rise - 0.02), (0.10, rise), (0.17, rise - 0.06)], side), 0.02),
                0.22,
                0.012,
            )
        )
        fold = sided(
            [
                (spread - 0.02, long - 0.045),
                (spread + hem / 2, long - 0.03),
                (spread + hem + 0.03, long - 0.045),
            ],
            side,
        )
        parts += (
            [seam(fold, 0.008)]
            if style != "sporty"
            else [Part(tube(fold, 0.05), "knit", "dark", inside=True, depth=0.02)]
        )
    band = curve(
        [
            *corners([(-0.195, 0.0)]),
            (0.0, 0.018),
            *corners([(0.195, 0.0), (0.203, 0.055)]),
            (0.0, 0.075),
            *corners([(-0.203, 0.055)]),
        ]
    )
    parts.append(
        Part(
            band,
            "fabric",
            "dark" if style == "sporty" else "main",
            patterned=False,
            depth=0.02,
            tone=0.9,
        )
    )
    parts.append(
        Part(
            tube([(0.0, 0.07), (0.0, 0.2), (0.004, rise - 0.02)], 0.005),
            paint="shade",
            alpha=0.4,
            shadow=0,
        )
    )
    if style == "sporty":
        parts += [
            Part(
                tube([(s * 0.012, 0.05), (s * 0.04, 0.12), (s * 0.03, 0.17)], 0.012),
                paint="cream",
                depth=0.01,
            )
            for s in (-1, 1)
        ]
    elif style == "elegant":
        parts.append(
            Part(
                tube([(-0.2, 0.028), (0.0, 0.045), (0.2, 0.028)], 0.036),
                "leather",
                "dark",
                inside=True,
                depth=0.02,
            )
        )
        parts.append(
            Part(
                ellipse(0, 0.045, 0.025, 0.022),
                "metal",
                "metal",
                depth=0.02,
                holes=(ellipse(0, 0.045, 0.013, 0.011),),
            )
        )
    else:
        parts.append(Part(ellipse(0, 0.044, 0.014, 0.014), "metal", "metal", depth=0.01))
        parts += [
            Part(tube([(x, 0.0), (x, 0.075)], 0.02), patterned=False, depth=0.01, tone=0.85)
            for x in (-0.13, 0.13)
        ]
    return parts
