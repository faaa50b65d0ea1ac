"""Measure a model on products of kinds that training has not seen, found in a cluttered scene.

    python -m tools.imgrec_mini.other_kinds --cutouts DIR --photos DIR --model DIR DIR

The catalogue holds each cut-out on white. A query shows one of them askew, turned, in other light,
among others and before the corner of a photo: how often is the right product first, or among five?
Any folder of PNGs with an alpha channel will do; the model card's are Debian's
tuxpaint-stamps-default, photographs of animals, food, plants, tools and toys.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

from pipeline.embed.clip import Vectors, load_clip
from pipeline.settings import Settings
from tools.imgrec_mini.encode import fold
from tools.imgrec_mini.evaluate import embed
from tools.imgrec_mini.examples import read_photos
from tools.imgrec_mini.hard_views import askew, background, onto_white

SIDE = 224
LEAST_EDGE = 40  # pixels; smaller cut-outs are left out
SCENES = 2  # of each product
NEIGHBOURS = 4
SEED = 31
RESAMPLES = 2000  # of the bootstrap
# Drawings and letters are no photographs; the mirrored ones are the same products again.
LEFT_OUT = ("cartoon", "symbols", "mirror")


def read_cutouts(folder: Path) -> list[Image.Image]:
    """Read RGBA images, cropped to what is opaque, the longer edge at most 288 pixels."""
    cutouts = []
    for file in sorted(folder.rglob("*.png")):
        if any(word in str(file.relative_to(folder)) for word in LEFT_OUT):
            continue
        image = Image.open(file).convert("RGBA")
        image = image.crop(image.getchannel("A").getbbox())
        image.thumbnail((288, 288))
        if min(image.size) >= LEAST_EDGE:
            cutouts.append(image)
    return cutouts


def scene(
    cutouts: Sequence[Image.Image],
    number: int,
    photos: Sequence[Image.Image],
    rng: np.random.Generator,
) -> Image.Image:
    """Return a picture of the cut-out of this number among others, (SIDE, SIDE)."""
    canvas = background(photos, SIDE, rng)
    for pick in rng.integers(len(cutouts), size=NEIGHBOURS):
        neighbour = _scaled(cutouts[pick], rng.uniform(0.4, 0.8))
        _paste(canvas, neighbour, rng.integers(-60, SIDE - 40, 2))
    product = askew(cutouts[number], rng, (0, 0, 0, 0))
    product = product.rotate(rng.uniform(-20, 20), Image.Resampling.BICUBIC, expand=True)
    product = _scaled(product.crop(product.getchannel("A").getbbox()), rng.uniform(0.6, 0.9))
    middle = (SIDE - np.array(product.size)) // 2
    _paste(canvas, product, middle + rng.integers(-20, 21, 2))
    canvas = ImageEnhance.Brightness(canvas).enhance(rng.uniform(0.4, 1.1))
    canvas = ImageEnhance.Color(canvas).enhance(rng.uniform(0.5, 1.1))
    if rng.random() < 0.5:
        canvas = canvas.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 2.5)))
    return canvas


def ranks(queries: Vectors, catalogue: Vectors) -> NDArray[np.int64]:
    """Return how many products are nearer to each query than its own (n,).

    Queries come in rounds, each in the order of the catalogue.
    """
    scores = queries @ catalogue.T
    rows = np.arange(len(queries))
    own = scores[rows, rows % len(catalogue)]
    return np.asarray((scores > own[:, None]).sum(axis=1), np.int64)


def found(places: NDArray[np.int64], products: int) -> dict[str, list[float]]:
    """Return recall at 1 and 5 with the limits of their 95 % intervals, over the products."""
    rng = np.random.default_rng(SEED)
    picks = rng.integers(products, size=(RESAMPLES, products))
    report = {}
    for k in (1, 5):
        share = (places < k).reshape(-1, products).mean(axis=0)
        limits = np.percentile(share[picks].mean(axis=1), (2.5, 97.5))
        report[f"recall@{k}"] = [round(float(each), 3) for each in (share.mean(), *limits)]
    return report


def _scaled(image: Image.Image, share: float) -> Image.Image:
    scale = share * SIDE / max(image.size)
    width, height = (max(8, round(edge * scale)) for edge in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _paste(canvas: Image.Image, image: Image.Image, corner: NDArray[np.int64]) -> None:
    left, top = corner.tolist()
    canvas.paste(image.convert("RGB"), (left, top), image.getchannel("A"))


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure models on kinds of other products.")
    parser.add_argument("--cutouts", type=Path, required=True, help="folder of PNGs with alpha")
    parser.add_argument("--photos", type=Path, required=True, help="class folders: backgrounds")
    parser.add_argument("--model", nargs="+", default=["models/imgrec-mini"], help="model folders")
    options = parser.parse_args()
    cutouts = read_cutouts(options.cutouts)
    photos = [each.image for each in read_photos(options.photos)]
    clean = [Image.fromarray(np.asarray(onto_white(each, SIDE))) for each in cutouts]
    scenes = [
        scene(cutouts, number, photos, np.random.default_rng([SEED, turn, number]))
        for turn in range(SCENES)
        for number in range(len(cutouts))
    ]
    report: dict[str, object] = {"products": len(cutouts)}
    for name in options.model:
        clip = load_clip(Settings(embedding_model=name))
        fold(clip._model)
        report[name] = found(ranks(embed(clip, scenes), embed(clip, clean)), len(cutouts))
    json.dump(report, sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
