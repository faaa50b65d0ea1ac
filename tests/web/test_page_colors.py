"""Contrast of the page's colors, WCAG 2 AA, light and dark."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CSS = (Path(__file__).parents[2] / "web" / "static" / "page.css").read_text()
LIGHT, DARK = (dict(re.findall(r"--([\w-]+): (#\w+)", css)) for css in CSS.split("@media", 2)[:2])
TEXT = [
    *[(ink, ground) for ink in ("ink", "muted", "accent") for ground in ("ground", "surface")],
    *[(ink, ground) for ink in ("ink", "muted", "accent") for ground in ("raised", "accent-soft")],
    *[("ink", "bad-soft"), ("ink", "warn-soft"), ("on-accent", "accent"), ("surface", "bad")],
    *[("bad", "bad-soft"), ("warn", "warn-soft"), ("good", "good-soft"), ("bad", "surface")],
]
EDGES = [("strong-line", "surface"), ("strong-line", "ground"), ("accent", "surface")]


def contrast(first: str, second: str) -> float:
    """Return the ratio of WCAG 2.2, 1 to 21."""

    def luminance(color: str) -> float:
        text = color.lstrip("#")
        digits = "".join(2 * each for each in text) if len(text) == 3 else text
        parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_and_edges_stand_out(scheme: str) -> None:
    colors = LIGHT if scheme == "light" else {**LIGHT, **DARK}
    assert DARK.keys() == {name for name, value in LIGHT.items()}
    for ink, ground in TEXT:
        assert contrast(colors[ink], colors[ground]) >= 4.5, (ink, ground)
    for ink, ground in EDGES:
        assert contrast(colors[ink], colors[ground]) >= 3, (ink, ground)
