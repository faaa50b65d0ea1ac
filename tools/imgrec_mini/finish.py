"""Turn the trained dual encoder into the published one.

The image side goes part of the way back to its backbone, and the visual projection is computed anew
from views of the products of training.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tools.drawing import Product
from tools.imgrec_mini.backbone import build_model
from tools.imgrec_mini.captions import Claim, caption
from tools.imgrec_mini.encode import encode_texts, fold, frozen_part
from tools.imgrec_mini.examples import Example
from tools.imgrec_mini.hard_views import CLEAN, DRAWN_KINDS, PHOTO_KINDS
from tools.imgrec_mini.interpolate import interpolate
from tools.imgrec_mini.projection import WORDS_DIM, Views, fit
from tools.imgrec_mini.text_targets import towards_facts
from tools.imgrec_mini.view_features import collect

DIM = 512  # of the published embedding
PHOTOS, DRAWN = 1000, 500  # of which many views are taken; more change little
CLEAN_DRAWN = 1600  # of which the clean view is taken


def finish(
    trained: Any,
    backbone: Any,
    tokenizer: Any,
    photos: Sequence[Example],
    drawn: Sequence[Example],
    products: Sequence[Product],
    questions: Sequence[Claim],
    frozen_blocks: int,
    sides: tuple[int, int],
    seed: int,
) -> Any:
    """Return the published model.

    Args:
        backbone: MobileNetV2 as it was before training.
        products: what the drawn examples are, in their order.
        frozen_blocks: number of lower blocks that training left alone.
        sides: of a view in training, and of an image in use.
    """
    model = build_model(len(tokenizer), sides[1], DIM).eval()
    model.vision_model.load_state_dict(trained.vision_model.state_dict())
    interpolate(model.vision_model, backbone)
    image_side = copy.deepcopy(model.vision_model)
    fold(image_side)
    lower = frozen_part(trained.vision_model, frozen_blocks)
    backgrounds = [example.image for example in photos]
    view_side, side = sides
    # The last number is the weight of a view in the regression of words: colours and patterns are
    # told of whole products.
    parts = (
        (photos[:PHOTOS], PHOTO_KINDS, view_side, 0.3),
        (drawn[:DRAWN], DRAWN_KINDS, view_side, 0.5),
        (photos, ("whole",), side, 1.0),
        (drawn[DRAWN:], ("whole",), side, 2.0),
        (drawn[:CLEAN_DRAWN], (CLEAN,), side, 2.0),
    )
    of_photos, of_drawn, *more = (
        towards_facts(
            trained,
            tokenizer,
            replace(
                collect(trained, image_side, lower, part, products, kinds, backgrounds, edge, seed),
                weight=weight,
            ),
            [example.facts for example in part],
            questions,
        )
        for part, kinds, edge, weight in parts
    )
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        texts = encode_texts(trained, tokenizer, [caption(claim, rng) for claim in questions])
    assemble(trained, model, texts, of_photos, of_drawn, more)
    return model


def assemble(
    trained: Any,
    model: Any,
    texts: Tensor,
    photos: Views,
    drawn: Views,
    more: Sequence[Views],
) -> None:
    """Fill the projections and the text side of `model`.

    Args:
        texts: (t, d) embeddings of captions as trained.
    """
    projection, basis = fit(photos, drawn, more, texts.numpy(), DIM)
    model.visual_projection.weight.data.copy_(torch.from_numpy(projection))
    set_texts(model, trained, torch.from_numpy(basis.copy()))


@torch.no_grad()
def set_texts(model: Any, trained: Any, basis: Tensor) -> None:
    """Take over the text side; texts are zero outside the part for words."""
    model.text_model.load_state_dict(trained.text_model.state_dict())
    weight = model.text_projection.weight
    weight.zero_()
    weight[:WORDS_DIM] = basis @ trained.text_projection.weight
