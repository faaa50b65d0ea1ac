"""Images of feeds: files that are named by the hash of their content."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

from pipeline.atomic_files import write_atomic
from pipeline.errors import BadImage, SetupError
from pipeline.images.decode import Limits, read_image, sha256
from pipeline.images.find import ImageFile
from pipeline.images.source import Read

FEED = "feed:"
DIGEST = re.compile(r"[0-9a-f]{64}")
# A file that nothing leads to yet may belong to a download whose row is just being written.
LEAST_AGE_S = 86_400
AT_ONCE = 500


def feed_name(root: str) -> str | None:
    """Return the NAME of feed:NAME; None for another root."""
    return root[len(FEED) :] if root.startswith(FEED) else None


def content_number(digest: str) -> int:
    """Return a number of 60 bits that stands for a content: it takes the place of a file's time."""
    return int(digest[:15], 16)


class FetchedFiles:
    """The folder of fetched files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, digest: str) -> Path:
        return self.folder / digest[:2] / digest[2:4] / digest

    def has(self, digest: str) -> bool:
        return bool(DIGEST.fullmatch(digest)) and self.path(digest).is_file()

    def put(self, data: bytes) -> str:
        """Store a content; return its hash. Storing it again changes nothing."""
        digest = sha256(data)
        path = self.path(digest)
        try:
            os.utime(path)  # it is in use again: see `prune`
        except FileNotFoundError:
            write_atomic(path, data)
        return digest

    def prune(
        self, needed: Callable[[Sequence[str]], set[str]], *, dry_run: bool = False
    ) -> tuple[int, int]:
        """Delete files that nothing leads to; return how many, and their bytes."""
        count = n_bytes = 0
        for folder in sorted(self.folder.glob("??/??")):
            old = list(_old_files(folder))
            for start in range(0, len(old), AT_ONCE):
                some = old[start : start + AT_ONCE]
                used = needed([file.name for file, _ in some])
                for file, size in some:
                    if file.name not in used:
                        count, n_bytes = count + 1, n_bytes + size
                        if not dry_run:
                            file.unlink(missing_ok=True)
        return count, n_bytes


class FetchedImages:
    """Reads the images of a feed, which are known by the hashes of their content."""

    def __init__(self, name: str, files: FetchedFiles) -> None:
        self._name = name
        self._files = files

    @property
    def name(self) -> str:
        return self._name

    def require(self) -> None:
        if not self._files.folder.is_dir():
            raise SetupError(
                f"The folder {self._files.folder} does not exist on this host: workers on queues "
                "'fetch' and 'embed' must share DATA_DIR."
            )

    def reading(self, images: Sequence[ImageFile], limits: Limits) -> AbstractContextManager[Read]:
        def read(image: ImageFile) -> bytes:
            if not self._files.has(image.sha256):
                raise BadImage("the fetched file does not exist any more", "read")
            return read_image(self._files.path(image.sha256), limits)

        return nullcontext(read)


def _old_files(folder: Path) -> Iterator[tuple[Path, int]]:
    newest = time.time() - LEAST_AGE_S
    for file in folder.iterdir():
        with suppress(FileNotFoundError):
            stat = file.stat()
            if stat.st_mtime < newest:
                yield file, stat.st_size
