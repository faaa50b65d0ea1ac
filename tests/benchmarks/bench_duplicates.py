"""How long duplicates take: candidates among vectors, looks at files, comparisons of pairs."""

from __future__ import annotations

import time
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
from harness import Run
from synthetic_vectors import clustered

from pipeline.duplicates.appearance import appearance, compare
from pipeline.duplicates.candidates import find_candidates
from pipeline.images.decode import Limits, decode_with_warnings
from pipeline.index import faiss_index
from pipeline.index.faiss_engine import FaissIndex
from pipeline.settings import Settings

TITLE = "Duplicates: candidates by the index, relative to comparing all pairs"
COUNT, QUICK_COUNT = 100_000, 20_000
COPIES = 0.01  # of the rows lie next to another one
NOISE = 0.1  # length: a cosine of 0.995, as of a copy that was encoded anew or cropped a little
EXACT_ROWS = 1000  # of all pairs, so many rows are compared; the rest takes as long


def measure(run: Run) -> None:
    count = QUICK_COUNT if run.quick else COUNT
    vectors = clustered(count, 1)
    rng = np.random.default_rng(2)
    pairs = rng.permutation(count)[: 2 * round(COPIES * count)].reshape(2, -1)
    noise = rng.normal(0, NOISE / vectors.shape[1] ** 0.5, (pairs.shape[1], vectors.shape[1]))
    moved = vectors[pairs[0]] + noise
    vectors[pairs[1]] = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    built, kind = faiss_index.build(vectors, Settings(_env_file=None).flat_max_vectors, 2)
    version: Any = SimpleNamespace(
        vectors=vectors,
        manifest={"index": kind.parameters()},
        random_pairs=faiss_index.random_pairs(vectors),
    )
    index = FaissIndex(version, built)

    start = time.perf_counter()
    found = find_candidates(index, np.arange(count), None)
    own_s = time.perf_counter() - start
    start = time.perf_counter()
    faiss_index.exact(vectors, vectors[:EXACT_ROWS], 11)
    all_s = (time.perf_counter() - start) * count / EXACT_ROWS
    run.ratio(
        "candidates / all pairs",
        [own_s / all_s],
        what=f"{count:,} vectors, index {kind.factory}; all pairs extrapolated",
        better="lower",
    )
    known = {tuple(sorted(pair)) for pair in pairs.T.tolist()}
    listed = {tuple(pair) for pair in found.rows.tolist()}
    run.fact("candidates of all images, s", f"{own_s:.0f}")
    run.fact("pairs to look at", f"{len(listed):,}")
    run.fact("share of the copies among them", f"{len(known & listed) / len(known):.3f}")

    files = run.photos(100)
    limits = Limits(10**9, 10**9)
    start = time.perf_counter()
    looks = [
        appearance(decode_with_warnings(file.read_bytes(), limits, (255, 255, 255), 256))
        for file in files
    ]
    run.fact("look at a file, ms", f"{1000 * (time.perf_counter() - start) / len(files):.1f}")
    start = time.perf_counter()
    for one, other in pairwise(looks):
        compare(one, other)
    cost = 1000 * (time.perf_counter() - start) / (len(looks) - 1)
    run.fact("compare two that are not the same, ms", f"{cost:.1f}")
