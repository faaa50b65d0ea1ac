"""Plan a rebuild: list a folder, reuse what the published version has, cut the rest into shards."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice, repeat
from pathlib import Path
from typing import Any

from pipeline.embed.fingerprint import find_fingerprint
from pipeline.embed.shards import cut
from pipeline.errors import ImgrecError, ServerUnavailable, StoreRefused, WrongUse
from pipeline.failpoints import failpoint
from pipeline.images.exclude import Exclude
from pipeline.images.failure import Failure
from pipeline.images.find import ImageFile, LeftOut
from pipeline.images.formats import COMMON
from pipeline.images.path_length import without_long_paths
from pipeline.images.roots import open_source, parse_root
from pipeline.images.source import ImageFolder, ImageLister, ImageSource
from pipeline.index.versions import Version, VersionStore
from pipeline.settings import Settings
from pipeline.store.job import JobRequest
from pipeline.store.jobs import Jobs
from pipeline.store.live_changes import LiveChanges

COMPARED_AT_ONCE = 16  # images; with more of them, one changed image costs more comparisons
REUSE_ROWS = 8192  # rows in one reuse shard: about 50 kB in the job table
SHARDS_AT_ONCE = 64  # shards written in one transaction
REMOVED = "removed with 'imgrec remove'"
PLAN_LEASES = 8  # a planner that wrote nothing for so many leases is dead; slow disks take time


def check_source(
    root: Path | str, settings: Settings, exclude: Exclude | None = None
) -> ImageSource:
    """Return the images below a folder or the address of a store.

    Raises:
        WrongUse: missing, not a folder, outside IMAGE_ROOTS, empty, or without any image.
        ServerUnavailable, StoreRefused: the store cannot be listed.
    """
    place = parse_root(root)
    if isinstance(place, Path):
        _check_folder(place)
    source = open_source(place, settings)
    left_out = LeftOut()
    for item in source.find_unordered(exclude, left_out):
        if isinstance(item, ImageFile) or not item.warning:
            return source
    counts = ", ".join(f"{count:,} {reason}" for reason, count in left_out.by_reason().items())
    also = f" Left out: {counts}." if counts else ""
    if not isinstance(source, ImageFolder):
        raise WrongUse(f"There are no images below {source.name} ({COMMON}, ...).{also}")
    what = "is empty" if next(source.folder.iterdir(), None) is None else "contains no images"
    raise WrongUse(f"The folder '{root}' {what}: put product images there ({COMMON}, ...).{also}")


def _check_folder(folder: Path) -> None:
    try:
        exists = folder.exists()
    except OSError as error:  # a name that no file can have
        raise WrongUse(f"The folder '{folder}' cannot be used: {error.strerror}.") from error
    if not exists:
        raise WrongUse(f"No such file or directory: '{folder}'.")
    if not folder.is_dir():
        raise WrongUse(f"'{folder}' is a file: name the folder that holds the product images.")


def plan_rebuild(
    root: Path | str,
    settings: Settings,
    jobs: Jobs,
    versions: VersionStore,
    *,
    full: bool = False,
    save_preprocessed: bool = False,
    exclude: Exclude | None = None,
    listed: Callable[[int], None] = lambda count: None,
    created: Callable[[str], None] = lambda job_id: None,
    request: JobRequest | None = None,
    webhook_url: str | None = None,
) -> str:
    """Write the plan of a rebuild to the job table; return the job's id.

    Args:
        full: embed everything again.
        exclude: what to leave out besides.
        listed: called with the number of images listed so far.
        created: called with the job's id before the folder is listed.
        request, webhook_url: see `Jobs.create`.

    Raises:
        WrongUse: the folder cannot be used, see `check_source`.
    """
    source = check_source(root, settings, exclude)
    fingerprint = find_fingerprint(settings)
    wanted = None if full or save_preprocessed or fingerprint is None else fingerprint.id
    base = reusable_version(versions, wanted)
    lease_s = PLAN_LEASES * settings.lease_s
    job_id = jobs.create(
        source.name,
        full=full,
        save_preprocessed=save_preprocessed,
        fingerprint=fingerprint,
        base_version=base.name if base else None,
        lease_s=lease_s,
        request=request,
        webhook_url=webhook_url,
    )
    created(job_id)
    warnings = jobs.image_warnings(base.manifest["job_id"]) if base else {}
    removed = LiveChanges(jobs.database).all().removed()
    detector = ChangeDetector(source, base, exclude, warnings, removed)
    try:
        PlanWriter(jobs, job_id, lease_s).write(detector, settings.shard_size, listed)
        failpoint("plan.before_finish")
        jobs.finish_plan(job_id, detector.left_out.by_reason())
        failpoint("plan.after_finish")
    except BaseException as error:
        with contextlib.suppress(ImgrecError):  # then its lease ends it
            jobs.fail(
                job_id, f"The folder could not be listed completely: {str(error) or 'interrupted'}"
            )
        raise
    return job_id


def reusable_version(versions: VersionStore, fingerprint: str | None) -> Version | None:
    """Return the published version if its vectors have this fingerprint.

    Raises:
        ServerUnavailable, StoreRefused: it cannot be read at the moment.
    """
    if fingerprint is None:
        return None
    try:
        # Not `current`: a process that has looked before would not see what was damaged since.
        version = versions.open(versions.current().name)
        version.paths, version.files  # noqa: B018 - read now
    except (ServerUnavailable, StoreRefused):
        raise  # to embed everything again would cost more than to wait
    except ImgrecError:
        return None  # none yet, or a damaged one, which this rebuild replaces
    return version if version.fingerprint == fingerprint else None


class PlanWriter:
    """Writes the shards of a job, a piece of the plan at a time, and renews its lease meanwhile.

    Args:
        first: the number of the first shard.
        owner: of the claim of the plan, if it was claimed.
        check: called often; raises to stop.
    """

    def __init__(
        self,
        jobs: Jobs,
        job_id: str,
        lease_s: float,
        first: int = 0,
        owner: str = "",
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._jobs = jobs
        self._job_id = job_id
        self._lease_s = lease_s
        self._number = first
        self._owner = owner
        self._check = check
        self._renew_at = 0.0
        self._pieces: list[tuple[int, str, list[Any]]] = []

    def renew(self) -> None:
        """Renew the lease of the plan, if it is time: nothing may have changed for long.

        Raises:
            PlanLost: another process has taken the plan over, or the job has ended.
        """
        self._check()
        if time.monotonic() >= self._renew_at:
            self._renew_at = time.monotonic() + self._lease_s / PLAN_LEASES
            self._jobs.shards.add(self._job_id, [], [], self._lease_s, self._owner)

    def write(
        self, detector: ChangeDetector, shard_size: int, listed: Callable[[int], None]
    ) -> None:
        """Write the images to embed, the rows to reuse and the failures of a listing."""
        for images in cut(detector.changed(self.renew), shard_size):
            self._append("embed", [_item(image) for image in images])
            if len(self._pieces) >= SHARDS_AT_ONCE:
                self._write(detector, listed, last=False)
        self._write(detector, listed, last=True)

    def _write(
        self, detector: ChangeDetector, listed: Callable[[int], None], *, last: bool
    ) -> None:
        for rows in detector.take_rows(last):
            self._append("reuse", rows)
        self._jobs.shards.add(
            self._job_id, self._pieces, detector.take_failures(), self._lease_s, self._owner
        )
        self._pieces.clear()
        failpoint("plan.after_piece")
        listed(detector.count)

    def _append(self, kind: str, items: list[Any]) -> None:
        self._pieces.append((self._number, kind, items))
        self._number += 1


def _item(image: ImageFile) -> list[Any]:
    item = [image.path, image.size, image.mtime_ns]
    return [*item, image.sha256] if image.sha256 else item


class ChangeDetector:
    """Split a stream of listed images into changed ones, rows of the base, and failures."""

    def __init__(
        self,
        source: ImageLister,
        base: Version | None,
        exclude: Exclude | None = None,
        warnings: Mapping[str, Failure] | None = None,
        removed: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:
        """Compare with a base.

        Args:
            warnings: those of the base's images, by path; they hold for unchanged ones, too.
            removed: (bytes, mtime in ns) of files that 'imgrec remove' took out, by path.
        """
        self._source = source
        self._warnings = warnings or {}
        self._removed = removed or {}
        self._exclude = exclude
        self.left_out = LeftOut()
        # Paths are compared within one folder only; for another, content hashes decide.
        same_folder = base is not None and base.manifest["root"] == source.name
        self._base = base if same_folder else None
        self._rows: list[int] = []
        self._failures: list[Failure] = []
        self.count = 0

    def changed(self, alive: Callable[[], None] = lambda: None) -> Iterator[ImageFile]:
        """Yield the images to embed; keep the rest for `take_rows` and `take_failures`.

        `alive` is called now and then, however few images there are to yield.

        An image is unchanged if its path, size and modification time are. The listing and the base
        are sorted by path, so one pass over both is enough. Most images are unchanged, so some are
        compared at once.
        """
        found = without_long_paths(self._source.find(self._exclude, self.left_out, alive))
        base, row = _BaseImages(self._base), 0
        while images := list(islice(found, COMPARED_AT_ONCE)):
            alive()
            known = base.read(row, len(images))
            if images == known and not self._any_removed(known):
                self._keep(known, row)
                row += len(known)
                continue
            for image in images:
                if isinstance(image, Failure):
                    self.count += not image.warning
                    self._failures.append(image)
                    continue
                while (known := base.read(row, 1)) and known[0][0] < image.path:
                    row += 1
                if self._removed.get(image.path) == (image.size, image.mtime_ns):
                    self.left_out.add(REMOVED)
                elif known and known[0][:3] == image[:3]:
                    self._keep(known, row)
                    row += 1
                else:
                    self.count += 1
                    yield image

    def _any_removed(self, images: list[tuple[str, int, int, str]]) -> bool:
        return bool(self._removed) and any(image[0] in self._removed for image in images)

    def _keep(self, images: list[tuple[str, int, int, str]], row: int) -> None:
        """Take unchanged images from the rows of the base that begin with `row`."""
        self.count += len(images)
        self._rows.extend(range(row, row + len(images)))
        if self._warnings:
            self._failures += [
                self._warnings[image[0]] for image in images if image[0] in self._warnings
            ]

    def take_rows(self, last: bool) -> Iterator[list[int]]:
        """Yield full chunks of reused rows, and the rest at the end."""
        rows = self._rows
        end = len(rows) if last else len(rows) - len(rows) % REUSE_ROWS
        self._rows = rows[end:]
        for start in range(0, end, REUSE_ROWS):
            yield rows[start : min(end, start + REUSE_ROWS)]

    def take_failures(self) -> list[Failure]:
        failures, self._failures = self._failures, []
        return failures


class _BaseImages:
    """The images of a version by row, read in pieces."""

    def __init__(self, version: Version | None) -> None:
        self._version = version
        self._first = 0
        self._piece: list[tuple[str, int, int, str]] = []

    def read(self, row: int, count: int) -> list[tuple[str, int, int, str]]:
        """Return up to `count` images from a row on, as a listing of files has them.

        At the end of a piece there are fewer, beyond the last row none.
        """
        place = row - self._first
        if place >= len(self._piece):
            self._first, place = row, 0
            self._piece = self._read(slice(row, row + REUSE_ROWS))
        return self._piece[place : place + count]

    def _read(self, rows: slice) -> list[tuple[str, int, int, str]]:
        if self._version is None:
            return []
        paths = self._version.paths[rows]
        sizes, times = self._version.files[rows].T.tolist()
        return list(zip(paths, sizes, times, repeat("", len(paths)), strict=True))
