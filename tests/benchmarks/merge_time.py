"""What a rebuild takes beside the model: planning, and the merge into a published FAISS version.

    python tests/benchmarks/merge_time.py FOLDER --count 1000000 --rounds 1

Draws empty files and synthetic vectors into FOLDER, if it is not there; builds the first version
in FOLDER/data (or --data), if there is none; then in each round changes one file of a hundred, and
nothing. The model is left out: the shard files are written with vectors that lie ready. Prints
JSON, a line for each rebuild, and what the disk takes for writing a GiB. Planning opens the
versions anew, as each command does; the merge keeps its `VersionStore`, as an index worker does.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# One number for NumPy and FAISS, as in a worker: threads beyond the free cores wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from synthetic_vectors import clustered

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from pipeline.embed.shards import ShardVectors, write_shard  # noqa: E402
from pipeline.engines.choice import engines  # noqa: E402
from pipeline.images.find import ImageFile  # noqa: E402
from pipeline.index.versions import VersionStore  # noqa: E402
from pipeline.rebuild.merge import merge  # noqa: E402
from pipeline.rebuild.plan import plan_rebuild  # noqa: E402
from pipeline.settings import Settings  # noqa: E402
from pipeline.store.database import Database  # noqa: E402
from pipeline.store.jobs import Jobs  # noqa: E402

PER_FOLDER = 1000
SHARE = 100  # one file of so many changes
MIB = 2**20
LATER_NS = 10**18  # files that were changed have modification times before 2001


class Shop:
    """A folder of empty files whose vectors lie ready, rebuilt in one process."""

    def __init__(self, folder: Path, data: Path, count: int, threads: int) -> None:
        self.root = folder / "products"
        self.count = count
        self.settings = Settings(
            _env_file=None,
            data_dir=data,
            database_url=f"sqlite:///{data}/app.db",
            embedding_model=str(ROOT / "models" / "imgrec-mini"),
            use_bg_removal=False,
            cpu_threads=threads,
        )
        if not self.root.exists():
            draw(folder, count)
        self.jobs = Jobs(Database(self.settings.database_url))
        self.versions = VersionStore(self.settings.index_dir)
        self.vectors = np.load(folder / "drawn.npy", mmap_mode="r")

    def change(self) -> None:
        """Give one file of a hundred another vector, by another modification time."""
        number = time.time_ns() % LATER_NS
        some = np.random.default_rng(number).choice(self.count, self.count // SHARE, replace=False)
        for n in some.tolist():
            os.utime(file_of(self.root, n), ns=(number, number))

    def _row_of(self, image: ImageFile) -> int:
        """Return the drawn row of a file: one of the last ones, if it was changed."""
        n = int(image.path[-11:-4])
        more = len(self.vectors) - self.count
        return n if image.mtime_ns > LATER_NS else self.count + (n + image.mtime_ns) % more

    def rebuild(self, what: str) -> None:
        timed: dict[str, Any] = {"what": what, "images": self.count}
        with measured(timed, "plan"):
            versions = VersionStore(self.settings.index_dir)
            job_id = plan_rebuild(self.root, self.settings, self.jobs, versions)
        timed["embedded"] = self._embed(job_id)
        with measured(timed, "merge"):
            claim = self.jobs.claim_merge(job_id, "bench", 600)
            assert claim is not None
            with self.versions.lock():
                merged = merge(
                    claim.job,
                    self.jobs.shards.done(job_id),
                    self.settings,
                    self.versions,
                    lambda: None,
                    engines=engines(self.settings, lambda: "bench"),
                    later_jobs={},
                )
        assert merged.version is not None
        self.jobs.publish(job_id, merged.version)
        shutil.rmtree(self.settings.jobs_dir / job_id, ignore_errors=True)
        self.versions.prune(2, [])
        timed["version"] = merged.version
        index = self.versions.current().manifest["index"]
        timed["index"] = {name: index[name] for name in ("factory", "nprobe", "recall_at_10")}
        timed["reason"] = index["reason"]
        print(json.dumps(timed), flush=True)

    def _embed(self, job_id: str) -> int:
        embedded = 0
        while numbers := self.jobs.shards.next_window(job_id, 64):
            for n in numbers:
                claim = self.jobs.shards.claim(job_id, n, "bench", 600)
                assert claim is not None
                rows = np.array([self._row_of(image) for image in claim.images])
                shard = ShardVectors(
                    np.arange(len(rows), dtype=np.int32),
                    np.array([content_hash(row) for row in rows.tolist()], "S64"),
                    self.vectors[rows],
                )
                file, digest = write_shard(self.settings.jobs_dir / job_id, n, shard)
                self.jobs.shards.finish(
                    claim, file=file, sha256=digest, embedded=len(rows), reused=0, failures=[]
                )
                embedded += len(rows)
        return embedded


def content_hash(row: int) -> str:
    """Return what looks like a digest, of rows in no order."""
    return f"{(row * 2654435761) % 2**64:064x}"


@contextmanager
def measured(into: dict[str, Any], name: str) -> Iterator[None]:
    start, cpu, io = time.perf_counter(), time.process_time(), written_bytes()
    yield
    into[name] = {
        "s": round(time.perf_counter() - start, 2),
        "cpu_s": round(time.process_time() - cpu, 2),
        "written_mib": round((written_bytes() - io) / MIB),
    }


def written_bytes() -> int:
    """Return the bytes that this process has made the kernel write to a disk."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["write_bytes"])


def disk(folder: Path) -> None:
    """Write a GiB as `dd` does, and flush it."""
    file, block = folder / "disk", os.urandom(16 * MIB)
    timed: dict[str, Any] = {"what": "write and flush 1 GiB"}
    with measured(timed, "disk"), file.open("wb") as stream:
        for _ in range(64):
            stream.write(block)
        stream.flush()
        os.fsync(stream.fileno())
    file.unlink()
    print(json.dumps(timed), flush=True)


def draw(folder: Path, count: int) -> None:
    """Draw the files and the vectors, with some more for those that change."""
    clustered(count + count // SHARE, 0, folder / "drawn.npy")
    for n in range(count):
        file = file_of(folder / "products", n)
        if n % PER_FOLDER == 0:
            file.parent.mkdir(parents=True)
        file.touch()
    os.sync()


def file_of(root: Path, n: int) -> Path:
    return root / f"kind{n // PER_FOLDER:04d}" / f"product-{n:07d}.jpg"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("folder", type=Path)
    options.add_argument("--data", type=Path)
    options.add_argument("--count", type=int, default=200_000)
    options.add_argument("--rounds", type=int, default=1)
    options.add_argument("--no-change", action="store_true", help="another run has changed files")
    given = options.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    data = given.data or given.folder / "data"
    shop = Shop(given.folder, data, given.count, int(os.environ["OMP_NUM_THREADS"]))
    if not shop.versions.is_published():
        shop.rebuild("full")
    for _ in range(given.rounds):
        disk(given.folder)
        if not given.no_change:
            shop.change()
        shop.rebuild("1 % changed")
        shop.rebuild("unchanged")


if __name__ == "__main__":
    main()
