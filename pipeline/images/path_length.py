"""Paths that are too long for the indexes of a database."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace

from pipeline.images.failure import Failure
from pipeline.images.find import ImageFile

# Two of them fit an index entry of PostgreSQL, of 2,704 bytes, as a pair of duplicates needs. Other
# databases have no limit, but an index must not depend on where its jobs are kept.
MAX_PATH_BYTES = 1200
DIGITS = 16  # of the hash of a path that is cut off


def too_long(path: str) -> str | None:
    """Say how much too long a path is; None for one that is not."""
    if len(path) * 4 <= MAX_PATH_BYTES:  # no letter has more bytes
        return None
    size = len(path.encode())
    return f"{size:,} bytes, more than {MAX_PATH_BYTES:,}" if size > MAX_PATH_BYTES else None


def without_long_paths(items: Iterable[ImageFile | Failure]) -> Iterator[ImageFile | Failure]:
    """Make failures of images whose paths are too long; shorten the paths of all failures."""
    for item in items:
        size = too_long(item.path)
        if size is None:
            yield item
        elif isinstance(item, Failure):
            yield replace(item, path=_shortened(item.path))
        else:
            reason = f"its path has {size}: shorten the names of its folders"
            yield Failure(_shortened(item.path), "find", reason)


def _shortened(path: str) -> str:
    """Return the beginning of a path, and a part of its hash: no two paths share one."""
    data = path.encode()
    begin = data[: MAX_PATH_BYTES - DIGITS - 3].decode(errors="ignore")
    return f"{begin}...{hashlib.sha256(data).hexdigest()[:DIGITS]}"
