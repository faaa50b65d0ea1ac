"""Make an image's category count more than its colour when two images are compared.

Training teaches both alike, so where a catalogue has few mugs, the nearest to a red mug are red
sunglasses. What a customer asks for by a picture of a mug are mugs.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from tools.imgrec_mini.encode import encode_texts

# On data/products, P@5 by category is 0.78 at 1, 0.93 at 1.25, 0.985 at 1.5, 1.0 from 2 on, where
# zero-shot colour falls from 0.985 to 0.975.
FACTOR = 1.5
LEAST = 0.01  # of the largest singular value: less is rounding, no direction

log = logging.getLogger("tools.imgrec_mini")


@torch.no_grad()
def emphasise(model: Any, tokenizer: Any, categories: Sequence[str]) -> None:
    """Stretch image embeddings by `FACTOR` along the directions in which category names differ.

    The map I + (FACTOR - 1) B'B, with B the orthonormal (r, d) basis of those directions, goes into
    the visual projection; texts stay as they are.
    """
    texts = encode_texts(model, tokenizer, [f"a photo of a {name}" for name in categories])
    _, sizes, directions = torch.linalg.svd(texts - texts.mean(dim=0), full_matrices=False)
    basis = directions[sizes > LEAST * sizes[0]]  # (r, d)
    projection = model.visual_projection
    for parameter in projection.parameters():  # weight (d, features), and a bias (d,) if it has one
        parameter += (FACTOR - 1) * (basis.T @ (basis @ parameter))
    log.info("%d category directions count %.1f times", len(basis), FACTOR)
