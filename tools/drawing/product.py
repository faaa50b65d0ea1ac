"""What a drawn product is: its category and its attributes."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

CATEGORIES = (
    *("shoe", "boot", "bag", "backpack", "t-shirt", "dress", "skirt", "shorts", "trousers", "hat"),
    *("watch", "sunglasses", "mug", "bottle", "teapot", "chair", "sofa", "lamp"),
)
COLORS = (
    *("black", "white", "gray", "red", "orange", "yellow"),
    *("green", "blue", "purple", "pink", "brown"),
)
PATTERNS = ("plain", "striped", "dotted", "checked")
STYLES = ("casual", "sporty", "elegant", "vintage")

# Styles that a shop sells of a category; the others have all four.
CATEGORY_STYLES = {
    "boot": ("casual", "elegant", "vintage"),
    "mug": ("casual", "elegant", "vintage"),
    "teapot": ("casual", "elegant", "vintage"),
    "chair": ("casual", "elegant", "vintage"),
    "sofa": ("casual", "elegant", "vintage"),
    "lamp": ("casual", "elegant", "vintage"),
    "backpack": ("casual", "sporty", "vintage"),
    "shorts": ("casual", "sporty", "vintage"),
}
# Things whose coloured part is too small to carry a pattern.
PLAIN_CATEGORIES = frozenset({"sunglasses", "watch"})
PLAIN_SHARE = 0.5
BASE_PRICES = dict(
    zip(
        CATEGORIES,
        (69, 119, 89, 75, 19, 79, 45, 35, 59, 29, 149, 49, 12, 18, 39, 129, 799, 65),
        strict=True,
    )
)
STYLE_FACTORS = {"casual": 1.0, "sporty": 1.15, "elegant": 1.6, "vintage": 1.3}


@dataclass(frozen=True)
class Product:
    """A product; equal products look equal, another seed is another piece of the same kind."""

    category: str
    color: str
    pattern: str
    style: str
    seed: int


def styles_of(category: str) -> tuple[str, ...]:
    """Return the styles in which a category is sold."""
    return CATEGORY_STYLES.get(category, STYLES)


def sample_product(rng: np.random.Generator) -> Product:
    """Choose a plausible product; half of them are plain."""
    category = str(rng.choice(CATEGORIES))
    return sample_of(category, str(rng.choice(COLORS)), rng)


def sample_of(category: str, color: str, rng: np.random.Generator) -> Product:
    """Choose pattern, style and seed for a category and a colour."""
    pattern = "plain"
    if category not in PLAIN_CATEGORIES and rng.random() > PLAIN_SHARE:
        pattern = str(rng.choice(PATTERNS[1:]))
    style = str(rng.choice(styles_of(category)))
    return Product(category, color, pattern, style, int(rng.integers(2**31)))


def generator(product: Product, purpose: str) -> np.random.Generator:
    """Return the random numbers of one purpose: a change in one leaves the others as they were."""
    kind = (product.category, product.color, product.pattern, product.style, purpose)
    # crc32, for hash() of a string differs from process to process.
    return np.random.default_rng([product.seed, zlib.crc32("|".join(kind).encode())])


def price(product: Product) -> float:
    """Return the price in euros: the category's, times the style's factor, +-20 %."""
    spread = generator(product, "price").uniform(0.8, 1.2)
    euros = round(BASE_PRICES[product.category] * STYLE_FACTORS[product.style] * spread)
    return euros - 0.01
