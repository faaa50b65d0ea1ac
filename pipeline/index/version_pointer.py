"""The object CURRENT of a store, which names the published version: replaced, never overwritten."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.errors import IndexBroken, ObjectConflict, ObjectMissing
from pipeline.index.versions import NAME
from pipeline.storage.object_store import ObjectStore, StoredObject, TooLarge

POINTER = "CURRENT"
MAX_JSON_BYTES = 1 << 20


@dataclass(frozen=True)
class Pointer:
    """What CURRENT says; `stamp` is its ETag, empty where there is none.

    deleting: versions whose deletion has begun, so that nobody publishes them any more.
    """

    version: str | None = None
    deleting: tuple[str, ...] = ()
    stamp: str = ""


class VersionPointer:
    """The pointer of one store; every method raises what `ObjectStore` does."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def read(self) -> Pointer:
        """Return what it says now.

        Raises:
            IndexBroken: it is no pointer.
        """
        stored = self._stored()
        if stored is None:
            return Pointer()
        try:
            facts = json.loads(stored.data)
            name, deleting = facts["version"], facts["deleting"]
            if not NAME.fullmatch(name) or not all(map(NAME.fullmatch, deleting)):
                raise ValueError
        except (ValueError, KeyError, TypeError):
            raise IndexBroken(
                f"The object {POINTER} of the store {self._store.name} contains "
                f"{stored.data[:50]!r}, not the name of a version: run 'imgrec index rollback "
                "VERSION'."
            ) from None
        return Pointer(name, tuple(deleting), stored.etag)

    def look(self) -> Pointer:
        """Return the same; one that is no pointer names nothing, and can be replaced."""
        try:
            return self.read()
        except IndexBroken:
            return Pointer(stamp=self.stamp())

    def stamp(self) -> str:
        stored = self._stored()
        return stored.etag if stored else ""

    def replace(self, seen: Pointer, version: str, deleting: Iterable[str]) -> None:
        """Name a version, if the pointer is still the one that was seen.

        Raises:
            ObjectConflict: it is another.
        """
        # The id tells two pointers to one version apart, also by an ETag that is a content's hash.
        facts = {"version": version, "deleting": list(deleting), "id": uuid.uuid4().hex}
        put_once(self._store, POINTER, json.dumps(facts).encode(), seen.stamp or None)

    def _stored(self) -> StoredObject | None:
        try:
            return self._store.get(POINTER, MAX_JSON_BYTES)
        except ObjectMissing:
            return None
        except TooLarge:  # whatever it is, it can be replaced
            return StoredObject(b"", self._store.info(POINTER).etag)


def put_once(store: ObjectStore, key: str, data: bytes, etag: str | None) -> None:
    """Put an object under a condition; `data` is like no other.

    Raises:
        ObjectConflict: the condition does not hold.
    """
    try:
        store.put_if(key, data, etag)
    except ObjectConflict:
        # A put whose answer was lost is sent again, and then meets itself.
        try:
            if store.get(key, MAX_JSON_BYTES).data == data:
                return
        except ObjectMissing:
            pass
        raise
