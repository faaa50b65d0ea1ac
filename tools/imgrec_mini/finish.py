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
from tools.imgrec_mini.captions import Claim, Facts, caption
from tools.imgrec_mini.encode import encode_texts, fold, frozen_part
from tools.imgrec_mini.examples import Example
from tools.imgrec_mini.hard_views import DRAWN_KINDS, PHOTO_KINDS
from tools.imgrec_mini.interpolate import interpolate
from tools.imgrec_mini.projection import WORDS_DIM, Views, fit
from tools.imgrec_mini.view_features import collect

DIM = 512  # of the published embedding
PHOTOS, DRAWN = 1400, 600  # of which many views are taken; more change little
WHOLE = ("whole",)
CAPTION_WEIGHT = 0.5  # beside the image's 1; more helps colours and harms patterns
NOUN_PHRASE = ("style", "pattern", "color", "category")


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
    of_photos, of_drawn, *more = (
        with_captions(
            trained,
            tokenizer,
            collect(trained, image_side, lower, part, products, kinds, backgrounds, side, seed),
            [example.facts for example in part],
        )
        for part, kinds, side in (
            (photos[:PHOTOS], PHOTO_KINDS, sides[0]),
            (drawn[:DRAWN], DRAWN_KINDS, sides[0]),
            (photos, WHOLE, sides[1]),
            (drawn[DRAWN:], WHOLE, sides[1]),
        )
    )
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        texts = encode_texts(trained, tokenizer, [caption(claim, rng) for claim in questions])
    assemble(trained, model, texts, of_photos, of_drawn, more)
    return model


@torch.no_grad()
def with_captions(trained: Any, tokenizer: Any, views: Views, facts: Sequence[Facts]) -> Views:
    """Move each product's words towards a caption of all its facts."""
    told = [" ".join(each[name] for name in NOUN_PHRASE if name in each) for each in facts]
    unique, rows = np.unique([f"a photo of a {phrase}" for phrase in told], return_inverse=True)
    texts = encode_texts(trained, tokenizer, unique.tolist()).numpy()[rows]
    words = views.words + np.float32(CAPTION_WEIGHT) * texts
    return replace(views, words=words / np.linalg.norm(words, axis=1, keepdims=True))


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
