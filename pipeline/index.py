"""Choose, build, save, load and search a FAISS index of unit vectors under inner product."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import IndexBroken, SetupError

Vectors = NDArray[np.float32]

ADD_ROWS = 65_536  # rows added at a time: bounds memory when the vectors lie in a mapped file
# FAISS asks for 39 to 256 training points a centroid and recommends 4*sqrt(n)..16*sqrt(n) lists
# (FAISS wiki, "Guidelines to choose an index"); more points cost time, not recall.
POINTS_PER_LIST = 64
LISTS_PER_SQRT = 4
SAMPLE = 256  # vectors that the self-check and the recall measurement look at
TARGET_RECALL = 0.97  # recall@10 against exact search, measured on the sample
PAIRS = 20_000  # of random rows; the 0.99 quantile then rests on 200 of them
QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)
SELF_SCORE = 0.999  # a vector's product with itself, after float32 rounding


@dataclass(frozen=True)
class IndexKind:
    """A FAISS factory string and its search parameter; nlist and nprobe are 0 for Flat."""

    factory: str
    nlist: int = 0
    nprobe: int = 0
    recall_at_10: float = 1.0

    def parameters(self) -> dict[str, Any]:
        return asdict(self)


def choose_kind(count: int, flat_max: int) -> IndexKind:
    """Exact search up to `flat_max` vectors; above, inverted lists whose number grows with sqrt."""
    if count <= flat_max:
        return IndexKind("Flat")
    # Never more lists than the training rule can feed.
    nlist = max(1, min(round(LISTS_PER_SQRT * math.sqrt(count)), count // 39))
    return IndexKind(f"IVF{nlist},Flat", nlist, max(1, nlist // 64))


def build(vectors: Vectors, flat_max: int, threads: int = 1) -> tuple[Any, IndexKind]:
    """Build an index of (n, d) float32 unit vectors; ids are row numbers.

    An IVF index is trained on a seeded sample over all rows, then its `nprobe` is doubled until
    recall@10 against exact search reaches `TARGET_RECALL` on sampled rows.
    """
    faiss = _faiss(threads)
    count, dim = vectors.shape
    kind = choose_kind(count, flat_max)
    index = faiss.index_factory(dim, kind.factory, faiss.METRIC_INNER_PRODUCT)
    if kind.nlist:
        rows = _sample(count, kind.nlist * POINTS_PER_LIST)
        index.train(np.ascontiguousarray(vectors[rows]))
    for start in range(0, count, ADD_ROWS):
        index.add(np.ascontiguousarray(vectors[start : start + ADD_ROWS]))
    if kind.nlist:
        kind = _tune(index, vectors, kind)
    return index, kind


def _tune(index: Any, vectors: Vectors, kind: IndexKind) -> IndexKind:
    rows = _sample(len(vectors), SAMPLE)
    queries = np.ascontiguousarray(vectors[rows])
    truth = _exact(vectors, queries, 10)
    nprobe = kind.nprobe
    while True:
        index.nprobe = nprobe
        _, found = index.search(queries, 10)
        recall = float(
            np.mean([len(set(a) & set(b)) / len(a) for a, b in zip(truth, found, strict=True)])
        )
        if recall >= TARGET_RECALL or nprobe >= kind.nlist:
            return IndexKind(kind.factory, kind.nlist, nprobe, round(recall, 4))
        nprobe = min(kind.nlist, 2 * nprobe)


def _exact(vectors: Vectors, queries: Vectors, k: int) -> NDArray[np.int64]:
    faiss = _faiss()
    heap = faiss.ResultHeap(len(queries), k, keep_max=True)
    for start in range(0, len(vectors), ADD_ROWS):
        block = np.ascontiguousarray(vectors[start : start + ADD_ROWS])
        scores, ids = faiss.knn(queries, block, k, metric=faiss.METRIC_INNER_PRODUCT)
        heap.add_result(scores, ids + start)
    heap.finalize()
    truth: NDArray[np.int64] = heap.I
    return truth


def self_check(index: Any, vectors: Vectors) -> None:
    """Prove that the index holds each row once and that sampled rows find themselves.

    Raises:
        IndexBroken: it does not.
    """
    if index.ntotal != len(vectors):
        raise IndexBroken(f"The index holds {index.ntotal} vectors, {len(vectors)} were added.")
    rows = _sample(len(vectors), SAMPLE)
    wanted = np.ascontiguousarray(vectors[rows])
    _, found = index.search(wanted, 1)
    # Equal pictures have equal vectors, so not the row is compared but what stands under it.
    scores = np.einsum("nd,nd->n", wanted, vectors[found[:, 0]])
    lost = rows[~((found[:, 0] >= 0) & (scores >= SELF_SCORE))]
    if len(lost):
        raise IndexBroken(f"{len(lost)} of {len(rows)} sampled vectors do not find themselves.")


def save(index: Any, path: Path) -> None:
    """Write the index to a file."""
    _faiss().write_index(index, str(path))


def load(path: Path, nprobe: int = 0) -> Any:
    """Load an index, its vectors mapped from the file and not copied into memory.

    Args:
        nprobe: lists to look at in one search, of an IVF index; 0 says that it is Flat.

    Raises:
        IndexBroken: FAISS cannot read the file.
    """
    faiss = _faiss()
    # One flag maps inverted lists, the other flat codes; FAISS refuses both at once.
    flags = faiss.IO_FLAG_MMAP if nprobe else faiss.IO_FLAG_MMAP_IFC
    try:
        index = faiss.read_index(str(path), flags)
    except RuntimeError as error:
        raise IndexBroken(
            f"The index file {path} cannot be read: {_last_line(error)}. Roll back with "
            "'imgrec index rollback' or rebuild."
        ) from error
    if nprobe:
        index.nprobe = nprobe
    return index


def search(
    index: Any,
    queries: Vectors,
    k: int,
    allowed: NDArray[np.bool_] | None = None,
    nprobe: int = 0,
) -> tuple[Vectors, NDArray[np.int64]]:
    """Return (scores, ids), each (n, min(k, index size)), best first; id -1 where none is left.

    Args:
        allowed: (rows,) of the index that may be found; FAISS skips the others as it searches.
        nprobe: lists to look at in this search, of an IVF index; 0 keeps the index's own.
    """
    faiss = _faiss()
    selector = {}
    if allowed is not None:
        selector["sel"] = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
    parameters = None
    if nprobe:
        parameters = faiss.SearchParametersIVF(nprobe=nprobe, **selector)
    elif selector:
        parameters = faiss.SearchParameters(**selector)
    wanted = np.ascontiguousarray(queries)
    scores, ids = index.search(wanted, min(k, index.ntotal), params=parameters)
    return scores, ids


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
