"""Index versions on disk: publish one, open one, list, roll back, prune.

    faiss_index/CURRENT                 the name of the published version, one line
    faiss_index/v0007/index.bin         FAISS; ids are row numbers
    faiss_index/v0007/id_to_filename.json   paths by row, sorted: for people; see id_map.py
    faiss_index/v0007/paths.bin, path_ends.npy   the same for programs
    faiss_index/v0007/vectors.npy       (n, d) float32: reused by the next rebuild
    faiss_index/v0007/sha256.npy        (n,) S64 content hashes
    faiss_index/v0007/by_hash.npy       (n,) int64: rows in the order of their hashes
    faiss_index/v0007/files.npy         (n, 2) int64: bytes, mtime in ns
    faiss_index/v0007/manifest.json     fingerprint, counts, digests of all of the above

After a small change, a version shares its two large files with an earlier one: see segments.py.
A version folder is complete before it gets its name and never changes afterwards.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import uuid
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from pipeline.access import is_unavailable
from pipeline.atomic_files import file_sha256, sync_file, sync_folder, write_atomic
from pipeline.errors import (
    Conflict,
    FingerprintMismatch,
    IndexBroken,
    IndexMissing,
    NotFound,
    ObjectConflict,
)
from pipeline.images.find import ImageFile
from pipeline.index.faiss_index import random_pairs
from pipeline.index.file_digests import FileDigests
from pipeline.index.id_map import read_id_map
from pipeline.index.segments import (
    BASE_VECTORS,
    NEW_VECTORS,
    PLACES,
    VECTORS,
    SegmentedVectors,
)

NAME = re.compile(r"v(\d{4,9})")
MANIFEST = "manifest.json"
MIGRATED_FROM = "migrated_from"  # in the manifest of a version that no job has built: its source
# The files that identify the rows. They are small beside the vectors, so their digests are checked
# whenever a version is opened: 0.2 s for a million images. PublishedIndex checks the large files in
# the background.
ID_MAP = ("id_to_filename.json", "paths.bin", "path_ends.npy")
NAMES = (*ID_MAP, "files.npy", "sha256.npy", "by_hash.npy")
SEALERS = 4  # files that are flushed and hashed at the same time
PUBLISHING = "An index is being published right now; try again shortly."
ADVICE = "roll back with 'imgrec index rollback' or rebuild"
KEYS = {
    *("job_id", "job_created_at", "created_at", "root", "images", "dimension"),
    *("index", "fingerprint", "files"),
}


@dataclass(frozen=True)
class IndexRows:
    """All rows of a version, sorted by path.

    paths: n posix paths; files: (n, 2) int64 bytes and mtime in ns; sha256: (n,) S64;
    vectors: (n, d) float32, L2-normalised; in two segments, where the base's file is shared.
    base_rows: (n,) the same row in the base version, or -1.
    """

    paths: list[str]
    files: NDArray[np.int64]
    sha256: NDArray[np.bytes_]
    vectors: NDArray[np.float32]
    base_rows: NDArray[np.int64]


@dataclass(frozen=True)
class Version:
    """One published folder; arrays are mapped from disk when first touched."""

    folder: Path
    manifest: dict[str, Any]
    manifest_mtime_ns: int

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def decoding(self) -> int:
        """The version of the decoding that all its vectors have at least."""
        return int(self.manifest.get("decoding", 1))

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"]["id"])

    @property
    def published_identity(self) -> str:
        """An id of this version alone: its name is used again once the folder was deleted."""
        return f"{self.name}/{self.manifest['job_id']}"

    @property
    def identity(self) -> str:
        """An id of what is searched: of this version, with the changes since, if it has any."""
        return self.published_identity

    @property
    def is_current(self) -> bool:
        """Whether the folder of this name is still the one that was opened."""
        try:
            return _sealed_ns(self.folder) == self.manifest_mtime_ns
        except OSError:
            return False

    def file(self, name: str) -> Path:
        """Return one of the version's files, to read."""
        return self.folder / name

    @cached_property
    def paths(self) -> Sequence[str]:
        """Paths by row, in ascending order.

        Raises:
            IndexBroken: the map is missing or does not match the manifest.
        """
        for name in ID_MAP:
            if name in self.manifest["files"]:
                self.file(name)
        paths = read_id_map(self.folder)
        if len(paths) != self.manifest["images"]:
            raise IndexBroken(
                f"The id map of {self.folder} names {len(paths)} files, "
                f"the manifest {self.manifest['images']}."
            )
        return paths

    def row_of_path(self, path: str) -> int | None:
        """Return the row of an image in the published folder, by bisection, or None."""
        row = bisect_left(self.paths, path, hi=self.manifest["images"])
        return row if row < self.manifest["images"] and self.paths[row] == path else None

    def has_path(self, path: str) -> bool:
        """Tell whether an image is indexed."""
        return self.row_of_path(path) is not None

    @cached_property
    def kept(self) -> NDArray[np.bool_] | None:
        """The (n,) rows that were not removed since; None: all."""
        return None

    def image(self, path: str) -> ImageFile:
        """Return an indexed image as it was listed."""
        row = bisect_left(self.paths, path)
        size, mtime_ns = self.files[row].tolist()
        return ImageFile(path, size, mtime_ns, self.sha256[row].decode())

    @cached_property
    def vectors(self) -> NDArray[np.float32]:
        """The (n, d) vectors by row; of two segments, something that is read like an array."""
        array: Any
        if self.is_segmented:
            base, new, places = map(self._array, (BASE_VECTORS, NEW_VECTORS, PLACES))
            array = SegmentedVectors(base, new, np.asarray(places))
        else:
            array = self._array(VECTORS)
        vectors: NDArray[np.float32] = array
        return vectors

    @property
    def is_segmented(self) -> bool:
        """Whether its large files are those of an earlier version, see segments.py."""
        return PLACES in self.manifest["files"]

    @cached_property
    def sha256(self) -> NDArray[np.bytes_]:
        array: NDArray[np.bytes_] = self._array("sha256.npy")
        return array

    @cached_property
    def files(self) -> NDArray[np.int64]:
        array: NDArray[np.int64] = self._array("files.npy")
        return array

    @cached_property
    def by_hash(self) -> NDArray[np.int64]:
        """Rows in the order of their content hashes; an old version is sorted now."""
        if "by_hash.npy" not in self.manifest["files"]:
            return order_by_hash(self.sha256)
        order: NDArray[np.int64] = self._array("by_hash.npy")
        return order

    @cached_property
    def random_pairs(self) -> dict[str, Any]:
        """How similar random rows are, see faiss_index; an old version is measured now."""
        stored: dict[str, Any] | None = self.manifest.get("random_pairs")
        return stored if stored is not None else random_pairs(self.vectors)

    def row_of_hash(self, digest: str) -> int | None:
        """Return a row with this content, or None."""
        order, content_hash = self.by_hash, np.bytes_(digest.encode())
        place = int(np.searchsorted(self.sha256, content_hash, sorter=order))
        if place < len(order) and self.sha256[order[place]] == content_hash:
            return int(order[place])
        return None

    def _array(self, name: str) -> Any:
        try:
            return np.load(self.file(name), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            if is_unavailable(error):
                raise
            raise IndexBroken(f"{self.folder / name} cannot be read: {error}.") from error

    def require(self, fingerprint: str, summary: str) -> None:
        """Refuse to compare this version's vectors with those of another fingerprint.

        Raises:
            FingerprintMismatch: with both sides and the ways out.
        """
        if self.fingerprint != fingerprint:
            theirs = self.manifest["fingerprint"].get("summary", self.fingerprint)
            raise FingerprintMismatch(
                f"Index {self.name} was made with {theirs}, but this worker uses {summary}: set "
                "EMBEDDING_MODEL and the PREPROCESS settings back, or run 'imgrec enqueue-rebuild'."
            )


def order_by_hash(sha256: NDArray[np.bytes_]) -> NDArray[np.int64]:
    """Return the rows in ascending order of their hashes."""
    return np.argsort(sha256, kind="stable")


# When or how the pointer was written last: equal only if nothing was published in between.
Stamp = int | str


class VersionStore:
    """The folder of all versions."""

    locks_all_hosts = True  # whether who holds `lock()` is the only one to publish
    shares_files = True  # whether two versions can have one file

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pointer = folder / "CURRENT"
        self._latest: Version | None = None
        self._digests = FileDigests()

    def current_name(self) -> str | None:
        """Return the name in the pointer file, or None before the first publication."""
        try:
            name = self._pointer.read_text().strip()
        except FileNotFoundError:
            return None
        if not NAME.fullmatch(name):
            raise IndexBroken(
                f"The pointer {self._pointer} contains {name[:50]!r}, not the name of a version: "
                "run 'imgrec index rollback VERSION'."
            )
        return name

    def is_published(self) -> bool:
        """Whether there is a published version."""
        return self.current_name() is not None

    def pointer_stamp(self) -> Stamp:
        """Return when the pointer was written last; 0 before the first publication."""
        try:
            return self._pointer.stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def followed(self) -> tuple[str | None, Stamp]:
        """Return the version that queries use, with the stamp of the pointer that named it."""
        stamp = self.pointer_stamp()
        return self.current_name(), stamp

    def on_disk(self) -> Version:
        """Open the published version as far as this host has it.

        Raises:
            IndexMissing: it has none.
        """
        return self.current()

    def manifest(self, name: str) -> dict[str, Any]:
        """Read the manifest of a version."""
        return _manifest(self.folder / name)

    def current(self) -> Version:
        """Open the published version.

        Raises:
            IndexMissing: nothing was published.
        """
        name = self.current_name()
        if name is None:
            raise IndexMissing
        # A version never changes, so what was mapped and sorted for the last look still holds.
        latest = self._latest
        if latest is None or latest.name != name or not latest.is_current:
            latest = self._latest = self.open(name)
        return latest

    def open(self, name: str) -> Version:
        """Open a version; check its files' sizes, and the digests of those that name its rows.

        Raises:
            NotFound: no such version. IndexBroken: its files do not fit together.
        """
        if not NAME.fullmatch(name) or not (self.folder / name).is_dir():
            raise self._not_found(name)
        folder = self.folder / name
        try:
            manifest = _manifest(folder)
            for file, facts in manifest["files"].items():
                size = (folder / file).stat().st_size
                if size != facts["bytes"]:
                    raise IndexBroken(
                        f"{folder / file} has {size:,} bytes, its manifest says "
                        f"{facts['bytes']:,}: {ADVICE}."
                    )
            version = Version(folder, manifest, _sealed_ns(folder))
            self.verify(version, NAMES)
            return version
        except (OSError, ValueError, KeyError, TypeError) as error:
            if is_unavailable(error):
                raise
            raise IndexBroken(
                f"The index version {folder} is incomplete ({error}): roll back with "
                "'imgrec index rollback VERSION' or rebuild."
            ) from error

    def _not_found(self, name: str) -> NotFound:
        names = ", ".join(version.name for version in self.versions()) or "none"
        return NotFound(f"There is no index version {name!r}. Available versions: {names}.")

    def count(self) -> int:
        """Count the versions, with those whose manifest cannot be read."""
        return sum(1 for _ in self._names())

    def _names(self) -> Iterator[str]:
        return (each.name for each in self.folder.iterdir() if NAME.fullmatch(each.name))

    def versions(self) -> list[Version]:
        """Return all versions whose manifest can be read, oldest first."""
        if not self.folder.is_dir():
            return []
        versions = []
        for name in sorted(self._names(), key=number):
            folder = self.folder / name
            # A damaged one, or one that is being pruned, must not hide the others.
            with contextlib.suppress(OSError, ValueError):
                versions.append(Version(folder, _manifest(folder), _sealed_ns(folder)))
        return versions

    def verify(self, version: Version, only: Collection[str] | None = None) -> None:
        """Compare the digests of every file of a version, or of some.

        A file that this process has read before, and that is as it was, is not read again.

        Raises:
            IndexBroken: a file changed on disk.
        """
        files = version.manifest["files"]
        names = [name for name in files if only is None or name in only]
        paths = [version.file(name) for name in names]
        missing = next((path for path in paths if not path.is_file()), None)
        digests = [] if missing else self._digests.of_all(paths)
        broken = (
            path
            for path, name, digest in zip(paths, names, digests, strict=False)
            if digest != files[name]["sha256"]
        )
        path = missing or next(broken, None)
        if path is not None:
            raise IndexBroken(f"{path} does not match the digest in its manifest: {ADVICE}.")

    def lock(self) -> FileLock:
        """Return the lock that writers must hold; the kernel releases it when a process dies."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / ".lock", timeout=0)

    def workspace(self) -> Path:
        """Create an empty hidden folder to build a version in; remove those of killed builds."""
        for old in self.folder.glob(".build-*"):
            shutil.rmtree(old, ignore_errors=True)
        folder = self._hidden()
        folder.mkdir(parents=True)
        return folder

    def _hidden(self) -> Path:
        return self.folder / f".build-{uuid.uuid4().hex[:8]}"

    def commit(
        self,
        workspace: Path,
        manifest: dict[str, Any],
        check: Callable[[], None] = lambda: None,
        shared: Mapping[str, str] | None = None,
    ) -> Version:
        """Seal a workspace (digests, flush) and give it the next name; does not publish it.

        Args:
            check: called while that takes time; raises to stop.
            shared: the digests of files that are those of an earlier version, by name.
        """
        manifest = sealed(workspace, manifest, shared or {})
        for name, facts in manifest["files"].items():
            self._digests.note(workspace / name, facts["sha256"])
        n = max(map(number, self._names()), default=0) + 1
        folder = self.folder / f"v{n:04d}"
        workspace.rename(folder)
        sync_folder(self.folder)
        return Version(folder, manifest, _sealed_ns(folder))

    def point_to(self, version: Version, seen: Stamp | None = None) -> None:
        """Publish a version: readers see it the next time they read the pointer.

        Args:
            seen: the stamp of the pointer on which this decision rests. Here the lock that the
                caller holds keeps it.
        """
        write_atomic(self._pointer, f"{version.name}\n".encode())

    def rollback(
        self, name: str | None = None, verify: Callable[[Version], None] = lambda version: None
    ) -> tuple[str | None, Version]:
        """Point to `name`, or to the version before the current one; return (old, new).

        Args:
            verify: called with the target besides, e.g. to ask its engine.

        A named version needs no readable pointer, so this repairs a broken one.

        Raises:
            IndexMissing: nothing was published. Conflict: nothing to go back to.
            IndexBroken: the target's files do not match their digests.
        """
        try:
            with self.lock():
                seen = self.pointer_stamp()
                try:
                    current = self.current_name()
                except IndexBroken:
                    if name is None:
                        raise
                    current = None
                if name is None:
                    if current is None:
                        raise IndexMissing
                    older = [v for v in self.versions() if number(v.name) < number(current)]
                    if not older:
                        raise Conflict(f"There is no index version before {current}.")
                    name = older[-1].name
                target = self.open(name)
                self._verify_target(target)
                verify(target)
                self.point_to(target, seen)
                return current, target
        except (Timeout, ObjectConflict) as error:
            raise Conflict(PUBLISHING) from error

    def _verify_target(self, version: Version) -> None:
        self.verify(version)

    def prunable(self, keep: int, protect: Collection[str]) -> list[Version]:
        """Return the oldest versions beyond `keep`, never the current or a protected one."""
        current, oldest = self.current_name(), self.versions()[:-keep]
        return [v for v in oldest if v.name != current and v.name not in protect]

    def prune(self, keep: int, protect: Collection[str]) -> list[str]:
        """Delete what is `prunable`; the caller holds the lock."""
        pruned = self.prunable(keep, protect)
        for version in pruned:
            # Hidden at once: a kill during the deletion leaves no half of a version.
            hidden = version.folder.rename(self._hidden())
            shutil.rmtree(hidden, ignore_errors=True)
        return [version.name for version in pruned]


def sealed(
    workspace: Path, manifest: dict[str, Any], shared: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Flush the files of a workspace, and write the manifest with their digests beside them.

    Args:
        shared: the digests of files that are those of an earlier version, by name: they are on the
            disk, and were compared with their digests.
    """
    shared = shared or {}

    def digest(file: Path) -> str:
        if file.name in shared:
            return shared[file.name]
        sync_file(file)
        return file_sha256(file)

    # The disk writes one file while another is hashed.
    names = sorted(workspace.iterdir())
    with ThreadPoolExecutor(SEALERS, "seal") as pool:
        digests = list(pool.map(digest, names))
    files = {
        file.name: {"bytes": file.stat().st_size, "sha256": sha256}
        for file, sha256 in zip(names, digests, strict=True)
    }
    manifest = {**manifest, "files": files}
    manifest["seal"] = seal(manifest)
    write_atomic(workspace / MANIFEST, manifest_bytes(manifest))
    return manifest


def manifest_bytes(manifest: dict[str, Any]) -> bytes:
    return json.dumps(manifest, indent=1).encode()


def _manifest(folder: Path) -> dict[str, Any]:
    return parse_manifest((folder / MANIFEST).read_bytes())


def parse_manifest(data: bytes) -> dict[str, Any]:
    """Read a manifest.

    Raises:
        ValueError: it is none, or was changed after it was sealed.
    """
    try:
        manifest = json.loads(data)
    except ValueError as error:
        raise ValueError(f"manifest.json is not valid JSON: {error}") from error
    if not isinstance(manifest, dict) or KEYS - manifest.keys():
        raise ValueError("manifest.json is not a manifest")
    if manifest.get("seal", seal(manifest)) != seal(manifest):  # an old version has none
        raise ValueError("manifest.json was changed after it was sealed")
    return manifest


def seal(manifest: dict[str, Any]) -> str:
    """Return the digest of a manifest without its seal."""
    facts = {name: value for name, value in manifest.items() if name != "seal"}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _sealed_ns(folder: Path) -> int:
    return (folder / MANIFEST).stat().st_mtime_ns


def number(name: str) -> int:
    """Return the number of a version, by which versions are in order."""
    return int(name.lstrip("v"))
