"""Measure a model folder as the product uses it: load_clip, white squares, cosine similarity."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.embed.clip import Clip, Vectors, load_clip
from pipeline.preprocess.prepare import Preprocessing, prepare
from pipeline.settings import Settings
from tools.imgrec_mini.captions import PHOTO_CATEGORIES
from tools.imgrec_mini.encode import fold
from tools.imgrec_mini.examples import Example, draw_examples, read_photos
from tools.imgrec_mini.same_photo import color_distance, distractors, measure_same

Labels = NDArray[np.str_]

SQUARE = Preprocessing((224, 224), 0.0, (255, 255, 255), None)
UNSEEN_SEED = 1_000_003  # drawn products of no training
UNSEEN_QUERIES, UNSEEN_CATALOGUE = 300, 900


def embed(clip: Clip, images: Sequence[Image.Image], batch: int = 64) -> Vectors:
    """Embed pictures of any size as the product does without background removal."""
    squares = [prepare(image, SQUARE, None).image for image in images]
    starts = range(0, len(squares), batch)
    return np.concatenate([clip.embed_images(squares[at : at + batch]) for at in starts])


def precision_at(
    k: int, queries: Vectors, labels: Labels, catalogue: Vectors, catalogue_labels: Labels
) -> float:
    """Return the share of the first k matches that have their query's label."""
    best = np.argsort(-(queries @ catalogue.T), axis=1)[:, :k]
    return float((catalogue_labels[best] == labels[:, None]).mean())


def zero_shot(clip: Clip, vectors: Vectors, labels: Labels, prompt: str) -> float:
    """Return the share of pictures whose own label's prompt is the nearest."""
    names = sorted(set(labels.tolist()))
    texts = clip.embed_texts([prompt.format(name) for name in names])
    return float((np.array(names)[(vectors @ texts.T).argmax(axis=1)] == labels).mean())


def jpeg(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=40)
    return Image.open(buffer).convert("RGB")


def crop(image: Image.Image) -> Image.Image:
    """Cut a tenth off each dimension."""
    left, top = round(image.width * 0.05), round(image.height * 0.05)
    return image.crop((left, top, image.width - left, image.height - top))


def mirror(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


COPIES: tuple[Callable[[Image.Image], Image.Image], ...] = (jpeg, crop, mirror)


def copies_found(
    clip: Clip, images: Sequence[Image.Image], others: Vectors, own: Vectors
) -> dict[str, float]:
    """Return how often a changed copy finds its original first among originals and others."""
    catalogue, here = np.concatenate([own, others]), np.arange(len(own))
    return {
        f"{change.__name__}_found": float(
            (
                (embed(clip, [change(image) for image in images]) @ catalogue.T).argmax(axis=1)
                == here
            ).mean()
        )
        for change in COPIES
    }


def labels_of(examples: Sequence[Example], name: str) -> Labels:
    return np.array([example.facts[name] for example in examples])


def measure_photos(
    clip: Clip, catalogue: Sequence[Example], queries: Sequence[Example]
) -> dict[str, float]:
    """Measure with real photos: queries against a catalogue that holds none of them."""
    ours, theirs = (embed(clip, [e.image for e in part]) for part in (queries, catalogue))
    labels, catalogue_labels = labels_of(queries, "category"), labels_of(catalogue, "category")
    folders = {category: folder for folder, category in PHOTO_CATEGORIES.items()}
    names = np.array([folders.get(label, label) for label in labels.tolist()])
    return {
        "P@1": precision_at(1, ours, labels, theirs, catalogue_labels),
        "P@5": precision_at(5, ours, labels, theirs, catalogue_labels),
        "zero_shot": zero_shot(clip, ours, names, "a photo of a {}"),
        "color_distance": color_distance(queries, ours, catalogue, theirs),
        **copies_found(clip, [e.image for e in queries], theirs, ours),
        **measure_same(partial(embed, clip), queries, ours, theirs),
    }


def measure_distractors(
    clip: Clip, catalogue: Sequence[Example], queries: Sequence[Example]
) -> dict[str, float]:
    """Measure how often a changed photo finds its original among 10,000 other images."""
    embed_all = partial(embed, clip)
    others = distractors(catalogue, embed_all, embed_all([e.image for e in catalogue]))
    return measure_same(embed_all, queries, embed_all([e.image for e in queries]), others)


def measure_drawn(clip: Clip, cache: Path | None = None) -> dict[str, float]:
    """Measure with drawn products that no training has seen."""
    examples = draw_examples(UNSEEN_SEED, UNSEEN_QUERIES + UNSEEN_CATALOGUE, cache)
    queries = examples[:UNSEEN_QUERIES]
    vectors = embed(clip, [example.image for example in examples])
    ours, theirs = vectors[:UNSEEN_QUERIES], vectors[UNSEEN_QUERIES:]
    categories, colors = labels_of(examples, "category"), labels_of(examples, "color")
    own = slice(UNSEEN_QUERIES)
    rest = slice(UNSEEN_QUERIES, None)
    return {
        "P@1": precision_at(1, ours, categories[own], theirs, categories[rest]),
        "P@5": precision_at(5, ours, categories[own], theirs, categories[rest]),
        "P@5_color": precision_at(5, ours, colors[own], theirs, colors[rest]),
        "zero_shot_category": zero_shot(clip, vectors, categories, "a photo of a {}"),
        **{
            f"zero_shot_{name}": zero_shot(
                clip, vectors, labels_of(examples, name), "a photo of a {} product"
            )
            for name in ("color", "pattern", "style")
        },
        **copies_found(clip, [e.image for e in queries], theirs, ours),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="models/imgrec-mini", help="model folder or hub name")
    parser.add_argument("--photos", type=Path, help="folder with train/ and validation/")
    parser.add_argument(
        "--distractors", action="store_true", help="also find photos among 10,000 distractors"
    )
    parser.add_argument("--cache", type=Path, help="file to keep the drawn products in")
    options = parser.parse_args()
    settings = Settings(embedding_model=options.model, cpu_threads=os.cpu_count() or 1)
    clip = load_clip(settings)
    fold(clip._model)  # minutes less; the vectors stay what they are
    report = {"drawn": measure_drawn(clip, options.cache)}
    if options.photos:
        catalogue, queries = (
            read_photos(options.photos / part) for part in ("train", "validation")
        )
        report["photos"] = measure_photos(clip, catalogue, queries)
        if options.distractors:
            report["among 10,000"] = measure_distractors(clip, catalogue, queries)
    json.dump(report, sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
