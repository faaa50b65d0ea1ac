"""Write folders of drawn products: a shop's catalogue, and labelled pictures to train on."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tools.drawing.picture import draw
from tools.drawing.product import CATEGORIES, COLORS, PATTERNS, Product, price, sample_of, styles_of
from tools.drawing.wording import slug, title

COLUMNS = ("product_id", "title", "category", "color", "style", "price")
SIZE = 384
QUALITY = 85
# Attributes are trained where they show: on cloth, in four styles.
TRAINED = ("shoe", "dress", "bag")


def write_catalogue(
    folder: Path | str, count: int = 200, seed: int = 0, size: int = SIZE
) -> list[Product]:
    """Write folder/<category>/<slug>.jpg and folder/products.csv; return what was drawn."""
    root = Path(folder)
    products = balanced(count, seed)
    numbers: Counter[str] = Counter()
    rows = []
    for product in products:
        name = slug(product)
        numbers[name] += 1
        product_id = f"{product.category}/{name}-{numbers[name]:02d}"
        _write(product, root / f"{product_id}.jpg", size)
        facts = (title(product), product.category, product.color, product.style)
        rows.append((product_id, *facts, f"{price(product):.2f}"))
    with (root / "products.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(sorted(rows))
    return products


def balanced(count: int, seed: int) -> list[Product]:
    """Choose products so that categories, and colours, differ in number by one at most."""
    rng = np.random.default_rng(seed)
    colors = [COLORS[n % len(COLORS)] for n in range(count)]
    # 18 categories and 11 colours share no factor, so counting both up meets every pair.
    return [sample_of(CATEGORIES[n % len(CATEGORIES)], colors[n], rng) for n in range(count)]


ATTRIBUTES = ("color", "pattern", "style")


def write_training(
    folder: Path | str,
    per_class: int = 12,
    seed: int = 1,
    categories: Sequence[str] = TRAINED,
    size: int = 224,
    attributes: Sequence[str] = ATTRIBUTES,
) -> int:
    """Write folder/<category>/<attribute>/<class>/NN.jpg; return how many pictures."""
    root, rng, written = Path(folder), np.random.default_rng(seed), 0
    for category in categories:
        classes = {"color": COLORS, "pattern": PATTERNS, "style": styles_of(category)}
        for attribute in attributes:
            for value in classes[attribute]:
                for n in range(per_class):
                    product = sample_of(category, str(rng.choice(COLORS)), rng)
                    chosen = _with(product, attribute, value)
                    _write(chosen, root / category / attribute / value / f"{n + 1:02d}.jpg", size)
                    written += 1
    return written


def _with(product: Product, attribute: str, value: str) -> Product:
    if attribute == "color":
        return replace(product, color=value)
    if attribute == "pattern":
        return replace(product, pattern=value)
    return replace(product, style=value)


def _write(product: Product, file: Path, size: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    # Under another name until it is whole: a picture cut short would look like a product.
    part = file.with_suffix(".part")
    draw(product, size).save(part, "JPEG", quality=QUALITY, optimize=True)
    part.replace(file)
