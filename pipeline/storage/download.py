"""Fetch a large object into a file: with flat memory, continued after a break, checked."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.atomic_files import file_sha256, sync_folder
from pipeline.errors import IndexBroken
from pipeline.failpoints import failpoint
from pipeline.storage.object_store import ObjectStore

CHUNK_BYTES = 16 << 20


def download(store: ObjectStore, key: str, file: Path, size: int, sha256: str) -> None:
    """Fetch an object of `size` bytes into a file, which is there only when it is whole.

    What an earlier attempt has fetched is kept. One process at a time may fetch a file.

    Raises:
        ObjectMissing: the object is gone.
        IndexBroken: it is not the one of this digest.
        ServerUnavailable, StoreRefused: the store cannot be read.
    """
    part = file.with_name(f".{file.name}.part")
    with part.open("ab") as stream:
        if stream.tell() > size:
            stream.seek(0)
            stream.truncate()
        if stream.tell() < size and (stored := store.info(key).size) != size:
            raise IndexBroken(
                f"The object {key} of the store {store.name} has {stored:,} bytes, its manifest "
                f"says {size:,}."
            )
        while (start := stream.tell()) < size:
            block = store.get_range(key, start, min(CHUNK_BYTES, size - start))
            if not block:
                break
            stream.write(block)
            failpoint("download", key)
        stream.flush()
        os.fsync(stream.fileno())
    if part.stat().st_size != size or file_sha256(part) != sha256:
        part.unlink()
        raise IndexBroken(f"The object {key} of the store {store.name} does not match its digest.")
    part.replace(file)
    sync_folder(file.parent)
