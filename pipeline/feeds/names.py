"""Names of columns, as they are compared."""

from __future__ import annotations

import re
from functools import lru_cache

PRODUCT_ID, IMAGE = "product_id", "image"
FORMATS = ("auto", "google", "shopify", "woocommerce", "csv", "jsonl", "parquet")
# What identifies a product in a plain table, the best name first.
ID_ORDER = (
    PRODUCT_ID,
    "id",
    "sku",
    "handle",
    "item_id",
    "variant_sku",
    "artikelnummer",
    "article_number",
    "reference",
    "ean",
    "gtin",
)
ID_NAMES = frozenset(ID_ORDER)
_OTHER = re.compile(r"[\W_]+")
_PICTURES = re.compile(
    r"(additional_|main_|extra_)?(image|images|picture|pictures|photo|photos|bild|bilder|img)"
    r"(_(url|urls|link|links|src))?(_x_y_z)?(_?[0-9]{1,2})?"
)


@lru_cache(maxsize=1024)
def normalize(name: str) -> str:
    """Return a name without regard to case and punctuation: `Product ID` -> `product_id`."""
    return _OTHER.sub("_", name.casefold()).strip("_")


@lru_cache(maxsize=1024)
def is_picture_column(name: str) -> bool:
    """Tell whether a column holds pictures: `image`, `Image URLs (x,y,z...)`, `picture_url`."""
    return bool(_PICTURES.fullmatch(normalize(name)))
