"""Say where in the space of the texts a product should lie, from what is known of it.

Training leads an image towards texts, but not all the way: colours that it confuses stay close to
each other. So each known value moves the target along the direction in which its text differs from
those of the other values of the same attribute. One weight an attribute: with whole captions
instead, what mends the colours spoils the patterns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tools.imgrec_mini.captions import CATEGORY_WORDS, Claim, Facts
from tools.imgrec_mini.encode import encode_texts
from tools.imgrec_mini.projection import Matrix, Views

# Beside 1 for where training puts the image.
WEIGHTS = {"category": 3.0, "color": 2.5, "pattern": 1.0, "style": 1.5}


def towards_facts(
    trained: Any, tokenizer: Any, views: Views, facts: Sequence[Facts], questions: Sequence[Claim]
) -> Views:
    """Move the words of each product towards what is known of it.

    Args:
        facts: of each product; what they leave out moves nothing.
        questions: one claim for each value of each attribute.
    """
    words = views.words.copy()
    for attribute, weight in WEIGHTS.items():
        values = sorted({claim[attribute] for claim in questions if attribute in claim})
        for category in sorted({each["category"] for each in facts}):
            rows = [
                row
                for row, each in enumerate(facts)
                if attribute in each and each["category"] == category
            ]
            if rows:
                told = directions(trained, tokenizer, attribute, values, category)
                numbers = [values.index(facts[row][attribute]) for row in rows]
                words[rows] += np.float32(weight) * told[numbers]
    return replace(views, words=words / np.linalg.norm(words, axis=1, keepdims=True))


@torch.no_grad()
def directions(
    trained: Any, tokenizer: Any, attribute: str, values: Sequence[str], category: str
) -> Matrix:
    """Return a unit vector a value (n, d): how its text differs from the mean of all values."""
    means = []
    for value in values:
        texts = (
            [f"a photo of a {word}" for word in CATEGORY_WORDS.get(value, (value,))]
            if attribute == "category"
            else [f"a photo of a {value} {category}", f"a {value} product", f"{value} {category}"]
        )
        mean = encode_texts(trained, tokenizer, texts).numpy().mean(axis=0)
        means.append(mean / np.linalg.norm(mean))
    apart = np.stack(means) - np.mean(means, axis=0)
    return np.asarray(apart / np.linalg.norm(apart, axis=1, keepdims=True), np.float32)
