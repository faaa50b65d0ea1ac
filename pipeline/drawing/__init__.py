"""Draw product pictures whose category, colour, pattern and style are known."""

from pipeline.drawing.catalogue import write_catalogue, write_training
from pipeline.drawing.picture import draw
from pipeline.drawing.product import (
    CATEGORIES,
    COLORS,
    PATTERNS,
    STYLES,
    Product,
    price,
    sample_product,
)
from pipeline.drawing.wording import caption, captions, title

__all__ = [
    "CATEGORIES",
    "COLORS",
    "PATTERNS",
    "STYLES",
    "Product",
    "caption",
    "captions",
    "draw",
    "price",
    "sample_product",
    "title",
    "write_catalogue",
    "write_training",
]
