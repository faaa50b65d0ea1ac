"""The digests of files that never change, computed once for each file that is as it was."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cachetools import LRUCache

from pipeline.atomic_files import file_sha256

MAX_FILES = 1024
READERS = 2  # files at the same time: hashing leaves Python's lock to others
# A file that was written so shortly ago may change again and keep its modification time, which a
# network file system may keep to the second.
SETTLED_S = 2.5

Key = tuple[int, int, int, int]


class FileDigests:
    """Remembers digests by device, inode, size and modification time; threads may share it.

    A hard link has the digest of its file. The time of the last change of the inode is no part of
    this: each link that comes or goes changes it.
    """

    def __init__(self) -> None:
        self._known: LRUCache[Key, str] = LRUCache(MAX_FILES)
        self._lock = threading.Lock()

    def sha256(self, path: Path) -> str:
        """Return a file's digest; read it where it is not known.

        Raises:
            OSError: it cannot be read.
        """
        key, settled = _facts(path)
        with self._lock:
            known: str | None = self._known.get(key)
        if known is not None:
            # Who may not read the file any more must not go on as if they might.
            os.close(os.open(path, os.O_RDONLY))
            return known
        digest = file_sha256(path)
        if settled:
            with self._lock:
                self._known[key] = digest
        return digest

    def note(self, path: Path, sha256: str) -> None:
        """Remember the digest of a file that this process wrote, and nobody else does."""
        key, settled = _facts(path)
        if settled:
            with self._lock:
                self._known[key] = sha256

    def of_all(self, paths: Iterable[Path]) -> list[str]:
        """Return the digests of several files, in their order."""
        with ThreadPoolExecutor(READERS, "digest") as pool:
            return list(pool.map(self.sha256, paths))


def _facts(path: Path) -> tuple[Key, bool]:
    """Return what a file is known by, and whether it was written long enough ago."""
    facts = path.stat()
    key = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)
    return key, time.time() - facts.st_mtime > SETTLED_S
