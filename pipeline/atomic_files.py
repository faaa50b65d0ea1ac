"""Atomic file writes: after a crash, readers see the old content or the new, never a part of it."""

from __future__ import annotations

import hashlib
import os
import re
import time
import uuid
from contextlib import suppress
from pathlib import Path

from pipeline.failpoints import failpoint

TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")
ABANDONED_S = 86_400.0  # nothing is written for so long


def temporary_beside(path: Path) -> Path:
    """Return a hidden name beside a file, which no listing of images includes."""
    # Without the file's name in it, which may be as long as the file system allows.
    return path.with_name(f".{uuid.uuid4().hex[:16]}.tmp")


def write_atomic(path: Path, data: bytes) -> None:
    """Write to a temporary file beside it, flush to disk, rename into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        failpoint("rename", path.name)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def remove_abandoned(folder: Path) -> None:
    """Delete temporary files that writers which were killed have left in a folder."""
    newest = time.time() - ABANDONED_S
    for file in folder.glob(".*.tmp"):
        with suppress(OSError):
            if TEMPORARY.fullmatch(file.name) and file.stat().st_mtime < newest:
                file.unlink()


def sync_file(path: Path) -> None:
    """Flush a finished file to disk."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk: a rename is durable only after this."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """Return the digest of a file's content, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
