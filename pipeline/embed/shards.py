"""Cut a folder into shards; write, verify and read the vectors of one."""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.access import is_unavailable
from pipeline.atomic_files import write_atomic
from pipeline.errors import IndexBroken

# A folder with few images is still cut into this many shards, so that several workers share it.
MIN_SHARDS = 8
SMALLEST_SHARD = 16
Item = TypeVar("Item")


@dataclass(frozen=True)
class ShardVectors:
    """The good images of one shard.

    positions: (n,) int32, places in the shard's list of images, ascending.
    sha256: (n,) S64, content hashes.
    vectors: (n, d) float32, L2-normalised.
    """

    positions: NDArray[np.int32]
    sha256: NDArray[np.bytes_]
    vectors: NDArray[np.float32]


def cut(images: Iterable[Item], shard_size: int) -> Iterator[list[Item]]:
    """Cut a stream of images, or of their addresses, into shards of `shard_size`.

    A small folder is cut into smaller ones.

    Holds at most `MIN_SHARDS * shard_size` images at a time.
    """
    stream = iter(images)
    head = list(islice(stream, MIN_SHARDS * shard_size + 1))
    size = shard_size
    if len(head) <= MIN_SHARDS * shard_size:
        size = min(shard_size, max(SMALLEST_SHARD, math.ceil(len(head) / MIN_SHARDS)))
    stream = chain(head, stream)
    while piece := list(islice(stream, size)):
        yield piece


def write_shard(folder: Path, number: int, shard: ShardVectors) -> tuple[str, str]:
    """Write a shard file named by number and content; return (file name, sha256).

    Two workers that made the same shard write two names at worst; the job table keeps one.
    """
    name, digest, data = encode_shard(number, shard)
    write_atomic(folder / name, data)
    return name, digest


def encode_shard(number: int, shard: ShardVectors) -> tuple[str, str, bytes]:
    """Return a shard's file name, sha256 and content."""
    buffer = io.BytesIO()
    np.savez(buffer, positions=shard.positions, sha256=shard.sha256, vectors=shard.vectors)
    data = buffer.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    return f"shard-{number:06d}-{digest[:12]}.npz", digest, data


def read_shard(folder: Path, name: str, digest: str) -> ShardVectors:
    """Read a shard file and verify its digest.

    Raises:
        IndexBroken: missing, changed on disk, or no shard file.
    """
    try:
        data = (folder / name).read_bytes()
    except OSError as error:
        if is_unavailable(error):  # of another user: to make it again would not help
            raise
        raise IndexBroken(f"The shard file {name} cannot be read: {error.strerror}.") from error
    return decode_shard(data, name, digest)


def decode_shard(data: bytes, name: str, digest: str) -> ShardVectors:
    """Read the content of a shard file.

    Raises:
        IndexBroken: it does not match its digest, or is no shard file.
    """
    if hashlib.sha256(data).hexdigest() != digest:
        raise IndexBroken(f"The shard file {name} does not match its digest in the job table.")
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return ShardVectors(arrays["positions"], arrays["sha256"], arrays["vectors"])
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise IndexBroken(f"The shard file {name} has an unknown layout: {error}.") from error
