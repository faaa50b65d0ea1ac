"""Teach the text side what words mean before it meets a picture.

Left to the contrast alone, "a red shoe" and "a blue shoe" stay one vector for many hundred steps:
while the texts are alike no picture learns to differ by colour, and the other way round. So every
value ("red", "shoe", "striped") first gets a direction of its own, at right angles to all others,
and a text learns to lie at the sum of the values that it names.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from tools.imgrec_mini.captions import Facts, caption, every_claim, random_claim
from tools.imgrec_mini.encode import encode_texts

STEPS, BATCH, RATE = 600, 64, 1e-3

log = logging.getLogger("tools.imgrec_mini")


def teach_words(model: Any, tokenizer: Any, pictures: Sequence[Facts], seed: int) -> None:
    """Train the text side of `model` with captions of these pictures; about a minute."""
    values = [next(iter(claim.items())) for claim in every_claim(pictures)]
    directions = torch.nn.init.orthogonal_(torch.empty(len(values), model.projection_dim))
    row = {value: number for number, value in enumerate(values)}
    parameters = [*model.text_model.parameters(), *model.text_projection.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.01)
    rng = np.random.default_rng(seed)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = RATE * min(
            (step + 1) / 50, 0.5 * (1 + math.cos(math.pi * step / STEPS))
        )
        picks = rng.integers(0, len(pictures), BATCH)
        claims = [random_claim(pictures[number], rng) for number in picks]
        targets = torch.stack(
            [directions[[row[item] for item in claim.items()]].sum(dim=0) for claim in claims]
        )
        texts = encode_texts(model, tokenizer, [caption(claim, rng) for claim in claims])
        loss = (1 - (texts * normalize(targets, dim=-1)).sum(dim=-1)).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    log.info("the text side knows %d values (1 - cosine: %.3f)", len(values), float(loss.detach()))
