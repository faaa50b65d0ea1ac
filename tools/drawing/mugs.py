"""The parts of mugs and teapots."""

from __future__ import annotations

import numpy as np

from tools.drawing.part import Part, bowl, corners, curve, ellipse, gleam, gloom, symmetric, tube


def mug(style: str, rng: np.random.Generator) -> list[Part]:
    """Return a mug, a bowl-shaped cup if it is elegant; the handle points right."""
    wide = rng.uniform(0.29, 0.34)
    tall = rng.uniform(0.58, 0.78)
    foot = {"elegant": 0.17, "vintage": 0.30}.get(style, wide * rng.uniform(0.86, 1.0))
    oval = wide * 0.26
    belly = wide * (1.02 if style != "elegant" else 0.90)
    body = symmetric(
        [
            *corners([(wide, 0.0)]),
            (wide, 0.06),
            (belly, tall * 0.55),
            (max(foot, belly * 0.8) if style == "elegant" else foot + 0.005, tall * 0.86),
            *corners([(foot, tall)]),
            *bowl(foot, tall, oval * 0.75),
        ]
    )
    size = rng.uniform(0.19, 0.24)
    high, low = tall * 0.16, tall * (0.78 if style != "elegant" else 0.68)
    thick = 0.075 if style != "elegant" else 0.045
    handle = tube(
        [
            (wide * 0.9, high),
            (wide + size * 0.75, high - 0.02),
            (wide + size, (high + low) / 2),
            (wide + size * 0.7, low),
            (belly * 0.85, low + 0.01),
        ],
        thick,
    )
    parts = [
        Part(handle, "ceramic", patterned=False, depth=0.03),
        Part(body, "ceramic", depth=0.17, bend=0.09),
    ]
    parts.append(
        gleam(
            tube(
                [(-wide * 0.72, 0.14), (-belly * 0.72, tall * 0.5), (-belly * 0.66, tall * 0.8)],
                0.05,
            ),
            0.5,
            0.012,
        )
    )
    parts.append(
        gloom(
            tube([(wide * 0.85, 0.08), (belly * 0.85, tall * 0.6), (foot * 0.8, tall)], 0.14),
            0.22,
            0.05,
        )
    )
    if style == "vintage":
        parts.append(
            Part(_hoop(wide, 0.10, oval, 0.035), "ceramic", "cream", inside=True, depth=0.02)
        )
        parts.append(
            Part(_hoop(wide, tall - 0.05, oval, 0.035), "ceramic", "cream", inside=True, depth=0.02)
        )
    if style == "elegant":
        parts.append(
            Part(_hoop(wide, 0.035, oval, 0.02), "metal", "metal", inside=True, depth=0.01)
        )
    rim = "cream" if style == "vintage" else "main"
    parts.append(
        Part(ellipse(0, 0, wide, oval), "ceramic", rim, patterned=False, depth=0.02, shadow=0)
    )
    parts.append(
        Part(
            ellipse(0, 0.006, wide * 0.93, oval * 0.88),
            "ceramic",
            "sole",
            patterned=False,
            depth=0.03,
            tone=0.72,
            shadow=0,
        )
    )
    if rng.random() < 0.7:
        parts.append(
            Part(
                ellipse(0, 0.06, wide * 0.85, oval * 0.72),
                "glass",
                "walnut",
                inside=True,
                tone=0.75,
                depth=0.02,
            )
        )
    return parts


def teapot(style: str, rng: np.random.Generator) -> list[Part]:
    """Return a teapot; the spout points left."""
    wide = rng.uniform(0.34, 0.39)
    tall = rng.uniform(0.48, 0.56) if style != "elegant" else rng.uniform(0.58, 0.66)
    mouth = rng.uniform(0.15, 0.18)
    foot = rng.uniform(0.17, 0.22)
    body = symmetric(
        [
            *corners([(mouth, 0.0)]),
            (wide * 0.78, tall * 0.16),
            (wide, tall * 0.52),
            (wide * 0.80, tall * 0.86),
            *corners([(foot, tall)]),
            *bowl(foot, tall, 0.03),
        ]
    )
    tip = rng.uniform(0.02, 0.08)
    spout = curve(
        [
            *corners([(-wide * 0.80, tall * 0.40)]),
            (-wide - 0.10, tall * 0.30),
            *corners([(-wide - 0.19, tip), (-wide - 0.25, tip + 0.035)]),
            (-wide - 0.17, tall * 0.55),
            *corners([(-wide * 0.72, tall * 0.80)]),
        ]
    )
    grip = tube(
        [
            (wide * 0.72, tall * 0.18),
            (wide + 0.10, tall * 0.08),
            (wide + 0.20, tall * 0.36),
            (wide + 0.12, tall * 0.66),
            (wide * 0.80, tall * 0.78),
        ],
        0.055,
    )
    dome = rng.uniform(0.07, 0.12)
    lid = symmetric(
        [(0.0, -dome), (mouth * 0.6, -dome * 0.8), *corners([(mouth * 1.06, 0.012)]), (0.0, 0.05)]
    )
    parts = [
        Part(spout, "ceramic", patterned=False, depth=0.06),
        Part(grip, "ceramic", "wood" if style == "casual" else "main", patterned=False, depth=0.03),
        Part(body, "ceramic", depth=0.19, bend=0.06),
        gleam(ellipse(-wide * 0.45, tall * 0.30, 0.055, 0.085), 0.6, 0.02),
        gloom(
            tube([(wide * 0.85, tall * 0.3), (wide * 0.75, tall * 0.8), (0.0, tall)], 0.10),
            0.2,
            0.04,
        ),
    ]
    if style == "vintage":
        parts.append(
            Part(_hoop(wide, tall * 0.10, 0.05, 0.03), "ceramic", "cream", inside=True, depth=0.02)
        )
        parts.append(
            Part(_hoop(wide, tall * 0.78, 0.05, 0.03), "ceramic", "cream", inside=True, depth=0.02)
        )
    if style == "elegant":
        parts.append(
            Part(_hoop(wide, tall * 0.90, 0.04, 0.016), "metal", "metal", inside=True, depth=0.01)
        )
    parts.append(Part(lid, "ceramic", patterned=False, depth=0.06))
    if style == "elegant":
        parts.append(
            Part(
                tube([(-mouth, 0.015), (0.0, 0.04), (mouth, 0.015)], 0.016),
                "metal",
                "metal",
                depth=0.01,
            )
        )
    knob = {"elegant": "metal", "casual": "wood"}.get(style, "main")
    parts.append(
        Part(
            ellipse(0, -dome - 0.025, 0.042, 0.038),
            "metal" if style == "elegant" else "ceramic",
            knob,
            patterned=False,
            depth=0.03,
        )
    )
    return parts


def _hoop(
    wide: float, y: float, oval: float, width: float
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    t = np.linspace(0, np.pi, 9)
    return tube([(-wide * 1.03 * float(np.cos(a)), y + oval * float(np.sin(a))) for a in t], width)
