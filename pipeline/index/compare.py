"""What changed from one index version to another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.index.versions import Version

Row = tuple[str, bytes]


@dataclass(frozen=True)
class Changes:
    """Paths of images in ascending order; a changed one has the same path and another content."""

    added: list[str]
    removed: list[str]
    changed: list[str]


def changes(old: Version, new: Version) -> Changes:
    """Compare two versions by the paths and the content hashes of their images."""
    result = Changes([], [], [])
    ours, theirs = _rows(old), _rows(new)
    left, right = next(ours, None), next(theirs, None)
    while left or right:
        if right is None or (left is not None and left[0] < right[0]):
            assert left is not None
            result.removed.append(left[0])
            left = next(ours, None)
        elif left is None or right[0] < left[0]:
            result.added.append(right[0])
            right = next(theirs, None)
        else:
            if left[1] != right[1]:
                result.changed.append(left[0])
            left, right = next(ours, None), next(theirs, None)
    return result


def _rows(version: Version) -> Iterator[Row]:
    return zip(version.paths, version.sha256, strict=True)
