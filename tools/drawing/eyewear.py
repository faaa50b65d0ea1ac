"""The parts of sunglasses."""

from __future__ import annotations

import numpy as np

from tools.drawing.part import Part, box, corners, curve, ellipse, gleam, gloom, tube


def sunglasses(style: str, rng: np.random.Generator) -> list[Part]:
    """Return sunglasses seen from the front, their temples folded back."""
    width = rng.uniform(0.215, 0.235)
    middle = width + 0.045
    frame = {"sporty": 0.040, "elegant": 0.052, "vintage": 0.046}.get(style, 0.048)
    if style == "vintage":
        lens = ellipse(0, 0.01, width * 0.93, width * 0.90)
    elif style == "elegant":
        lens = curve(
            [
                (-width, -0.02),
                (-width * 0.3, -0.14),
                (width * 0.6, -0.175),
                (width * 1.12, -0.215),
                (width * 0.98, 0.02),
                (width * 0.4, 0.155),
                (-width * 0.4, 0.15),
            ]
        )
    elif style == "sporty":
        lens = curve(
            [
                *corners([(-width * 1.02, -0.09)]),
                (0.0, -0.135),
                (width * 1.15, -0.12),
                (width * 1.25, -0.03),
                (width * 0.7, 0.10),
                (-width * 0.4, 0.12),
                (-width * 0.95, 0.04),
            ]
        )
    else:
        lens = curve(
            [
                (-width, -0.10),
                (-width * 0.6, -0.15),
                (width * 0.7, -0.16),
                (width * 1.05, -0.12),
                (width * 0.9, 0.08),
                (width * 0.4, 0.16),
                (-width * 0.4, 0.16),
                (-width * 0.88, 0.08),
            ]
        )
    lens = lens * rng.uniform(0.95, 1.05)
    parts: list[Part] = []
    for side in (-1, 1):
        arm = [
            (side * (middle + width * 0.9), -0.10),
            (side * (middle + width * 1.22), -0.17),
            (side * (middle + width * 1.05), -0.30),
            (side * (middle + width * 0.55), -0.34),
        ]
        parts.append(
            Part(tube(arm, 0.055, 0.032), "plastic", patterned=False, depth=0.02, tone=0.85)
        )
    bridge = tube([(-0.09, -0.05), (0.0, -0.085), (0.09, -0.05)], 0.045)
    metal = style == "vintage"
    parts.append(
        Part(
            bridge,
            "metal" if metal else "plastic",
            "metal" if metal else "main",
            patterned=False,
            depth=0.02,
        )
    )
    for side in (-1, 1):
        own = np.stack([lens[:, 0] * side + side * middle, lens[:, 1]], 1)
        center = own.mean(0)
        rim = center + (own - center) * (1 + frame / width * 1.25)
        parts.append(
            Part(
                own, "glass", "lens", patterned=False, depth=0.06, tone=0.9, shadow=0.2, alpha=0.93
            )
        )
        parts.append(
            gloom(box(side * middle - 0.4, -0.3, side * middle + 0.4, -0.06, 0.01), 0.35, 0.05)
        )
        streak = curve(
            corners(
                [
                    (side * middle - 0.10, 0.16),
                    (side * middle + 0.06, -0.16),
                    (side * middle + 0.12, -0.16),
                    (side * middle - 0.02, 0.16),
                ]
            )
        )
        parts.append(gleam(streak, 0.28, 0.01))
        parts.append(Part(rim, "plastic", patterned=False, depth=0.022, holes=(own,), shadow=0.35))
        x, y = center[0] + side * width * 1.05, -0.10
        if style == "elegant":
            parts += [
                Part(ellipse(x, y - 0.02 + n * 0.03, 0.012, 0.012), "metal", "metal", depth=0.01)
                for n in range(2)
            ]
    if style == "sporty":
        brow = tube(
            [
                (-middle - width * 1.1, -0.135),
                (-middle * 0.6, -0.165),
                (0.0, -0.115),
                (middle * 0.6, -0.165),
                (middle + width * 1.1, -0.135),
            ],
            0.06,
        )
        parts.append(Part(brow, "plastic", patterned=False, depth=0.025))
        parts.append(
            Part(
                tube(
                    [
                        (-middle - width, -0.14),
                        (-middle * 0.6, -0.165),
                        (0.0, -0.115),
                        (middle * 0.6, -0.165),
                        (middle + width, -0.14),
                    ],
                    0.016,
                ),
                "plastic",
                "accent",
                inside=True,
                depth=0.01,
            )
        )
    return parts
