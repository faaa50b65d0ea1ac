"""Joining shards: every good row once, in the order of the paths, each shard file read once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.embed import shard_files, shards
from pipeline.embed.shard_files import ShardFolder
from pipeline.embed.shards import ShardVectors, write_shard
from pipeline.errors import IndexBroken, JobFailed
from pipeline.images.find import ImageFile
from pipeline.index.versions import IndexRows
from pipeline.rebuild import join as joining
from pipeline.rebuild.join import join
from pipeline.store.shards import DoneShard

DIM = 8
JOB: Any = SimpleNamespace(id="job")


def vector_of(path: str) -> np.ndarray:
    seed = int.from_bytes(path.encode())
    return np.random.default_rng(seed).normal(size=DIM).astype(np.float32)


def embedded(jobs_dir: Path, n: int, paths: list[str], bad: tuple[str, ...] = ()) -> DoneShard:
    """A shard whose images were embedded, but for bad ones."""
    images = [ImageFile(path, 10 * n + at, at) for at, path in enumerate(paths)]
    good = [at for at, path in enumerate(paths) if path not in bad]
    vectors = np.array([vector_of(paths[at]) for at in good], np.float32).reshape(len(good), DIM)
    content = ShardVectors(
        np.array(good, np.int32), np.array([f"{paths[at]:>064}" for at in good], "S64"), vectors
    )
    file, digest = write_shard(jobs_dir / "job", n, content)
    return DoneShard(n, images, [], file, digest)


def joined(tmp_path: Path, done: list[DoneShard], base: Any = None) -> IndexRows:
    rows, broken = join(
        JOB, iter(done), ShardFolder(tmp_path), lambda: base, tmp_path, lambda: None
    )
    assert rows is not None
    assert broken == []
    return rows


@pytest.mark.parametrize("block", [1, 3, 4096])
@pytest.mark.parametrize(
    "bad", [(), ("a.jpg",), ("z/9.jpg",), ("a.jpg", "b/2.jpg", "b/1.jpg", "c.jpg", "d.jpg")]
)
def test_every_good_row_stands_once_in_the_order_of_the_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: tuple[str, ...], block: int
) -> None:
    monkeypatch.setattr(joining, "BLOCK_ROWS", block)
    base: Any = SimpleNamespace(
        paths=["base/0.jpg", "c/1.jpg", "c/2.jpg"],
        files=np.array([[1, 2], [3, 4], [5, 6]]),
        sha256=np.array(["0" * 64, "1" * 64, "2" * 64], "S64"),
        vectors=np.array([vector_of(path) for path in ("base/0.jpg", "c/1.jpg", "c/2.jpg")]),
    )
    done = [
        embedded(tmp_path, 0, ["b/1.jpg", "b/2.jpg", "z/9.jpg"], bad),
        DoneShard(1, [], [2, 1], None, None),
        embedded(tmp_path, 2, [], bad),
        embedded(tmp_path, 3, ["a.jpg", "c.jpg", "d.jpg"], bad),
    ]
    rows = joined(tmp_path, done, base)
    every = {"a.jpg", "b/1.jpg", "b/2.jpg", "c.jpg", "c/1.jpg", "c/2.jpg", "d.jpg", "z/9.jpg"}
    assert rows.paths == sorted(every - set(bad))
    on_disk = np.load(tmp_path / "vectors.npy")
    assert on_disk.shape == (len(rows.paths), DIM)
    for array in (rows.vectors, on_disk):
        np.testing.assert_array_equal(array, [vector_of(path) for path in rows.paths])
    assert rows.files[rows.paths.index("c/2.jpg")].tolist() == [5, 6]
    assert rows.sha256[rows.paths.index("c/1.jpg")] == b"1" * 64
    if "z/9.jpg" in rows.paths:
        assert rows.files[-1].tolist() == [2, 2]
        assert rows.sha256[-1] == f"{'z/9.jpg':>064}".encode()


def test_each_shard_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []

    def read(folder: Path, name: str, digest: str) -> ShardVectors:
        names.append(name)
        return shards.read_shard(folder, name, digest)

    monkeypatch.setattr(shard_files, "read_shard", read)
    done = [embedded(tmp_path, n, [f"{n}.jpg"]) for n in range(3)]
    joined(tmp_path, done)
    assert names == [shard.file for shard in done]


def test_unreadable_shards_are_all_named(tmp_path: Path) -> None:
    done = [embedded(tmp_path, n, [f"{n}.jpg"]) for n in range(4)]
    (tmp_path / "job" / str(done[1].file)).unlink()
    (tmp_path / "job" / str(done[3].file)).write_bytes(b"changed")
    rows, broken = join(JOB, done, ShardFolder(tmp_path), lambda: 1 / 0, tmp_path, lambda: None)
    assert (rows, broken) == (None, [1, 3])


def test_no_good_image_and_a_path_named_twice_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(JobFailed, match="'imgrec failures job' lists the reasons"):
        joined(tmp_path, [embedded(tmp_path, 0, ["a.jpg"], bad=("a.jpg",))])
    with pytest.raises(JobFailed):
        joined(tmp_path, [])
    with pytest.raises(IndexBroken, match=r"names 'a\.jpg' twice"):
        joined(tmp_path, [embedded(tmp_path, n, ["a.jpg"]) for n in range(2)])
