"""Plan a rebuild: list a folder, leave out what the published version has, cut the rest."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.embed import Failure
from pipeline.errors import ImgrecError, WrongUse
from pipeline.failpoints import failpoint
from pipeline.fingerprint import Fingerprint, find_fingerprint
from pipeline.images import SUFFIXES, ImageFile, find_images
from pipeline.settings import Settings
from pipeline.shards import cut
from pipeline.store.jobs import Jobs
from pipeline.versions import Version, VersionStore

REUSE_ROWS = 8192  # rows in one reuse shard: a row of the ledger of about 50 kB
SHARDS_AT_ONCE = 64  # shards written in one transaction
PLAN_LEASES = 8  # a planner that wrote nothing for so many leases is dead: a slow disk may list


def check_folder(folder: Path, settings: Settings) -> Path:
    """Return the folder's real path.

    Raises:
        WrongUse: missing, no folder, outside of IMAGE_ROOTS, empty, or without any image.
    """
    if not folder.exists():
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


def require_allowed(root: Path, settings: Settings) -> None:
    """Refuse a folder outside of IMAGE_ROOTS, where that is set.

    Raises:
        WrongUse: the folder is outside.
    """
    allowed = [Path(part).resolve() for part in settings.image_roots.split(":") if part]
    if allowed and not any(root.is_relative_to(place) for place in allowed):
        raise WrongUse(f"The folder '{root}' is outside of IMAGE_ROOTS ({settings.image_roots}).")


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
    sorter = _Sorter(root, base)
    number = 0
    pieces: list[tuple[int, str, list[Any]]] = []

    def write(last: bool) -> None:
        nonlocal number
        for rows in sorter.take_rows(last):
            pieces.append((number, "reuse", rows))
            number += 1
        jobs.add_shards(job_id, pieces, sorter.take_failures(), lease_s)
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


class _Sorter:
    """Sort a stream of listed images into changed ones, rows of the base, and failures."""

    def __init__(self, root: Path, base: Version | None) -> None:
        self._root = root
        self._base = base
        # Paths are compared only within one folder; elsewhere, content hashes decide.
        same_folder = base is not None and base.manifest["root"] == str(root)
        self._rows_by_path = (
            {path: row for row, path in enumerate(base.paths)} if base and same_folder else {}
        )
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
            row = self._rows_by_path.get(found.path)
            if row is not None and self._unchanged(row, found):
                self._rows.append(row)
            else:
                yield found

    def _unchanged(self, row: int, found: ImageFile) -> bool:
        assert self._base is not None  # rows exist only with a base
        size, mtime_ns = self._base.files[row]
        return bool(size == found.size and mtime_ns == found.mtime_ns)

    def take_rows(self, last: bool) -> Iterator[list[int]]:
        """Yield full chunks of reused rows, and the rest at the end."""
        while len(self._rows) >= REUSE_ROWS or (last and self._rows):
            chunk, self._rows = self._rows[:REUSE_ROWS], self._rows[REUSE_ROWS:]
            yield chunk

    def take_failures(self) -> list[Failure]:
        taken, self._failures = self._failures, []
        return taken
