"""Judge a classifier on images that it has not seen: precision, recall, calibration."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

BINS = 15  # as in Guo et al.
TEMPERATURES = (1e-3, 1e3)


def softmax(logits: Floats) -> Floats:
    """Return the shares of the last axis, each sum 1."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def per_class(classes: tuple[str, ...], counts: Rows) -> dict[str, dict[str, Any]]:
    """Return precision, recall and the images of each class, from its (c, c) confusion counts.

    Rows are the true classes. Precision is None for a class that was never said.
    """
    right, said, true = counts.diagonal(), counts.sum(axis=0), counts.sum(axis=1)
    return {
        name: {
            "precision": _share(right[at], said[at]),
            "recall": _share(right[at], true[at]),
            "images": int(true[at]),
        }
        for at, name in enumerate(classes)
    }


def calibration_error(shares: Floats, truth: Rows) -> float:
    """Return the expected calibration error: how far confidence is from accuracy, on average.

    Args:
        shares: (n, c) probabilities.
        truth: (n,) true classes.

    Guo et al., "On Calibration of Modern Neural Networks" (https://arxiv.org/abs/1706.04599),
    equation 3: bins of equal width over the confidence of the likeliest class, each one's
    |accuracy - confidence| weighted by its share of the images.
    """
    confidence = shares.max(axis=1)
    right = shares.argmax(axis=1) == truth
    # (0, 1/15], (1/15, 2/15], ...: as in the paper, a bin holds its upper end.
    place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = np.bincount(place, weights=right - confidence, minlength=BINS)
    return float(np.abs(gaps).sum() / len(truth))


def log_loss(logits: Floats, truth: Rows, temperature: float = 1.0, doubt: float = 0.0) -> float:
    """Return the mean negative log-likelihood of (n, c) logits at a temperature.

    Args:
        doubt: the probability that a target takes from the true class and gives to the others.
    """
    scaled = logits / temperature
    top = scaled.max(axis=1, keepdims=True)
    logs = scaled - top - np.log(np.exp(scaled - top).sum(axis=1, keepdims=True))
    true = logs[np.arange(len(truth)), truth]
    others = (logs.sum(axis=1) - true) / (logits.shape[1] - 1)
    return float(-((1 - doubt) * true + doubt * others).mean())


def fit_temperature(logits: Floats, truth: Rows) -> float:
    """Return the temperature at which the log-loss of (n, c) logits is least (Guo et al., 4.2).

    Where all n are right, plain log-loss would send the temperature to 0 and every confidence to
    1. Targets leave a doubt, as Platt's do ("Probabilistic Outputs for Support Vector Machines",
    1999), of the size of Jeffreys' prior: n right of n prove no more than (n + 1/2) / (n + 1).
    """
    doubt = 0.5 / (len(truth) + 1)
    low, high = np.log(TEMPERATURES)
    # The loss is convex in 1 / temperature, so it has one valley: golden-section search.
    golden = (5**0.5 - 1) / 2
    for _ in range(60):  # 0.618^60 of the width is nothing
        near, far = high - golden * (high - low), low + golden * (high - low)
        if log_loss(logits, truth, np.exp(near), doubt) < log_loss(
            logits, truth, np.exp(far), doubt
        ):
            high = far
        else:
            low = near
    return float(np.exp((low + high) / 2))


def _share(part: np.int64, whole: np.int64) -> float | None:
    return round(float(part / whole), 4) if whole else None
