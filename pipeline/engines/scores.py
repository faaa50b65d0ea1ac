"""Exact scores of rows that an engine found by rounded vectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.index.engine import Hits, Vectors


def scored(vectors: Vectors, rows: Sequence[int], query: Vectors) -> Hits:
    """Return (row, cosine) of some rows, best first."""
    if not rows:
        return []
    ordered = np.sort(np.array(rows, np.int64))  # as in the file: neighbours are read together
    scores = np.asarray(vectors[ordered]) @ query
    best = np.argsort(-scores, kind="stable")
    return list(zip(ordered[best].tolist(), scores[best].tolist(), strict=True))
