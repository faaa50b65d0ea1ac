"""Measure how often a changed photo finds its original, and how alike in colour matches are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from pipeline.embed.clip import Vectors
from tools.imgrec_mini.augment import WHITE
from tools.imgrec_mini.examples import Example
from tools.imgrec_mini.hard_views import PHOTO_KINDS, hard_view
from tools.imgrec_mini.view_features import central_color

SEED = 7
DISTRACTORS = 10_000
VIEW_SIDE = 192

Embed = Callable[[Sequence[Image.Image]], Vectors]
Change = Callable[[Image.Image, np.random.Generator], Image.Image]


def part(share: float) -> Change:
    """Crop to `share` of each dimension, anywhere."""

    def change(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        width, height = image.width * share, image.height * share
        left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
        return image.crop((round(left), round(top), round(left + width), round(top + height)))

    return change


def smaller(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Put the photo at 60 % of its size on a plain background, anywhere."""
    side = max(image.size)
    gray = rng.uniform(40, 255) + rng.normal(0, 12, 3)
    canvas = Image.new("RGB", (side, side), tuple(np.clip(gray, 0, 255).astype(int).tolist()))
    width, height = round(image.width * 0.6), round(image.height * 0.6)
    corner = int(rng.integers(0, side - width + 1)), int(rng.integers(0, side - height + 1))
    canvas.paste(image.resize((width, height), Image.Resampling.BICUBIC), corner)
    return canvas


def turned(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image.rotate(12, Image.Resampling.BICUBIC, expand=True, fillcolor=WHITE)


CHANGES: dict[str, Change] = {
    "70 %": part(0.7),
    "50 %": part(0.5),
    "smaller": smaller,
    "turned": turned,
}


def measure_same(
    embed: Embed, queries: Sequence[Example], own: Vectors, others: Vectors, prefix: str = "found"
) -> dict[str, float]:
    """Return how often each change of a photo finds it first among the photos and others.

    Args:
        own: the vectors of the unchanged queries.
    """
    catalogue, here = np.concatenate([own, others]), np.arange(len(own))
    report = {}
    for name, change in CHANGES.items():
        rng = np.random.default_rng(SEED)
        vectors = embed([change(each.image, rng) for each in queries])
        report[f"{prefix}_{name}"] = float(((vectors @ catalogue.T).argmax(axis=1) == here).mean())
    return report


def distractors(photos: Sequence[Example], embed: Embed, whole: Vectors) -> Vectors:
    """Return the vectors of `DISTRACTORS` images: the photos, then hard views of them."""
    rng = np.random.default_rng(SEED)
    images = [each.image for each in photos]
    views = []
    for pick in rng.integers(0, len(photos), max(0, DISTRACTORS - len(photos))):
        kind = str(rng.choice(PHOTO_KINDS[1:]))
        views.append(Image.fromarray(hard_view(kind, images[pick], None, images, VIEW_SIDE, rng)))
    return np.concatenate([whole, embed(views)])[:DISTRACTORS]


def color_distance(
    queries: Sequence[Example], own: Vectors, catalogue: Sequence[Example], theirs: Vectors
) -> float:
    """Return how far in colour the 5 nearest of a query's category are, over the category's mean.

    Distances are Euclidean, between the mean Lab colours of the central parts.
    """
    ours, colors = (
        np.stack([central_color(each.image) for each in part]) for part in (queries, catalogue)
    )
    categories = np.array([each.facts["category"] for each in catalogue])
    ratios = []
    for query, color, scores in zip(queries, ours, own @ theirs.T, strict=True):
        same = np.flatnonzero(categories == query.facts["category"])
        away = np.linalg.norm(colors[same] - color, axis=1)
        ratios.append(away[np.argsort(-scores[same])[:5]].mean() / away.mean())
    return float(np.mean(ratios))
