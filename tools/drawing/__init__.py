"""Draw product pictures whose category, colour, pattern and style are known."""

from tools.drawing.catalogue import write_catalogue, write_training
from tools.drawing.picture import draw
from tools.drawing.product import (
    CATEGORIES,
    COLORS,
    PATTERNS,
    STYLES,
    Product,
    price,
    sample_product,
)
from tools.drawing.wording import caption, captions, title

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
