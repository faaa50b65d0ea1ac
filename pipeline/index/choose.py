"""Choose the kind of an index by the number of vectors and the memory budget."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from pipeline.images.memory_budget import format_bytes

# FAISS requires at least 39 training points per centroid (FAISS wiki, "Guidelines to choose an
# index") and recommends 4*sqrt(n) lists or more. Training and filling cost n * lists * d: for
# 1,000,000 x 512 on one core, a minute with sqrt(n) lists and several with four times as many,
# which make a search less than a millisecond faster.
POINTS_PER_LIST = 39
LISTS_PER_SQRT = 1
PQ_POINTS = 256 * POINTS_PER_LIST  # a product quantizer has 256 centroids in each part
PQ_DIMS = (4, 8, 16)  # dimensions per byte, from the finest code to the smallest
PQ_BITS = 8
ID_BYTES = 8  # stored with each code of an inverted list


@dataclass(frozen=True)
class IndexSpec:
    """A FAISS factory string, how it is searched, and why it was chosen.

    nlist, nprobe: number of inverted lists, and of those that a search reads; 0 without lists.
    trained: number of vectors that the lists were trained for; 0 without lists.
    rerank: for k matches, `rerank` * k rows are scored exactly with the stored vectors; 0 where
        FAISS's own scores are exact.
    memory: bytes of the index when all of it is in use.
    """

    factory: str
    nlist: int = 0
    nprobe: int = 0
    recall_at_10: float = 1.0
    rerank: int = 0
    memory: int = 0
    reason: str = ""
    trained: int = 0

    def parameters(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, parameters: dict[str, Any]) -> IndexSpec:
        """Read the parameters in a manifest; an old one has no `rerank`."""
        names = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in parameters.items() if name in names})

    @property
    def codes(self) -> str:
        """How vectors are stored, without the number of lists: Flat, SQ8, PQ64x8np."""
        return self.factory.rpartition(",")[2]

    @property
    def coded(self) -> bool:
        """Whether several numbers of a vector share one byte."""
        return "PQ" in self.factory

    @property
    def target_recall(self) -> float:
        """Recall@10 that the search is tuned to reach on the index's own vectors."""
        if self.coded:
            return 0.95  # more would need the exact scores of very many rows
        return 0.97 if self.nlist else 1.0


def choose_spec(count: int, dim: int, flat_max: int, budget: int | None = None) -> IndexSpec:
    """Choose the most exact kind for `count` vectors within `budget` bytes.

    Exact search up to `flat_max` vectors; above, inverted lists whose number grows with sqrt. If
    the budget is too small for full vectors, they are compressed: a byte per number (SQ8), then a
    byte per 4, 8 or 16 numbers (PQ).
    """
    kinds = _kinds(count, dim, flat_max)
    for kind in kinds:
        if budget is None or kind.memory <= budget:
            return _because(kind, kinds[0], count, flat_max, budget)
    smallest = min(kinds, key=lambda kind: kind.memory)
    return _because(smallest, kinds[0], count, flat_max, budget)


def _kinds(count: int, dim: int, flat_max: int) -> list[IndexSpec]:
    """Return the possible kinds, the most exact first."""
    # Never more lists than there are training points for.
    nlist = max(1, min(round(LISTS_PER_SQRT * math.sqrt(count)), count // POINTS_PER_LIST))
    lists = nlist * (4 * dim + ID_BYTES)
    if count <= flat_max:
        kinds = [
            IndexSpec("Flat", memory=4 * dim * count),
            IndexSpec("SQ8", memory=dim * count + 8 * dim, rerank=2),
        ]
    else:
        kinds = [
            IndexSpec(f"IVF{nlist},Flat", nlist, memory=(4 * dim + ID_BYTES) * count + lists),
            IndexSpec(
                f"IVF{nlist},SQ8",
                nlist,
                memory=(dim + ID_BYTES) * count + lists + 8 * dim,
                rerank=2,
            ),
        ]
    if count < PQ_POINTS:
        return kinds
    for dims in PQ_DIMS:
        if dim % dims == 0:
            size = (dim // dims + ID_BYTES) * count + lists + 256 * 4 * dim
            # np: no polysemous training, which takes minutes and which inverted lists do not use.
            factory = f"IVF{nlist},PQ{dim // dims}x{PQ_BITS}np"
            kinds.append(IndexSpec(factory, nlist, memory=size, rerank=4))
    return kinds


def _because(
    kind: IndexSpec, best: IndexSpec, count: int, flat_max: int, budget: int | None
) -> IndexSpec:
    if count <= flat_max:
        size = f"{count:,} vectors, up to FLAT_MAX_VECTORS ({flat_max:,})"
    else:
        size = f"{count:,} vectors, more than FLAT_MAX_VECTORS ({flat_max:,})"
    needs = f"it takes {format_bytes(kind.memory)}"
    if budget is None:
        reason = f"{size}: {needs}; INDEX_MEMORY sets no limit"
    elif kind.memory > budget:
        reason = (
            f"{size}: no smaller kind exists; {needs}, more than INDEX_MEMORY "
            f"({format_bytes(budget)})"
        )
    elif kind == best:
        reason = f"{size}: {needs} of INDEX_MEMORY ({format_bytes(budget)})"
    else:
        reason = (
            f"{size}: {best.factory} would take {format_bytes(best.memory)}, more than "
            f"INDEX_MEMORY ({format_bytes(budget)}); {needs}"
        )
    return IndexSpec(**{**asdict(kind), "reason": reason})
