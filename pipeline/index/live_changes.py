"""A published version with the images that were added and removed since: a side index.

The version stays as it is. What was added is searched exactly beside it, and what was removed is
masked, so that a change needs no new index. The next rebuild takes both in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.images.find import ImageFile
from pipeline.index.engine import Hits, OpenIndex, QueryByQuery, Vectors
from pipeline.index.segments import StackedVectors
from pipeline.index.versions import Version


@dataclass(frozen=True)
class AddedImage:
    """An image that is searched beside the version.

    Attributes:
        vector: (d,) float32 of unit length.
        changed_at: seconds since the epoch, by the database's clock.
        n: the revision of all changes, with this one; 0 before it is stored.
    """

    path: str
    product_id: str
    size: int
    mtime_ns: int
    sha256: str
    fingerprint: str
    vector: Vectors
    changed_at: float = 0.0
    n: int = 0


@dataclass(frozen=True)
class RemovedImage:
    """An image that is not found any more; `size` and `mtime_ns` are those of its file."""

    path: str
    product_id: str
    size: int
    mtime_ns: int
    changed_at: float = 0.0
    n: int = 0


@dataclass(frozen=True)
class Changes:
    """All changes at one revision, the last one of each path."""

    revision: int = 0
    images: tuple[AddedImage | RemovedImage, ...] = ()

    @property
    def paths(self) -> set[str]:
        return {each.path for each in self.images}

    def removed(self) -> dict[str, tuple[int, int]]:
        """Return (bytes, mtime in ns) of the removed files, by path."""
        return {
            each.path: (each.size, each.mtime_ns)
            for each in self.images
            if isinstance(each, RemovedImage)
        }

    def since(self, version: Version) -> Changes:
        """Return the changes that a version's rebuild may not have seen, of its kind of vectors."""
        is_later = later_changes(version)
        later = (each for each in self.images if is_later(each))
        return Changes(
            self.revision,
            tuple(
                each
                for each in later
                if isinstance(each, RemovedImage) or each.fingerprint == version.fingerprint
            ),
        )


def changes_seen(version: Version) -> int:
    """Return the last change that a version's rebuild knew; -1 where only its time is known."""
    return int(version.manifest.get("changes_seen", -1))


def later_changes(version: Version) -> Callable[[AddedImage | RemovedImage], bool]:
    """Return what tells the changes that a version's rebuild may not have seen.

    By their order, as the database's clock may have been set back; by their time where the
    version is of the last release.
    """
    seen, planned_at = changes_seen(version), version.manifest["job_created_at"]
    if seen < 0:
        return lambda change: change.changed_at > planned_at
    return lambda change: change.n > seen


def with_changes(index: OpenIndex, changes: Changes) -> OpenIndex:
    """Return an index with the changes since its rebuild; the index itself where there are none."""
    later = changes.since(index.version)
    return ChangedIndex(ChangedVersion(index.version, later), index) if later.images else index


class ChangedVersion(Version):
    """A version whose rows are followed by those of the images that were added."""

    def __init__(self, base: Version, changes: Changes) -> None:
        super().__init__(base.folder, base.manifest, base.manifest_mtime_ns)
        added = [each for each in changes.images if isinstance(each, AddedImage)]
        n_base = len(base.paths)
        vectors = np.array([each.vector for each in added], np.float32)
        vectors = vectors.reshape(len(added), base.vectors.shape[1])  # (0, d) if none is
        kept = np.ones(n_base + len(added), bool)
        replaced = (base.row_of_path(each.path) for each in changes.images)
        kept[[row for row in replaced if row is not None]] = False
        # Not `self.x = x`: a version is frozen, and its cached properties are entries here.
        vars(self).update(
            base=base,
            added=added,
            revision=changes.revision,
            paths=_Paths(base.paths, [each.path for each in added]),
            vectors=StackedVectors(base.vectors, vectors),
            kept=None if kept.all() else kept,
            sha256=base.sha256,
            files=base.files,
            by_hash=base.by_hash,
            random_pairs=base.random_pairs,
        )

    @property
    def identity(self) -> str:
        """An id of this version with these changes."""
        return f"{super().identity}+{vars(self)['revision']}"

    def file(self, name: str) -> Path:
        """Return a file of the version, fetched first where it is in a store."""
        base: Version = vars(self)["base"]
        return base.file(name)

    def image(self, path: str) -> ImageFile:
        """Return an image of the version, or one beside it, as it was listed."""
        for each in self.added_images:
            if each.path == path:
                return ImageFile(path, each.size, each.mtime_ns, each.sha256)
        base: Version = vars(self)["base"]
        return base.image(path)

    def has_path(self, path: str) -> bool:
        """Tell whether an image is in the version or beside it."""
        return super().has_path(path) or any(each.path == path for each in self.added_images)

    @property
    def added_images(self) -> list[AddedImage]:
        """The images beside the version."""
        added: list[AddedImage] = vars(self)["added"]
        return added


def removed_images(version: Version, paths: Sequence[str], product_id: str) -> list[RemovedImage]:
    """Return images of a version as those that are removed, with the facts of their files."""
    beside = dict[str, tuple[int, int]]()
    if isinstance(version, ChangedVersion):
        beside = {each.path: (each.size, each.mtime_ns) for each in version.added_images}
    removed = []
    for path in paths:
        size, mtime_ns = beside.get(path) or _file_of(version, path)
        removed.append(RemovedImage(path, product_id, size, mtime_ns))
    return removed


class _Paths(Sequence[str]):
    """The paths of a version, then those of the added images."""

    def __init__(self, base: Sequence[str], added: list[str]) -> None:
        self._base, self._added = base, added

    def __len__(self) -> int:
        return len(self._base) + len(self._added)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[each] for each in range(*row.indices(len(self)))]
        n_base = len(self._base)
        return self._base[row] if row < n_base else self._added[row - n_base]

    def __iter__(self) -> Iterator[str]:
        yield from self._base
        yield from self._added


@dataclass(frozen=True)
class ChangedIndex(QueryByQuery):
    """An index whose removed rows are masked, and a few rows that are searched beside it."""

    version: ChangedVersion
    base: OpenIndex

    @cached_property
    def vectors(self) -> Vectors:
        """The (m, d) vectors of the added images."""
        added: Vectors = vars(self.version)["vectors"].new
        return added

    @cached_property
    def kept(self) -> NDArray[np.bool_] | None:
        """The (n,) rows of the base that stay; None: all."""
        return None if self.version.kept is None else self.version.kept[: self._n_base]

    @property
    def exact(self) -> bool:
        return self.base.exact

    @property
    def n_vectors(self) -> int:
        n_kept = self._n_base if self.kept is None else int(self.kept.sum())
        return n_kept + len(self.vectors)

    def search_deepening(
        self, vector: Vectors, first: int, allowed: NDArray[np.bool_] | None = None
    ) -> Iterator[Hits]:
        """Yield ever deeper lists of (row, score), see `OpenIndex`.

        A list of the base goes down to some score; what was added and scores less waits for a
        deeper one.
        """
        beside = self._beside(vector, allowed)
        mask = self._base_mask(allowed)
        n_allowed = self._n_base if mask is None else int(mask.sum())
        if not n_allowed:
            if beside:
                yield beside
            return
        for hits in self.base.search_deepening(vector, first, mask):
            whole = len(hits) == n_allowed
            lowest = -np.inf if whole else hits[-1][1]
            merged = [*hits, *(hit for hit in beside if hit[1] >= lowest)]
            yield sorted(merged, key=lambda hit: -hit[1])

    def plan(self, first: int, allowed: NDArray[np.bool_] | None) -> str:
        """Tell how the version is searched, and how many rows are searched beside it."""
        plan = self.base.plan(first, self._base_mask(allowed))
        n_gone = 0 if self.kept is None else int((~self.kept).sum())
        return f"{plan}; since the rebuild {len(self.vectors)} added, {n_gone} removed or replaced"

    def warm(self) -> None:
        """Make ready what the first searches of the version need."""
        self.base.warm()

    @cached_property
    def _n_base(self) -> int:
        return len(self.base.version.paths)

    def _beside(self, vector: Vectors, allowed: NDArray[np.bool_] | None) -> Hits:
        scores = self.vectors @ vector
        order = np.argsort(-scores, kind="stable")
        rows = order + self._n_base
        if allowed is not None:
            rows, order = rows[allowed[rows]], order[allowed[rows]]
        return list(zip(rows.tolist(), scores[order].tolist(), strict=True))

    def _base_mask(self, allowed: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
        if allowed is None:
            return self.kept
        mask = allowed[: self._n_base]
        return mask if self.kept is None else mask & self.kept


def _file_of(version: Version, path: str) -> tuple[int, int]:
    size, mtime_ns = version.files[version.row_of_path(path)].tolist()
    return size, mtime_ns


class ChangedIndexes:
    """The published index with the changes since; made once for a version and a revision."""

    def __init__(self, changes: Callable[[], Changes]) -> None:
        self._changes = changes
        self._made: tuple[OpenIndex, int, OpenIndex] | None = None

    def of(self, index: OpenIndex) -> OpenIndex:
        """Return an index with the changes as they are now, or were a moment ago."""
        changes, made = self._changes(), self._made
        if made is None or made[0] is not index or made[1] != changes.revision:
            made = self._made = (index, changes.revision, with_changes(index, changes))
        return made[2]
