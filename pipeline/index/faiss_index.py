"""Build, save, load and search a FAISS index of unit vectors under inner product."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import IndexBroken, SetupError, one_line
from pipeline.index.choose import POINTS_PER_LIST, PQ_POINTS, IndexSpec, choose_spec
from pipeline.index.segments import SegmentedIndex, SegmentedVectors

Vectors = NDArray[np.float32]
Ids = NDArray[np.int64]

BLOCK_ROWS = 1024  # compared at once: 16,384 took 150 MiB more, and a third more CPU time
# Rounds of k-means. FAISS's defaults are 10 for lists and 25 for codes. With fewer, a search reads
# a list more or scores a few rows more exactly; its recall is measured after that.
ROUNDS = 5
PQ_ROUNDS = 8
SAMPLE = 256  # vectors that the self-check and the recall measurement use
FEW = 64  # queries that measure the recall again after a small change
NOISE = 0.1  # length of the noise that makes a query from a stored vector
RERANK_MAX = 64
PAIRS = 20_000  # pairs of random rows; the 0.99 quantile then rests on 200 of them
QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)
GROWTH = 1.5  # of a catalogue, after which its lists are trained anew
SELF_SCORE = 0.999  # a vector's product with itself, after float32 rounding


def build(
    vectors: Vectors,
    flat_max: int,
    threads: int = 1,
    budget: int | None = None,
    check: Callable[[], None] = lambda: None,
    trained: Trained | None = None,
) -> tuple[Any, IndexSpec]:
    """Build an index of (n, d) float32 unit vectors, C order; ids are row numbers.

    Inverted lists are trained on a seeded sample over all rows. Then a search is set to the fewest
    lists, and the fewest exactly scored rows, that reach the kind's target of recall@10 against
    exact search, for queries near sampled rows.

    Besides the index itself, memory holds the training sample and a few bytes per row.

    Args:
        budget: memory budget of the index in bytes; None sets no limit.
        check: called between steps; raises to stop.
        trained: lists of an earlier index, kept where they still serve as well.
    """
    faiss = _faiss(threads)
    count, dim = vectors.shape
    kind = choose_spec(count, dim, flat_max, budget)
    if trained is not None and trained.fits(kind, count):
        index, spec = _extend(trained, vectors, kind, check)
        if spec.recall_at_10 >= spec.target_recall and trained.serve(index, spec):
            return index, spec
    kind = replace(kind, trained=count if kind.nlist else 0)
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
    lists = _fill(index, vectors, np.full(count, -1, np.int32), check)
    return index, _tune(index, vectors, kind, lists)


@dataclass(frozen=True)
class Trained:
    """An index whose lists the next one may keep.

    lists: (n,) int32 for the rows of the next index: the list that a row is in already, or -1.
    read: the share of all rows that a search reads in the earlier index.
    """

    index: Any
    kind: IndexSpec
    lists: NDArray[np.int32]
    read: float

    def fits(self, kind: IndexSpec, count: int) -> bool:
        """Tell whether the lists are of the kind that is wanted, and not for far fewer vectors."""
        same = bool(self.kind.nlist and kind.nlist) and self.kind.codes == kind.codes
        return same and count / GROWTH <= self.kind.trained <= count * GROWTH

    def serve(self, index: Any, kind: IndexSpec) -> bool:
        """Tell whether a search of the next index reads about as many rows as one of this.

        New rows may lie where there was no list, and swell one or ask for many.
        """
        return share_read(index, kind) <= GROWTH * self.read + 2 / kind.nlist


def keep_lists(index: Any, kind: IndexSpec, base_rows: NDArray[np.int64]) -> Trained:
    """Return what the next index can keep of this one.

    Args:
        base_rows: (n,) for the rows of the next index: the same row in this one, or -1.
    """
    homes = lists_of(index)
    known = base_rows >= 0
    kept = np.full(len(base_rows), -1, np.int32)
    kept[known] = homes[base_rows[known]]
    return Trained(index, kind, kept, share_read(index, kind))


def lists_of(index: Any) -> NDArray[np.int32]:
    """Return the (n,) list of each row, -1 where it is in none."""
    if isinstance(index, SegmentedIndex):
        return _homes(index.parts, index.n_places)[index.places]
    return _homes([index], index.ntotal)


def _homes(parts: list[Any], count: int) -> NDArray[np.int32]:
    """Return the (count,) list of each id that is in one of some indexes."""
    faiss = _faiss()
    homes = np.full(count, -1, np.int32)
    for part in parts:
        lists = faiss.downcast_InvertedLists(part.invlists)
        for number in range(part.nlist):
            size = lists.list_size(number)
            if size:
                ids = faiss.rev_swig_ptr(lists.get_ids(number), size)
                if ids.min() < 0 or ids.max() >= count:
                    raise IndexBroken(f"A list of the index names a row beyond its {count}")
                homes[ids] = number
    return homes


def share_read(index: Any, kind: IndexSpec) -> float:
    """Return the share of all rows that an average search reads; a long list is read more often."""
    parts = index.parts if isinstance(index, SegmentedIndex) else [index]
    sizes = np.zeros(kind.nlist)
    for part in parts:
        sizes += [part.invlists.list_size(number) for number in range(kind.nlist)]
    imbalance = kind.nlist * float((sizes**2).sum() / max(1.0, sizes.sum()) ** 2)
    return kind.nprobe / kind.nlist * imbalance


def extend(
    base: Path,
    trained: Trained,
    vectors: SegmentedVectors,
    flat_max: int,
    threads: int = 1,
    budget: int | None = None,
    check: Callable[[], None] = lambda: None,
) -> tuple[SegmentedIndex, IndexSpec] | None:
    """Index the new rows of two segments with the lists of the base's; None if these do not serve.

    Args:
        base: the file of the base's index.
        trained: the index of the earlier version, which has the same lists.
    """
    _faiss(threads)
    count, dim = vectors.shape
    wanted = choose_spec(count, dim, flat_max, budget)
    if not trained.fits(wanted, count):
        return None
    kind, lists = trained.kind, trained.lists.copy()
    rows: Any = vectors  # read like an array
    whole, new = load(base, kind), load(base, kind)
    _empty(new)
    is_new = vectors.places >= whole.ntotal  # since the base; some were in the earlier version
    lists[is_new] = _fill(new, vectors.new, lists[is_new], check, whole.ntotal)
    index = SegmentedIndex(whole, new, vectors.places)
    kind = replace(kind, memory=wanted.memory, reason=f"{wanted.reason}; lists kept from before")
    # Few queries tell whether the lists still serve, too few to read fewer lists than before.
    spec = _tune(index, rows, kind, lists, sample=FEW, least=kind.nprobe)
    serves = spec.recall_at_10 >= spec.target_recall and trained.serve(index, spec)
    return (index, spec) if serves else None


def _empty(index: Any) -> None:
    """Take the rows out of an index of inverted lists."""
    faiss = _faiss()
    lists = faiss.ArrayInvertedLists(index.nlist, index.code_size)
    index.replace_invlists(lists, True)
    lists.this.disown()
    index.ntotal = 0


def _extend(
    trained: Trained, vectors: Vectors, wanted: IndexSpec, check: Callable[[], None]
) -> tuple[Any, IndexSpec]:
    """Fill the lists of an earlier index anew; only new rows are compared with the centroids."""
    index = trained.index
    _empty(index)
    lists = _fill(index, vectors, trained.lists.copy(), check)
    kind = replace(
        trained.kind, memory=wanted.memory, reason=f"{wanted.reason}; lists kept from before"
    )
    return index, _tune(index, vectors, kind, lists)


def _fill(
    index: Any,
    vectors: Vectors,
    lists: NDArray[np.int32],
    check: Callable[[], None],
    first: int = 0,
) -> NDArray[np.int32]:
    """Add each row to its list, or to that of its nearest centroid; return the (n,) list numbers.

    Not with `index.add`, whose lists grow by doubling: up to twice the memory meanwhile.

    Args:
        lists: (n,) the list of each row, -1 where it is not known; filled in.
        first: the id of the first row.
    """
    faiss = _faiss()
    unknown = np.flatnonzero(lists < 0)
    centroids = index.quantizer.reconstruct_n(0, index.nlist)
    for start in range(0, len(unknown), BLOCK_ROWS):
        rows = unknown[start : start + BLOCK_ROWS]
        # NumPy's BLAS, as in `exact`. A vector that is not finite is rejected by the self-check.
        with np.errstate(invalid="ignore"):
            lists[rows] = (np.asarray(vectors[rows]) @ centroids.T).argmax(axis=1)
        check()
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
        ids = rows + first
        index.invlists.add_entries(number, size, pointer(ids), pointer(codes))
    index.ntotal = len(vectors)
    return lists


def _tune(
    index: Any,
    vectors: Vectors,
    kind: IndexSpec,
    lists: NDArray[np.int32] | None,
    *,
    sample: int = SAMPLE,
    least: int = 1,
) -> IndexSpec:
    """Set `nprobe` and `rerank` to the least that reaches the target; measure the recall.

    Args:
        sample: number of queries.
        least: `nprobe` is not set below.
    """
    queries = noisy_queries(vectors, sample)
    best, truth = exact(vectors, queries, 10)
    if lists is not None:
        needed = _lists_needed(index, queries, lists[truth], kind)
        kind = replace(kind, nprobe=max(least, needed))
        index.nprobe = kind.nprobe
    while True:
        scores, _ = search(index, queries, 10, kind=kind, vectors=vectors)
        # Scores are compared, not rows: of an image that is stored twice, either row is right. Sums
        # in another order differ in the last digits of float32.
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
    """Return how many lists must be read to reach the kind's target of recall.

    Args:
        homes: (queries, k) the list of each true match.
    """
    order = index.quantizer.search(queries, kind.nlist)[1]
    places = np.empty((len(queries), kind.nlist), np.int32)
    np.put_along_axis(places, order, np.arange(kind.nlist, dtype=np.int32)[None, :], 1)
    ranks = np.sort(np.take_along_axis(places, homes.astype(np.int64), 1), axis=None)
    # Codes lose matches as well.
    share = (1 + kind.target_recall) / 2 if kind.rerank else kind.target_recall
    return 1 + int(ranks[min(len(ranks) - 1, int(np.ceil(share * len(ranks))) - 1)])


def noisy_queries(vectors: Vectors, count: int) -> Vectors:
    """Return up to `count` unit vectors close to sampled rows: a query is seldom an indexed image.

    Their cosine with the row is about 0.995.
    """
    rows, dim = _sample(len(vectors), count), vectors.shape[1]
    noise = np.random.default_rng(1).normal(0, NOISE / dim**0.5, (len(rows), dim))
    moved = np.nan_to_num(vectors[rows]) + noise
    unit: Vectors = (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.float32)
    return unit


def exact(vectors: Vectors, queries: Vectors, k: int) -> tuple[Vectors, Ids]:
    """Return (scores, rows) of exact search, each (queries, min(k, n)), best first.

    Not with `faiss.knn`: the BLAS that NumPy brings multiplied five times as fast as the one of
    FAISS's wheel (1.26 and 1.14), and few rows of a later block are among the best.
    """
    n_queries, k = len(queries), min(k, len(vectors))
    best, rows = np.full((n_queries, k), -np.inf, np.float32), np.full((n_queries, k), -1, np.int64)
    for start in range(0, len(vectors), BLOCK_ROWS):
        with np.errstate(invalid="ignore"):  # of vectors that are not finite
            scores = queries @ np.asarray(vectors[start : start + BLOCK_ROWS]).T
        query, place = np.nonzero(scores > best[:, -1:])
        counts = np.bincount(query, minlength=n_queries)
        column = k + np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
        width = k + int(counts.max(initial=0))
        more_scores = np.full((n_queries, width), -np.inf, np.float32)
        more_rows = np.full((n_queries, width), -1, np.int64)
        more_scores[:, :k], more_rows[:, :k] = best, rows
        more_scores[query, column], more_rows[query, column] = scores[query, place], start + place
        order = _order(more_scores, k)
        best = np.take_along_axis(more_scores, order, 1)
        rows = np.take_along_axis(more_rows, order, 1)
    return best, rows


def _order(scores: Vectors, k: int) -> Ids:
    """Return the places of the k highest scores of each row, the highest first."""
    if scores.shape[1] <= 4 * k:
        return np.argsort(-scores, axis=1, kind="stable")[:, :k]
    places = np.sort(np.argpartition(-scores, k - 1, axis=1)[:, :k], axis=1)
    order = np.argsort(-np.take_along_axis(scores, places, 1), axis=1, kind="stable")
    return np.take_along_axis(places, order, 1)


def self_check(index: Any, vectors: Vectors, kind: IndexSpec, sample: int = SAMPLE) -> None:
    """Check that the index holds each row once and that sampled rows find themselves.

    Args:
        sample: number of rows to search for.

    Raises:
        IndexBroken: otherwise.
    """
    if index.ntotal != len(vectors):
        raise IndexBroken(f"The index holds {index.ntotal} vectors, {len(vectors)} were added.")
    rows = _sample(len(vectors), sample)
    queries = np.ascontiguousarray(vectors[rows])
    _, ids = search(index, queries, 10, kind=kind, vectors=vectors)
    # Equal images have equal vectors, so the vectors are compared, not the rows.
    scores = np.einsum("nd,nd->n", queries, vectors[ids[:, 0]])
    lost = rows[~((ids[:, 0] >= 0) & (scores >= SELF_SCORE))]
    broken = ~np.isfinite(queries).all(1)
    # Codes of a few bytes may confuse close neighbours; codes of other vectors would lose all.
    max_lost = round((1 - kind.target_recall) * len(rows)) if kind.coded else 0
    if len(lost) > max_lost or broken.any():
        raise IndexBroken(f"{len(lost)} of {len(rows)} sampled vectors do not find themselves.")


def save(index: Any, path: Path) -> None:
    """Write the index to a file."""
    _faiss().write_index(index, str(path))


def load(path: Path, kind: IndexSpec) -> Any:
    """Load an index whose vectors are mapped from the file, not copied into memory.

    Raises:
        IndexBroken: FAISS cannot read the file. OSError: this user may not read it.
    """
    with path.open("rb"):  # FAISS would call a missing right a broken file
        pass
    faiss = _faiss()
    # One flag maps inverted lists, the other flat codes; FAISS refuses both at once.
    flags = faiss.IO_FLAG_MMAP if kind.nlist else faiss.IO_FLAG_MMAP_IFC
    try:
        index = faiss.read_index(str(path), flags)
    except RuntimeError as error:
        raise IndexBroken(
            f"The index file {path} cannot be read: {one_line(error, last=True)}. Roll back with "
            "'imgrec index rollback' or rebuild."
        ) from error
    if kind.nlist:
        index.nprobe = kind.nprobe
        # FAISS starts 32 threads in each search to read mapped lists ahead. `warm` has read them
        # already, and the threads made a search of 100,000 vectors three times slower.
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

    Scores are exact cosines: an index of compressed vectors returns `kind.rerank` times k rows,
    which are scored again with the stored vectors.

    Args:
        allowed: (rows,) mask of the rows that may be returned; FAISS skips the others.
        kind: of the index; its `nprobe` and `rerank` may be raised for this search.
        vectors: (rows, d) that the index was built from.
    """
    queries = np.ascontiguousarray(queries)
    k = min(k, index.ntotal)
    depth = min(max(1, kind.rerank) * k, index.ntotal)
    if isinstance(index, SegmentedIndex):
        bits = index.present if allowed is None else index.bits(allowed)
        found = [_search(part, queries, depth, bits, kind) for part in (index.base, index.new)]
        scores, ids = index.best(found, depth)
    else:
        bits = None if allowed is None else np.packbits(allowed, bitorder="little")
        scores, ids = _search(index, queries, depth, bits, kind)
    if not kind.rerank:
        return scores, ids
    for query, score, row in zip(queries, scores, ids, strict=True):
        n_hits = int((row >= 0).sum())
        row[:n_hits].sort()  # in the order of the file: neighbours are read together
        score[:n_hits] = np.asarray(vectors[row[:n_hits]]) @ query
        best = np.argsort(-score[:n_hits], kind="stable")
        score[:n_hits], row[:n_hits] = score[best], row[best]
    return scores[:, :k], ids[:, :k]


def _search(
    index: Any, queries: Vectors, k: int, bits: NDArray[np.uint8] | None, kind: IndexSpec
) -> tuple[Vectors, Ids]:
    """Return (scores, ids) of one FAISS index; `bits` has one for each id that may be found."""
    faiss = _faiss()
    selector = {} if bits is None else {"sel": faiss.IDSelectorBitmap(bits)}
    parameters = None
    if kind.nlist:
        parameters = faiss.SearchParametersIVF(nprobe=kind.nprobe, **selector)
    elif selector:
        parameters = faiss.SearchParameters(**selector)
    scores, ids = index.search(queries, k, params=parameters)
    return scores, ids


def random_pairs(vectors: Vectors) -> dict[str, Any]:
    """Describe how similar unrelated rows are.

    Returns the number of sampled pairs and quantiles of their cosines: a match must exceed them to
    be more than chance.
    """
    rng = np.random.default_rng(0)
    first = rng.integers(len(vectors), size=PAIRS)
    right = (first + rng.integers(1, max(2, len(vectors)), size=PAIRS)) % len(vectors)
    scores = np.concatenate(
        [
            np.einsum("nd,nd->n", vectors[first[at : at + 4096]], vectors[right[at : at + 4096]])
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
            "faiss is not installed: install imgrec with the extra 'cpu' or 'gpu', `pip install "
            "'.[cpu]'` in its folder."
        ) from error
    if threads:
        faiss.omp_set_num_threads(threads)
    return faiss
