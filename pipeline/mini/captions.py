"""Say true things about a product, in varied wording, and tell which texts are true of which.

A `Fact` set is what is known of a picture; a `Claim` is what a text says. Both map an attribute
("category", "color", "pattern", "style") to its canonical value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Facts = Mapping[str, str]

# The class folders of the photos -> the canonical category.
PHOTO_CATEGORIES = {"shoes": "shoe"}

# Canonical value -> what people call it; the first is said most often.
CATEGORY_WORDS: dict[str, tuple[str, ...]] = {
    "dress": ("dress", "gown", "sundress", "frock"),
    "hat": ("hat", "cap", "beanie", "headwear"),
    "longsleeve": (
        "longsleeve",
        "long sleeve",
        "long sleeve top",
        "long sleeved top",
        "sweater",
        "sweatshirt",
        "pullover",
        "jumper",
    ),
    "outwear": ("outwear", "outerwear", "jacket", "coat", "hoodie", "parka"),
    "pants": ("pants", "trousers", "jeans", "leggings", "slacks"),
    "shirt": ("shirt", "blouse", "button up shirt", "dress shirt"),
    "shoe": ("shoe", "sneaker", "boot", "sandal", "footwear", "trainer", "loafer"),
    "shorts": ("shorts", "bermudas", "short pants"),
    "skirt": ("skirt", "miniskirt"),
    "t-shirt": ("t-shirt", "tee", "short sleeve top", "undershirt"),
}
PLURALS = {"shoe": "shoes", "hat": "hats", "dress": "dresses"}
