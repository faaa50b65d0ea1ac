"""Build, save, load and search a FAISS index of unit vectors under inner product."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import IndexBroken, SetupError
from pipeline.index.choose import POINTS_PER_LIST, PQ_POINTS, IndexSpec, choose_spec

Vectors = NDArray[np.float32]
Ids = NDArray[np.int64]

ROWS = 16_384  # looked at in one step: bounds memory, the vectors lie in a mapped file
# Rounds of k-means. FAISS takes 10 for lists and 25 for codes; what fewer lose, the search makes
# good with a list more or a few exact scores more, and its recall is measured after that.
ROUNDS = 5
PQ_ROUNDS = 8
SAMPLE = 256  # vectors that the self-check and the recall measurement look at
NOISE = 0.1  # length of what is added to a sampled vector to make a query that is not indexed
RERANK_MAX = 64
PAIRS = 20_000  # of random rows; the 0.99 quantile then rests on 200 of them
QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)
SELF_SCORE = 0.999  # a vector's product with itself, after float32 rounding


def build(
    vectors: Vectors,
    flat_max: int,
    threads: int = 1,
    budget: int | None = None,
    check: Callable[[], None] = lambda: None,
) -> tuple[Any, IndexSpec]:
    """Build an index of (n, d) float32 unit vectors, C order; ids are row numbers.

    Inverted lists are trained on a seeded sample over all rows. Then the fewest lists, and the
    fewest exactly scored rows, are chosen that reach the kind's target of recall@10 against exact
    search, for queries near sampled rows.

    Besides the index itself, memory holds the training sample and a few bytes a row.

    Args:
        budget: bytes that the index may take; None sets no limit.
        check: called between steps; raises to stop.
    """
    faiss = _faiss(threads)
    count, dim = vectors.shape
    kind = choose_spec(count, dim, flat_max, budget)
    index = faiss.index_factory(dim, kind.factory, faiss.METRIC_INNER_PRODUCT)
    if not index.is_trained:
        if kind.nlist:
            index.cp.niter = ROUNDS
        if kind.coded:
            index.pq.cp.niter = PQ_ROUNDS
            index.pq.cp.max_points_per_centroid = POINTS_PER_LIST
        points = max(kind.nlist * POINTS_PER_LIST, PQ_POINTS)
        index.train(np.ascontiguousarray(vectors[_sample(count, points)]))
    check()
    if not kind.nlist:
        index.add(vectors)  # in one piece: FAISS then takes exactly the memory it needs
        return index, _tune(index, vectors, kind, None) if kind.rerank else kind
    lists = _fill(index, vectors, check)
    return index, _tune(index, vectors, kind, lists)


def _fill(index: Any, vectors: Vectors, check: Callable[[], None]) -> NDArray[np.int32]:
    """Put each row into the list of its nearest centroid; return the number of its list.

    Not with `index.add`, whose lists grow by doubling: up to twice the memory while it lasts.
    """
    faiss = _faiss()
    lists = np.empty(len(vectors), np.int32)
    for start in range(0, len(vectors), ROWS):
        block = np.ascontiguousarray(vectors[start : start + ROWS])
        lists[start : start + ROWS] = index.quantizer.search(block, 1)[1][:, 0]
        check()
    lists[lists < 0] = 0  # a vector that is no number; the self-check names it
    order = np.argsort(lists, kind="stable")
    start = 0
    for number, size in enumerate(np.bincount(lists, minlength=index.nlist).tolist()):
        rows = np.ascontiguousarray(order[start : start + size], np.int64)
        start += size
        if not size:
            continue
        block = np.ascontiguousarray(vectors[rows])
        same = np.full(size, number, np.int64)
        codes = np.empty((size, index.code_size), np.uint8)
        pointer = faiss.swig_ptr
        index.encode_vectors(size, pointer(block), pointer(same), pointer(codes))
        index.invlists.add_entries(number, size, pointer(rows), pointer(codes))
    index.ntotal = len(vectors)
    return lists


def _tune(
    index: Any, vectors: Vectors, kind: IndexSpec, lists: NDArray[np.int32] | None
) -> IndexSpec:
    """Set `nprobe` and `rerank` to the least that reaches the target; measure the recall."""
    queries = _near(vectors, _sample(len(vectors), SAMPLE))
    best, truth = exact(vectors, queries, 10)
    if lists is not None:
        kind = replace(kind, nprobe=_lists_needed(index, queries, lists[truth], kind))
        index.nprobe = kind.nprobe
    while True:
        scores, _ = search(index, queries, 10, kind=kind, vectors=vectors)
        # Not rows are compared: of a picture that is stored twice, either row is right. Sums of
        # another order differ in the last digits of float32.
        reached = scores >= best[:, -1:] - 1e-5
        kind = replace(kind, recall_at_10=round(float(reached.mean()), 4))
        if kind.recall_at_10 >= kind.target_recall:
            return kind
        if kind.rerank and kind.rerank < RERANK_MAX:
            kind = replace(kind, rerank=2 * kind.rerank)
        elif kind.nprobe < kind.nlist:
            kind = replace(kind, nprobe=min(kind.nlist, kind.nprobe + 1 + kind.nprobe // 4))
            index.nprobe = kind.nprobe
        else:
            return kind


def _lists_needed(index: Any, queries: Vectors, homes: NDArray[np.int32], kind: IndexSpec) -> int:
    """Return how many lists must be looked at, so that they hold enough of what is wanted.

    Args:
        homes: (queries, k) the list of each true match.
    """
    order = index.quantizer.search(queries, kind.nlist)[1]
    places = np.empty((len(queries), kind.nlist), np.int32)
    np.put_along_axis(places, order, np.arange(kind.nlist, dtype=np.int32)[None, :], 1)
    ranks = np.sort(np.take_along_axis(places, homes.astype(np.int64), 1), axis=None)
    wanted = (1 + kind.target_recall) / 2 if kind.rerank else kind.target_recall  # codes lose, too
    return 1 + int(ranks[min(len(ranks) - 1, int(np.ceil(wanted * len(ranks))) - 1)])


def _near(vectors: Vectors, rows: Ids) -> Vectors:
    """Return unit vectors close to some rows: what is asked for is seldom what is indexed."""
    dim = vectors.shape[1]
    noise = np.random.default_rng(1).normal(0, NOISE / dim**0.5, (len(rows), dim))
    moved = np.nan_to_num(vectors[rows]) + noise
    unit: Vectors = (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.float32)
    return unit


def exact(vectors: Vectors, queries: Vectors, k: int) -> tuple[Vectors, Ids]:
    """Return (scores, rows) of exact search, each (queries, min(k, n)), best first."""
    faiss = _faiss()
    heap = faiss.ResultHeap(len(queries), min(k, len(vectors)), keep_max=True)
    for start in range(0, len(vectors), ROWS):
        block = np.ascontiguousarray(vectors[start : start + ROWS])
        scores, ids = faiss.knn(
            queries, block, min(k, len(block)), metric=faiss.METRIC_INNER_PRODUCT
        )
        heap.add_result(scores, ids + start)
    heap.finalize()
    return heap.D, heap.I


def self_check(index: Any, vectors: Vectors, kind: IndexSpec, sample: int = SAMPLE) -> None:
    """Prove that the index holds each row once and that sampled rows find themselves.

    Args:
        sample: rows to look for.

    Raises:
        IndexBroken: it does not.
    """
    if index.ntotal != len(vectors):
        raise IndexBroken(f"The index holds {index.ntotal} vectors, {len(vectors)} were added.")
    rows = _sample(len(vectors), sample)
    wanted = np.ascontiguousarray(vectors[rows])
    _, found = search(index, wanted, 10, kind=kind, vectors=vectors)
    # Equal pictures have equal vectors, so not the row is compared but what stands under it.
    scores = np.einsum("nd,nd->n", wanted, vectors[found[:, 0]])
    lost = rows[~((found[:, 0] >= 0) & (scores >= SELF_SCORE))]
    broken = ~np.isfinite(wanted).all(1)
    # Codes of a few bytes may lose one of its own neighbourhood; of other vectors they lose all.
    spared = round((1 - kind.target_recall) * len(rows)) if kind.coded else 0
    if len(lost) > spared or broken.any():
        raise IndexBroken(f"{len(lost)} of {len(rows)} sampled vectors do not find themselves.")


def save(index: Any, path: Path) -> None:
    """Write the index to a file."""
    _faiss().write_index(index, str(path))


def load(path: Path, kind: IndexSpec) -> Any:
    """Load an index, its vectors mapped from the file and not copied into memory.

    Raises:
        IndexBroken: FAISS cannot read the file.
    """
    faiss = _faiss()
    # One flag maps inverted lists, the other flat codes; FAISS refuses both at once.
    flags = faiss.IO_FLAG_MMAP if kind.nlist else faiss.IO_FLAG_MMAP_IFC
    try:
        index = faiss.read_index(str(path), flags)
    except RuntimeError as error:
        raise IndexBroken(
            f"The index file {path} cannot be read: {_last_line(error)}. Roll back with "
            "'imgrec index rollback' or rebuild."
        ) from error
    if kind.nlist:
        index.nprobe = kind.nprobe
        # FAISS starts 32 threads in each search to read mapped lists ahead. `warm` has read them
        # once; the threads alone made a search of a tenth of a million vectors three times slower.
        lists = faiss.downcast_InvertedLists(index.invlists)
        lists.prefetch_nthread = 0
    return index


def search(
    index: Any,
    queries: Vectors,
    k: int,
    allowed: NDArray[np.bool_] | None = None,
    *,
    kind: IndexSpec,
    vectors: Vectors,
) -> tuple[Vectors, Ids]:
    """Return (scores, ids), each (n, min(k, index size)), best first; id -1 where none is left.

    Scores are exact cosines: those of an index of shortened vectors are taken again from the stored
    ones, for `kind.rerank` times as many rows as are wanted.

    Args:
        allowed: (rows,) of the index that may be found; FAISS skips the others as it searches.
        kind: of the index; its `nprobe` and `rerank` may be raised for this search.
        vectors: (rows, d) that the index was made of.
    """
    faiss = _faiss()
    selector = {}
    if allowed is not None:
        selector["sel"] = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
    parameters = None
    if kind.nlist:
        parameters = faiss.SearchParametersIVF(nprobe=kind.nprobe, **selector)
    elif selector:
        parameters = faiss.SearchParameters(**selector)
    wanted = np.ascontiguousarray(queries)
    k = min(k, index.ntotal)
    depth = min(max(1, kind.rerank) * k, index.ntotal)
    scores, ids = index.search(wanted, depth, params=parameters)
    if not kind.rerank:
        return scores, ids
    for query, score, row in zip(wanted, scores, ids, strict=True):
        found = int((row >= 0).sum())
        # In order of the file: what lies together is read together.
        row[:found].sort()
        score[:found] = np.asarray(vectors[row[:found]]) @ query
        best = np.argsort(-score[:found], kind="stable")
        score[:found], row[:found] = score[best], row[best]
    return scores[:, :k], ids[:, :k]


def random_pairs(vectors: Vectors) -> dict[str, Any]:
    """Describe how alike two rows are that have nothing to do with each other.

    Returns the number of sampled pairs and quantiles of their cosines: what a match must exceed to
    be more than chance.
    """
    rng = np.random.default_rng(0)
    left = rng.integers(len(vectors), size=PAIRS)
    right = (left + rng.integers(1, max(2, len(vectors)), size=PAIRS)) % len(vectors)
    scores = np.concatenate(
        [
            np.einsum("nd,nd->n", vectors[left[at : at + 4096]], vectors[right[at : at + 4096]])
            for at in range(0, PAIRS, 4096)
        ]
    )
    values = np.quantile(scores, QUANTILES)
    quantiles = {f"{q:g}": round(float(v), 6) for q, v in zip(QUANTILES, values, strict=True)}
    return {"pairs": PAIRS, "quantiles": quantiles}


def _sample(count: int, size: int) -> NDArray[np.int64]:
    if count <= size:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, size, replace=False))


def _faiss(threads: int = 0) -> Any:
    try:
        import faiss
    except ImportError as error:
        raise SetupError(
            "faiss is not installed: run `pip install 'imgrec[cpu]'` or `'imgrec[gpu]'`."
        ) from error
    if threads:
        faiss.omp_set_num_threads(threads)
    return faiss


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1][:200]
