"""Images of feeds: files named by the hash of their content, on this disk or in a store."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pipeline.atomic_files import write_atomic
from pipeline.errors import BadImage, ImageTooLarge, ObjectMissing, SetupError
from pipeline.images.decode import Limits, read_image, sha256
from pipeline.images.fetch_ahead import fetch_ahead
from pipeline.images.find import ImageFile
from pipeline.images.source import ImageReader, Read, is_empty
from pipeline.settings import Settings
from pipeline.storage.artifacts import artifacts_address

if TYPE_CHECKING:
    from pipeline.storage.object_store import ObjectStore

FEED = "feed:"
FOLDER = "fetched"  # in the store
DIGEST = re.compile(r"[0-9a-f]{64}")
# A file that nothing leads to yet may belong to a download whose row is just being written.
LEAST_AGE_S = 86_400
AT_ONCE = 500

Needed = Callable[[Sequence[str]], set[str]]


def feed_name(root: str) -> str | None:
    """Return the NAME of feed:NAME; None for another root."""
    return root[len(FEED) :] if root.startswith(FEED) else None


def content_number(digest: str) -> int:
    """Return a number of 60 bits that stands for a content: it takes the place of a file's time."""
    return int(digest[:15], 16)


class FetchedStore(ImageReader, Protocol):
    """Where fetched images are kept; they are known by the hashes of their content."""

    def has(self, digest: str) -> bool:
        """Tell whether a content is there."""

    def put(self, data: bytes) -> str:
        """Store a content; return its hash. Storing it again makes it new, and whole if damaged."""

    def old(self) -> Iterator[tuple[str, int]]:
        """Yield the hash and the bytes of what was stored more than a day ago."""

    def delete(self, digests: Sequence[str]) -> None:
        """Delete contents."""


def fetched_store(settings: Settings) -> FetchedStore:
    """Return the store at ARTIFACTS_URL, else the folder below DATA_DIR.

    Raises:
        WrongUse: ARTIFACTS_URL names no store.
    """
    address = artifacts_address(settings)
    if address is None:
        return FetchedFiles(settings.fetched_dir)
    from pipeline.storage.object_store import ObjectStore  # needs a library that few commands do

    return FetchedObjects(ObjectStore(address))


def prune_fetched(store: FetchedStore, needed: Needed, *, dry_run: bool) -> tuple[int, int]:
    """Delete contents that nothing leads to; return how many, and their bytes.

    Args:
        needed: returns those of some hashes that something leads to.
    """
    count = n_bytes = 0
    old = store.old()
    while sizes := dict(islice(old, AT_ONCE)):
        unused = sorted(sizes.keys() - needed(list(sizes)))
        count, n_bytes = count + len(unused), n_bytes + sum(sizes[digest] for digest in unused)
        if not dry_run:
            store.delete(unused)
    return count, n_bytes


class FetchedFiles:
    """A folder of this host, or one that hosts share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def require(self) -> None:
        if not self.folder.is_dir():
            raise SetupError(
                f"The folder {self.folder} does not exist on this host: workers on queues 'fetch' "
                "and 'embed' must share DATA_DIR or ARTIFACTS_URL."
            )
        if is_empty(self.folder):
            raise SetupError(
                f"The folder {self.folder} is empty on this host, as if its disk or share were not "
                "mounted: workers on queues 'fetch' and 'embed' must share DATA_DIR or "
                "ARTIFACTS_URL."
            )

    def path(self, digest: str) -> Path:
        return self.folder / digest[:2] / digest[2:4] / digest

    def has(self, digest: str) -> bool:
        return bool(DIGEST.fullmatch(digest)) and self.path(digest).is_file()

    def put(self, data: bytes) -> str:
        digest = sha256(data)
        path = self.path(digest)
        with suppress(OSError):  # it is not there, or cannot be read: then it is written
            if path.stat().st_size == len(data) and path.read_bytes() == data:
                os.utime(path)
                return digest
        write_atomic(path, data)
        return digest

    def reading(self, images: Sequence[ImageFile], limits: Limits) -> AbstractContextManager[Read]:
        def read(image: ImageFile) -> bytes:
            if not self.has(image.sha256):
                raise _missing()
            return read_image(self.path(image.sha256), limits)

        return nullcontext(read)

    def old(self) -> Iterator[tuple[str, int]]:
        newest = time.time() - LEAST_AGE_S
        for folder in sorted(self.folder.glob("??/??")):
            for file in list(folder.iterdir()):
                with suppress(FileNotFoundError):
                    stat = file.stat()
                    if stat.st_mtime < newest and DIGEST.fullmatch(file.name):
                        yield file.name, stat.st_size

    def delete(self, digests: Sequence[str]) -> None:
        newest = time.time() - LEAST_AGE_S
        for digest in digests:
            path = self.path(digest)
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < newest:  # or it was stored again meanwhile
                    path.unlink()


class FetchedObjects:
    """Objects of a store."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def require(self) -> None:
        next(self._store.objects(f"{FOLDER}/"), None)

    def has(self, digest: str) -> bool:
        if not DIGEST.fullmatch(digest):
            return False
        try:
            self._store.info(_key(digest))
        except ObjectMissing:
            return False
        return True

    def put(self, data: bytes) -> str:
        digest = sha256(data)
        self._store.put(_key(digest), data)
        return digest

    def reading(self, images: Sequence[ImageFile], limits: Limits) -> AbstractContextManager[Read]:
        from pipeline.storage.object_store import TooLarge

        def read(image: ImageFile) -> bytes:
            if not DIGEST.fullmatch(image.sha256):
                raise _missing()
            try:
                return self._store.get(_key(image.sha256), limits.max_bytes).data
            except ObjectMissing:
                raise _missing() from None
            except TooLarge as error:
                raise ImageTooLarge(
                    f"the file has {error.size:,} bytes, more than MAX_IMAGE_BYTES "
                    f"({limits.max_bytes:,})",
                    "read",
                ) from None

        return fetch_ahead(read, images)

    def old(self) -> Iterator[tuple[str, int]]:
        newest = time.time() - LEAST_AGE_S
        for each, stored_at in self._store.ages(f"{FOLDER}/"):
            digest = each.key.rpartition("/")[2]
            if stored_at < newest and each.key == _key(digest):
                yield digest, each.size

    def delete(self, digests: Sequence[str]) -> None:
        self._store.delete([_key(digest) for digest in digests])


def _key(digest: str) -> str:
    return f"{FOLDER}/{digest[:2]}/{digest}"


def _missing() -> BadImage:
    return BadImage("the fetched file does not exist any more", "read")
