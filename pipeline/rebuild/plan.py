"""Plan a rebuild: list a folder, leave out what the published version has, cut the rest."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.embed.fingerprint import Fingerprint, find_fingerprint
from pipeline.embed.shards import cut
from pipeline.errors import ImgrecError, WrongUse
from pipeline.failpoints import failpoint
from pipeline.images.failure import Failure
from pipeline.images.find import SUFFIXES, ImageFile, find_images, require_allowed
from pipeline.index.versions import Version, VersionStore
from pipeline.settings import Settings
from pipeline.store.jobs import Jobs

REUSE_ROWS = 8192  # rows in one reuse shard: a row of the ledger of about 50 kB
SHARDS_AT_ONCE = 64  # shards written in one transaction
PLAN_LEASES = 8  # a planner that wrote nothing for so many leases is dead: a slow disk may list


def check_folder(folder: Path, settings: Settings) -> Path:
    """Return the folder's real path.

    Raises:
        WrongUse: missing, no folder, outside of IMAGE_ROOTS, empty, or without any image.
    """
    try:
        found = folder.exists()
    except OSError as error:  # a name that no file can have
        raise WrongUse(f"The folder '{folder}' cannot be used: {error.strerror}.") from error
    if not found:
        raise WrongUse(f"No such file or directory: '{folder}'.")
    if not folder.is_dir():
        raise WrongUse(f"'{folder}' is a file: name the folder that holds the product images.")
    root = folder.resolve()
    require_allowed(root, settings)
    if next(find_images(root), None) is None:
        kinds = ", ".join(sorted(suffix.lstrip(".") for suffix in SUFFIXES))
        what = "is empty" if next(root.iterdir(), None) is None else "holds no image"
        raise WrongUse(f"The folder '{folder}' {what}: put product images there ({kinds}).")
    return root


def plan_rebuild(
    folder: Path,
    settings: Settings,
    jobs: Jobs,
    versions: VersionStore,
    *,
    full: bool = False,
    save_preprocessed: bool = False,
    listed: Callable[[int], None] = lambda count: None,
) -> str:
    """Write the plan of a rebuild into the ledger; return the job's id.

    Args:
        full: embed everything again, reuse nothing.
        listed: called with the number of images listed so far.

    Raises:
        WrongUse: the folder cannot be used, see `check_folder`.
    """
    root = check_folder(folder, settings)
    fingerprint = find_fingerprint(settings)
    base = None if full or save_preprocessed else _base(versions, fingerprint)
    lease_s = PLAN_LEASES * settings.lease_s
    job_id = jobs.create(
        root,
        full=full,
        save_preprocessed=save_preprocessed,
        fingerprint=fingerprint,
        base_version=base.name if base else None,
        lease_s=lease_s,
    )
    sorter = ChangeDetector(root, base)
    number = 0
    pieces: list[tuple[int, str, list[Any]]] = []

    def write(last: bool) -> None:
        nonlocal number
        for rows in sorter.take_rows(last):
            pieces.append((number, "reuse", rows))
            number += 1
        jobs.shards.add(job_id, pieces, sorter.take_failures(), lease_s)
        pieces.clear()
        failpoint("plan.after_piece")
        listed(sorter.count)

    try:
        for images in cut(sorter.changed(), settings.shard_size):
            items = [[image.path, image.size, image.mtime_ns] for image in images]
            pieces.append((number, "embed", items))
            number += 1
            if len(pieces) >= SHARDS_AT_ONCE:
                write(last=False)
        write(last=True)
        failpoint("plan.before_finish")
        jobs.finish_plan(job_id)
        failpoint("plan.after_finish")
    except BaseException as error:
        with contextlib.suppress(ImgrecError):  # then its lease ends it
            jobs.fail(
                job_id, f"The folder was not listed to its end: {str(error) or 'interrupted'}"
            )
        raise
    return job_id


def _base(versions: VersionStore, fingerprint: Fingerprint | None) -> Version | None:
    """Return the published version if its vectors are of this kind."""
    if fingerprint is None:
        return None
    try:
        version = versions.current()
        version.paths, version.files  # noqa: B018 - read now
    except ImgrecError:
        return None  # none yet; or a broken one, which this rebuild replaces
    return version if version.fingerprint == fingerprint.id else None


class ChangeDetector:
    """Sort a stream of listed images into changed ones, rows of the base, and failures."""

    def __init__(self, root: Path, base: Version | None) -> None:
        self._root = root
        # Paths are compared only within one folder; elsewhere, content hashes decide.
        same_folder = base is not None and base.manifest["root"] == str(root)
        self._known = BaseCursor(base) if base and same_folder else None
        self._rows: list[int] = []
        self._failures: list[Failure] = []
        self.count = 0

    def changed(self) -> Iterator[ImageFile]:
        """Yield what must be read; keep the rest for `take_rows` and `take_failures`."""
        for found in find_images(self._root):
            self.count += 1
            if isinstance(found, tuple):
                path, error = found
                self._failures.append(Failure(path, error.stage, error.reason))
                continue
            row = self._known.row_of(found) if self._known else None
            if row is None:
                yield found
            else:
                self._rows.append(row)

    def take_rows(self, last: bool) -> Iterator[list[int]]:
        """Yield full chunks of reused rows, and the rest at the end."""
        while len(self._rows) >= REUSE_ROWS or (last and self._rows):
            chunk, self._rows = self._rows[:REUSE_ROWS], self._rows[REUSE_ROWS:]
            yield chunk

    def take_failures(self) -> list[Failure]:
        taken, self._failures = self._failures, []
        return taken


class BaseCursor:
    """The base version beside the listing: both ascend by path, so one pass meets each name."""

    def __init__(self, base: Version) -> None:
        self._paths = iter(base.paths)
        self._facts = _rows(base.files)
        self._row = -1
        self._path: str | None = None
        self._fact: tuple[int, int] | None = None
        self._next()

    def row_of(self, found: ImageFile) -> int | None:
        """Return the row of an unchanged image: same path, size and time of change."""
        while self._path is not None and self._path < found.path:
            self._next()
        if self._path != found.path or self._fact != (found.size, found.mtime_ns):
            return None
        return self._row

    def _next(self) -> None:
        self._row += 1
        self._path = next(self._paths, None)
        self._fact = next(self._facts, None)


def _rows(files: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield (bytes, mtime in ns) by row, read in pieces."""
    for start in range(0, len(files), REUSE_ROWS):
        yield from map(tuple, files[start : start + REUSE_ROWS].tolist())
