"""The store of what rebuilds and trainings make, where ARTIFACTS_URL names one.

CURRENT                           the pointer: which version is published
versions/vNNNN.json               a version's manifest; it is written after the files it names
builds/JOB.ID/...                 the files of a version
jobs/JOB/shard-NNNNNN-DIGEST.npz  vectors of a running rebuild
models/CATEGORY/ATTRIBUTE/...     trained heads
fetched/HH/SHA256                 images of feeds
preprocessed/...                  what `enqueue-rebuild --save-preprocessed` saves
.imgrec-id                        tells hosts whether they use the same store
"""

from __future__ import annotations

import contextlib
import hashlib
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ImgrecError, ObjectConflict, ObjectMissing, StoreRefused, WrongUse
from pipeline.settings import Settings
from pipeline.storage.address import Address

if TYPE_CHECKING:
    from pipeline.storage.object_store import ObjectStore

ID_KEY = ".imgrec-id"
MAX_ID_BYTES = 100


def artifacts_address(settings: Settings) -> Address | None:
    """Return the address in ARTIFACTS_URL; None where DATA_DIR holds everything.

    Raises:
        WrongUse: it names no store that can be written.
    """
    if not settings.artifacts_url:
        return None
    try:
        address = Address.parse(settings.artifacts_url)
    except WrongUse as error:
        raise WrongUse(f"The setting ARTIFACTS_URL cannot be used: {error}") from None
    if address.scheme in ("http", "https"):
        raise WrongUse(
            "The setting ARTIFACTS_URL cannot be used: a web server cannot be written to. Name a "
            "store, e.g. s3://BUCKET/PREFIX."
        )
    return address


def copies_folder(settings: Settings, address: Address) -> Path:
    """Return the folder of this host's copies of what a store holds."""
    digest = hashlib.sha256(str(address).encode()).hexdigest()
    return settings.data_dir / "copies" / digest[:12]


def require_conditional_puts(store: ObjectStore) -> None:
    """Try whether a store refuses to replace an object that another process has changed.

    Without that, two publications at once could undo each other. Some stores have no such puts, and
    ignore the condition without a word.

    Raises:
        StoreRefused: it does not, or cannot be written. ServerUnavailable: it does not answer.
    """
    key = f".imgrec-probe-{uuid.uuid4().hex}"
    try:
        first = store.put_if(key, b"1", None)
        kept = _refused(store, key, None)
        second = store.put_if(key, b"2", first)
        kept = kept and second != first and _refused(store, key, first)
    except ObjectConflict:
        kept = False
    finally:
        with contextlib.suppress(ImgrecError):
            store.delete([key])
    if not kept:
        raise StoreRefused(
            f"The store {store.name} ignores the conditions of a put (If-None-Match, If-Match), "
            "without which two publications at once could undo each other: name one in "
            "ARTIFACTS_URL that has conditional puts."
        )


def store_id(store: ObjectStore, *, create: bool = False) -> str | None:
    """Return the id of a store; None where it has none yet.

    Args:
        create: give it one then.

    Raises:
        ServerUnavailable, StoreRefused: it cannot be read.
    """
    with contextlib.suppress(ObjectMissing):
        return _read_id(store)
    if not create:
        return None
    with contextlib.suppress(ObjectConflict):  # another process was first
        store.put_if(ID_KEY, uuid.uuid4().hex.encode(), None)
    return _read_id(store)


def _read_id(store: ObjectStore) -> str | None:
    return store.get(ID_KEY, MAX_ID_BYTES).data.decode("ascii", "replace").strip() or None


def _refused(store: ObjectStore, key: str, etag: str | None) -> bool:
    try:
        store.put_if(key, b"stale", etag)
    except ObjectConflict:
        return True
    return False
