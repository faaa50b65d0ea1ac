"""Where the shard files of running jobs are: a folder that workers share, or a store."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from pipeline.embed.shards import (
    ShardVectors,
    decode_shard,
    encode_shard,
    read_shard,
    write_shard,
)
from pipeline.errors import IndexBroken, ObjectMissing
from pipeline.storage.object_store import ObjectStore

JOBS = "jobs"
READ_AHEAD = 8  # shards, of some 600 kB each


class ShardFiles(Protocol):
    """The shard files of all jobs."""

    def write(self, job_id: str, number: int, shard: ShardVectors) -> tuple[str, str]:
        """Write a shard file named by number and content; return (file name, sha256)."""

    def read(self, job_id: str, files: Sequence[tuple[str, str]]) -> Iterator[ShardVectors | None]:
        """Yield the shards of some (file name, sha256) in their order; None for a broken file."""

    def jobs(self) -> list[str]:
        """Name the jobs that have files."""

    def delete(self, job_id: str) -> None:
        """Delete the files of a job."""


class ShardFolder:
    """A folder for each job."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, job_id: str, number: int, shard: ShardVectors) -> tuple[str, str]:
        return write_shard(self._folder / job_id, number, shard)

    def read(self, job_id: str, files: Sequence[tuple[str, str]]) -> Iterator[ShardVectors | None]:
        for name, digest in files:
            try:
                yield read_shard(self._folder / job_id, name, digest)
            except IndexBroken:
                yield None

    def jobs(self) -> list[str]:
        if not self._folder.is_dir():
            return []
        return sorted(child.name for child in self._folder.iterdir())

    def delete(self, job_id: str) -> None:
        shutil.rmtree(self._folder / job_id, ignore_errors=True)


class ShardObjects:
    """Objects below jobs/JOB/; nothing of them is kept on this host."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def write(self, job_id: str, number: int, shard: ShardVectors) -> tuple[str, str]:
        name, digest, data = encode_shard(number, shard)
        self._store.put(f"{JOBS}/{job_id}/{name}", data)
        return name, digest

    def read(self, job_id: str, files: Sequence[tuple[str, str]]) -> Iterator[ShardVectors | None]:
        ahead: deque[Future[ShardVectors | None]] = deque()
        with ThreadPoolExecutor(READ_AHEAD, "shards") as pool:
            try:
                for name, digest in files:
                    ahead.append(pool.submit(self._read, job_id, name, digest))
                    if len(ahead) >= READ_AHEAD:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def jobs(self) -> list[str]:
        prefixes, _ = self._store.first_level(f"{JOBS}/")
        return sorted(prefix.rstrip("/").rpartition("/")[2] for prefix in prefixes)

    def delete(self, job_id: str) -> None:
        self._store.delete([each.key for each in self._store.objects(f"{JOBS}/{job_id}/")])

    def _read(self, job_id: str, name: str, digest: str) -> ShardVectors | None:
        try:
            return decode_shard(self._store.get(f"{JOBS}/{job_id}/{name}").data, name, digest)
        except (ObjectMissing, IndexBroken):
            return None
