"""Shard files in a folder and in a store, by one set of claims."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from obstore.store import MemoryStore

from pipeline.embed.shard_files import ShardFiles, ShardFolder, ShardObjects
from pipeline.embed.shards import ShardVectors
from pipeline.errors import ServerUnavailable
from pipeline.storage.address import Address
from pipeline.storage.object_store import ObjectStore

JOB = "20261127-1"


@pytest.fixture
def store() -> ObjectStore:
    return ObjectStore(Address("s3", "shop", "imgrec"), MemoryStore())


@pytest.fixture(params=["folder", "store"])
def files(request: pytest.FixtureRequest, tmp_path: Path, store: ObjectStore) -> ShardFiles:
    return ShardFolder(tmp_path / "jobs") if request.param == "folder" else ShardObjects(store)


def shard(n: int) -> ShardVectors:
    vectors = np.full((2, 4), n, np.float32)
    return ShardVectors(
        np.arange(2, dtype=np.int32), np.array(["a" * 64, "b" * 64], "S64"), vectors
    )


def test_shards_are_read_in_the_order_asked_for(files: ShardFiles) -> None:
    written = [files.write(JOB, n, shard(n)) for n in range(20)]
    found = list(files.read(JOB, written[::-1]))
    assert [int(each.vectors[0, 0]) for each in found if each] == list(range(20))[::-1]
    assert list(files.read(JOB, [])) == []


def test_a_shard_that_is_written_twice_is_one_file(files: ShardFiles) -> None:
    assert files.write(JOB, 3, shard(3)) == files.write(JOB, 3, shard(3))


def test_a_file_that_is_missing_or_another_is_broken(files: ShardFiles) -> None:
    name, digest = files.write(JOB, 0, shard(0))
    other, _ = files.write(JOB, 1, shard(1))
    asked = [(name, digest), ("shard-000009-0.npz", digest), (other, digest), (name, digest)]
    assert [each is not None for each in files.read(JOB, asked)] == [True, False, False, True]


def test_the_files_of_a_job_are_deleted(files: ShardFiles) -> None:
    assert files.jobs() == []
    for job in (JOB, "other"):
        written = files.write(job, 0, shard(0))
    files.delete(JOB)
    assert files.jobs() == ["other"]
    assert next(files.read(JOB, [written])) is None


def test_a_store_that_is_away_breaks_no_shard(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = ShardObjects(store)
    written = files.write(JOB, 0, shard(0))

    def away(*_: Any) -> Any:
        raise ServerUnavailable("The store does not answer.")

    monkeypatch.setattr(store, "get", away)
    with pytest.raises(ServerUnavailable):
        list(files.read(JOB, [written] * 3))
