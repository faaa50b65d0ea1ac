"""Drawn products for tests on the bundled model, which tells them apart by kind and by colour."""

from __future__ import annotations

from pathlib import Path

from tools.drawing import COLORS, Product, draw

MINI = Path(__file__).parent.parent / "models" / "imgrec-mini"
KINDS = ("chair", "mug", "shoe", "watch")
SEED = 31_337  # not one of training's
SIDE = 160  # pixels; drawn in 20 ms


def draw_one(file: Path, kind: str, color: str, seed: int = SEED) -> Path:
    """Draw a plain product; another seed is another piece of the same kind and colour."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draw(Product(kind, color, "plain", "casual", seed), SIDE).save(file, quality=92)
    return file


def draw_range(folder: Path, count: int) -> list[str]:
    """Draw `count` products, at most 44, no two of one kind and colour; return their paths."""
    # 4 kinds and 11 colours share no factor, so counting both up meets every pair.
    assert count <= len(KINDS) * len(COLORS)
    names = []
    for number in range(count):
        kind, color = KINDS[number % len(KINDS)], COLORS[number % len(COLORS)]
        draw_one(folder / kind / f"{color}.jpg", kind, color, SEED + number)
        names.append(f"{kind}/{color}.jpg")
    return sorted(names)


def kinds_of(matches: list[dict[str, object]]) -> list[str]:
    """Return the kind of each match of a query."""
    return [str(match["filename"]).split("/")[0] for match in matches]
