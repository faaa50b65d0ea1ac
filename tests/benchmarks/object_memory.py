"""Measure the memory that planning a rebuild of N objects in a store takes.

    python tests/benchmarks/object_memory.py 1000000

The listing is generated, as a store lists keys below 20 prefixes; everything else is the program's.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[2]))

from pipeline.images import object_source
from pipeline.index.versions import VersionStore
from pipeline.rebuild.plan import plan_rebuild
from pipeline.settings import Settings
from pipeline.storage.object_store import KEYS_A_PAGE, ObjectInfo
from pipeline.store.database import Database
from pipeline.store.jobs import Jobs

PREFIXES = 20
MODEL = Path(__file__).parents[2] / "models" / "imgrec-mini"


class Listing:
    """A store of `count` objects that can be listed, and nothing else."""

    name = "s3://shop/photos"

    def __init__(self, count: int) -> None:
        self._count = count

    def pages(self, prefix: str | None = None) -> Iterator[list[ObjectInfo]]:
        start, end = 0, self._count
        if prefix is not None:
            start, end = (int(prefix) + n for n in (0, 1))
            start, end = (n * self._count // PREFIXES for n in (start, end))
        for first in range(start, end, KEYS_A_PAGE):
            yield [self._object(n) for n in range(first, min(first + KEYS_A_PAGE, end))]

    def first_level(self) -> tuple[list[str], list[ObjectInfo]]:
        return [f"{n:02}" for n in range(PREFIXES)], []

    def _object(self, n: int) -> ObjectInfo:
        prefix = n * PREFIXES // self._count
        return ObjectInfo(f"{prefix:02}/shoe/product-{n:08}.jpg", 40_000 + n % 977, f"{n:032x}")


def peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(
            _env_file=None,
            data_dir=Path(folder),
            database_url=f"sqlite:///{folder}/app.db",
            embedding_model=str(MODEL),
            use_bg_removal=False,
        )
        jobs = Jobs(Database(settings.database_url))
        store: Any = Listing(count)
        before, start = peak_mib(), time.perf_counter()
        with mock.patch.object(object_source, "ObjectStore", return_value=store):
            job_id = plan_rebuild(
                store.name,
                settings,
                jobs,
                VersionStore(settings.index_dir),
                full=False,
                save_preprocessed=False,
            )
        seconds = time.perf_counter() - start
        assert jobs.progress(job_id).images == count
        print(f"{count:,} objects: {seconds:.1f} s, {before} MiB before, {peak_mib()} MiB at most")


if __name__ == "__main__":
    main(int(sys.argv[1]))
