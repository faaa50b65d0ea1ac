"""Choose the logit scale at which confidences are the most honest on pictures never trained on."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from pipeline.preprocess.prepare import Preprocessing, prepare
from tools.imgrec_mini.captions import Claim, caption, truth
from tools.imgrec_mini.encode import encode_pixels, encode_texts
from tools.imgrec_mini.examples import Example

BATCH = 64
SCALES = np.arange(4.0, 100.0, 0.5)

log = logging.getLogger("tools.imgrec_mini")


@torch.no_grad()
def calibrate(
    model: Any,
    tokenizer: Any,
    lower: nn.Sequential,
    examples: Sequence[Example],
    questions: Sequence[Claim],
    side: int,
) -> None:
    """Set `model.logit_scale` to the least cross-entropy of all questions; log how many are right.

    A question is one attribute, its answers are all values of it.
    """
    square = Preprocessing((side, side), 0.0, (255, 255, 255), None)
    views = np.stack([np.asarray(prepare(e.image, square, None).image) for e in examples])
    starts = range(0, len(views), BATCH)
    images = torch.cat([encode_pixels(model, views[at : at + BATCH], lower) for at in starts])
    rng = np.random.default_rng(0)
    texts = encode_texts(model, tokenizer, [caption(claim, rng) for claim in questions])
    matches = torch.from_numpy(truth([example.facts for example in examples], questions))
    costs = np.zeros(len(SCALES))
    for name in sorted({name for claim in questions for name in claim}):
        asked = torch.tensor([name in claim for claim in questions])
        rows = (matches[:, asked] > 0).any(dim=1)
        answers = (matches[rows][:, asked] > 0).long().argmax(dim=1)
        cosines = images[rows] @ texts[asked].T
        right = float((cosines.argmax(dim=1) == answers).float().mean())
        log.info("held out, %s: %.3f of %d are right", name, right, len(answers))
        costs += [float(cross_entropy(float(scale) * cosines, answers)) for scale in SCALES]
    model.logit_scale.fill_(math.log(SCALES[costs.argmin()]))
    log.info("logit scale: %.1f", float(SCALES[costs.argmin()]))
