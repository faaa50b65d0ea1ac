"""Contrastive losses with several right answers and with answers that nobody knows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus


def contrast(scores: Tensor, truth: Tensor) -> Tensor:
    """Pull what is true above everything that is false, row by row.

    InfoNCE where each right answer competes with the wrong ones only, never with another right
    one: "a shoe" and "a red shoe" are both true of a red shoe.

    Args:
        scores: (n, m) logits.
        truth: (n, m), 1 is true, -1 is false, 0 is unknown and counts for nothing.
    """
    right = truth > 0
    wrong = scores.masked_fill(truth >= 0, float("-inf")).logsumexp(dim=1, keepdim=True)
    # -log(e^s / (e^s + e^wrong)) = softplus(wrong - s); a row without wrong answers costs nothing
    costs = softplus(wrong - scores).masked_fill(~right, 0.0)
    counts = right.sum(dim=1)
    return (costs.sum(dim=1) / counts.clamp(min=1)).sum() / (counts > 0).sum().clamp(min=1)


def same(labels: Tensor) -> Tensor:
    """Return the (n, n) truth of "has the same label": the diagonal is unknown."""
    truth = torch.where(labels[:, None] == labels[None, :], 1, -1)
    return truth.fill_diagonal_(0)
