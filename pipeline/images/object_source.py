"""The images below a prefix of an object store, listed with flat memory and fetched ahead."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from itertools import islice

from pipeline.access import temporary_failed
from pipeline.errors import BadImage, ImageTooLarge, ObjectMissing, StoreRefused, WrongUse
from pipeline.images.decode import Limits
from pipeline.images.exclude import Exclude
from pipeline.images.failure import Failure
from pipeline.images.fetch_ahead import fetch_ahead
from pipeline.images.find import SYSTEM_FOLDERS, ImageFile, LeftOut
from pipeline.images.formats import SUFFIXES
from pipeline.images.source import Read
from pipeline.storage.address import Address
from pipeline.storage.object_store import ObjectInfo, ObjectStore, TooLarge
from pipeline.storage.parallel_list import list_objects

# Objects that tell a store that refuses one image from a store that refuses all.
PROBES = 5
CACHE_KIB = 32 * 1024  # of the sorted keys in memory; the rest is in a temporary file


class ObjectSource:
    """The images below one address."""

    def __init__(self, address: Address) -> None:
        self._store = ObjectStore(address)

    @property
    def name(self) -> str:
        return self._store.name

    def find(
        self,
        exclude: Exclude | None = None,
        left_out: LeftOut | None = None,
        alive: Callable[[], None] = lambda: None,
    ) -> Iterator[ImageFile | Failure]:
        """Yield the images in ascending order of their paths.

        Not every store lists in that order, so the keys are sorted in a temporary file.
        """
        images = self._images(exclude or Exclude(), left_out or LeftOut(), alive)
        with closing(sqlite3.connect("")) as keys, _told():
            keys.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            keys.execute(
                "CREATE TABLE keys (path TEXT PRIMARY KEY, size INTEGER, tag INTEGER) WITHOUT ROWID"
            )
            keys.executemany(
                "INSERT OR REPLACE INTO keys VALUES (?, ?, ?)",
                ((image.key, image.size, tag_number(image.etag)) for image in images),
            )
            for path, size, tag in keys.execute("SELECT * FROM keys ORDER BY path"):
                yield _image(path, size, tag)

    def find_unordered(
        self, exclude: Exclude | None = None, left_out: LeftOut | None = None
    ) -> Iterator[ImageFile | Failure]:
        for each in self._images(exclude or Exclude(), left_out or LeftOut()):
            yield _image(each.key, each.size, tag_number(each.etag))

    def require(self) -> None:
        next(self._store.objects(), None)

    def reading(self, images: Sequence[ImageFile], limits: Limits) -> AbstractContextManager[Read]:
        return fetch_ahead(lambda image: self.read(image.path, limits), images)

    def read(self, path: str, limits: Limits) -> bytes:
        """Return one image's bytes.

        Raises:
            BadImage: gone, empty, too large, or refused where others are not.
            StoreRefused, ServerUnavailable: no image is to blame.
        """
        try:
            data = self._store.get(path, limits.max_bytes).data
        except ObjectMissing:
            raise BadImage("the store has no such object any more", "read") from None
        except TooLarge as error:
            raise ImageTooLarge(
                f"the file has {error.size:,} bytes, more than MAX_IMAGE_BYTES "
                f"({limits.max_bytes:,})",
                "read",
            ) from None
        except WrongUse as error:
            raise BadImage(str(error), "read") from None
        except StoreRefused as error:
            if not self._gives_others(path):
                raise
            raise BadImage("the store refuses to give this object", "read") from error
        if not data:
            raise BadImage("the file is empty (0 bytes)", "read")
        return data

    def _images(
        self, exclude: Exclude, left_out: LeftOut, alive: Callable[[], None] = lambda: None
    ) -> Iterator[ObjectInfo]:
        for each in list_objects(self._store):
            alive()
            reason = _reason_to_leave_out(each.key, exclude)
            if reason:
                left_out.add(reason)
            elif os.path.splitext(each.key)[1].lower() not in SUFFIXES:
                left_out.add_name(each.key.rpartition("/")[2])
            else:
                yield each

    def _gives_others(self, path: str) -> bool:
        """Tell whether other objects can be read: then this one alone is refused."""
        for each in islice((item for item in self._store.objects() if item.key != path), PROBES):
            try:
                self._store.info(each.key)
            except (StoreRefused, ObjectMissing):
                continue
            return True
        return False


def _image(path: str, size: int, tag: int) -> ImageFile | Failure:
    if "\0" in path:  # which no database can store
        shown = path.replace("\0", "\\0")
        return Failure(shown, "find", "the key holds a NUL: rename the object")
    return ImageFile(path, size, tag)


def _reason_to_leave_out(key: str, exclude: Exclude) -> str | None:
    """Say why a key is left out on purpose, as a file of that path would be."""
    parts = key.split("/")
    if any(part.startswith(".") for part in parts):
        return "hidden"
    for part in parts[:-1]:
        if part.casefold() in SYSTEM_FOLDERS:
            return f"system folder {part}"
    if exclude.matches(key):
        return "excluded by --exclude"
    return None


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise temporary_failed("The sorted list of the store's keys", str(error)) from error


def tag_number(etag: str) -> int:
    """Return a number of 63 bits that stands for a tag: it takes the place of a file's time."""
    digest = hashlib.blake2b(etag.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
