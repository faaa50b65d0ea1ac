"""What differs between two index versions."""

from __future__ import annotations

from typing import Any

from pipeline.index.versions import Version


def changes(old: Version, new: Version, limit: int) -> dict[str, Any]:
    """Return the images that were added, removed or changed: how many, and the first paths.

    Both lists are sorted by path, so one pass over them is enough.
    """
    added, removed, changed = (Changed(limit) for _ in range(3))
    before, after = enumerate(old.paths), enumerate(new.paths)
    left, right = next(before, None), next(after, None)
    while left is not None or right is not None:
        if right is None or (left is not None and left[1] < right[1]):
            assert left is not None
            removed.add(left[1])
            left = next(before, None)
        elif left is None or right[1] < left[1]:
            added.add(right[1])
            right = next(after, None)
        else:
            if old.sha256[left[0]] != new.sha256[right[0]]:
                changed.add(left[1])
            left, right = next(before, None), next(after, None)
    return {"added": added.object(), "removed": removed.object(), "changed": changed.object()}


class Changed:
    """Counts paths, and holds the first ones."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._total = 0
        self._paths: list[str] = []

    def add(self, path: str) -> None:
        self._total += 1
        if len(self._paths) < self._limit:
            self._paths.append(path)

    def object(self) -> dict[str, Any]:
        return {"total": self._total, "paths": self._paths}
