"""The index versions in a store. Hosts need no common lock: each change is one conditional put.

A version is uploaded, then named by its manifest under the next free number, then CURRENT is
replaced, if it is still what the publisher has seen. CURRENT also names the versions that are being
deleted, so a rollback to one of them and its deletion cannot both succeed.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.errors import (
    Conflict,
    IndexBroken,
    IndexMissing,
    ObjectConflict,
    ObjectMissing,
)
from pipeline.failpoints import failpoint
from pipeline.index.engine import ABANDONED_S
from pipeline.index.version_copies import BUILDS, CopiedVersion, VersionCopies
from pipeline.index.version_pointer import MAX_JSON_BYTES, VersionPointer, put_once
from pipeline.index.versions import (
    MIGRATED_FROM,
    NAME,
    PUBLISHING,
    Stamp,
    Version,
    VersionStore,
    manifest_bytes,
    number,
    sealed,
)
from pipeline.storage.follower import Follower
from pipeline.storage.object_store import ObjectStore, TooLarge

log = logging.getLogger(__name__)

VERSIONS = "versions"
MIGRATION = "migration"  # in the names of its builds, in place of a job's id
FOLLOW_S = 1.0  # between two looks at the pointer
UPLOADERS = 4  # files at the same time
CHECK_S = 1.0


class RemoteVersions(VersionStore):
    """The versions in a store, and this host's copies of them in a folder.

    Every method raises what `ObjectStore` does.
    """

    locks_all_hosts = False
    shares_files = False  # each build has its own objects

    def __init__(self, store: ObjectStore, folder: Path) -> None:
        super().__init__(folder)
        self._store = store
        self._copies = VersionCopies(store, folder)
        self._current = VersionPointer(store)
        self._manifests: dict[tuple[str, str], CopiedVersion] = {}  # by name and ETag
        self._turn = threading.Lock()
        self._is_published = False
        self._followed: CopiedVersion | None = None
        self._followed_stamp: Stamp = ""
        self._follower = Follower("versions", self._look, FOLLOW_S)

    # -- the pointer -------------------------------------------------------------------------------

    def current_name(self) -> str | None:
        return self._current.read().version

    def is_published(self) -> bool:
        # Once is for good: a probe asks this every few seconds, also while the store is away.
        self._is_published = self._is_published or self.current_name() is not None
        return self._is_published

    def pointer_stamp(self) -> Stamp:
        return self._current.stamp()

    def point_to(self, version: Version, seen: Stamp | None = None) -> None:
        """Publish a version.

        Raises:
            ObjectConflict: the pointer is not what was `seen` any more.
            IndexBroken: the store lacks files of the version.
        """
        assert isinstance(version, CopiedVersion)
        self._require_uploaded(version)
        pointer = self._current.look()  # a broken one is mended
        if seen is not None and pointer.stamp != seen:
            raise ObjectConflict(PUBLISHING)
        if version.name in pointer.deleting:
            raise Conflict(f"Index version {version.name} is being deleted.")
        # Those whose deletion was cut short can still be named by nobody.
        listed = set(self._names())
        deleting = [name for name in pointer.deleting if name in listed]
        self._current.replace(pointer, version.name, deleting)

    # -- the versions ------------------------------------------------------------------------------

    def open(self, name: str) -> Version:
        followed = self._followed
        if followed is not None and followed.name == name and followed.is_current:
            self._copies.open(followed)
            return followed
        if not NAME.fullmatch(name):
            raise self._not_found(name)
        try:
            version = self._manifest(name)
        except ObjectMissing:
            raise self._not_found(name) from None
        self._copies.open(version)
        if followed is not None and followed.build == version.build:
            self._followed = version
        return version

    def versions(self) -> list[Version]:
        deleting = set(self._current.look().deleting)
        return [version for version in self._all() if version.name not in deleting]

    def verify(self, version: Version, only: Collection[str] | None = None) -> None:
        assert isinstance(version, CopiedVersion)
        self._copies.verify(version, only)

    def commit(
        self,
        workspace: Path,
        manifest: dict[str, Any],
        check: Callable[[], None] = lambda: None,
        shared: Mapping[str, str] | None = None,
    ) -> Version:
        """Upload a workspace, then give it the next free number; does not publish it."""
        job = MIGRATION if MIGRATED_FROM in manifest else manifest["job_id"]
        build = f"{job}.{uuid.uuid4().hex[:8]}"
        manifest = sealed(workspace, {**manifest, "build": build})
        self._upload(workspace, build, manifest["files"], check)
        data = manifest_bytes(manifest)
        n = max(map(number, self._names()), default=0) + 1
        while True:
            try:
                put_once(self._store, _key(f"v{n:04d}"), data, None)
                break
            except ObjectConflict:  # another publisher has taken this one
                n += 1
        version = self._copies.version(f"v{n:04d}", data)
        self._copies.adopt(workspace, version)
        return version

    def _upload(
        self, workspace: Path, build: str, names: Iterable[str], check: Callable[[], None]
    ) -> None:
        def put(name: str) -> None:
            self._store.put(f"{BUILDS}/{build}/{name}", workspace / name)
            failpoint("upload", name)

        pool = ThreadPoolExecutor(UPLOADERS, "upload")
        try:
            running = {pool.submit(put, name) for name in names}
            while running:
                # A large file takes minutes, in which the lease of the merge must not end.
                done, running = wait(running, CHECK_S, FIRST_COMPLETED)
                for future in done:
                    future.result()
                check()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def manifest(self, name: str) -> dict[str, Any]:
        followed = self._followed
        version = followed if followed and followed.name == name else self.open(name)
        return version.manifest

    def _verify_target(self, version: Version) -> None:
        """Leave it to `point_to`, which asks the store: digests are compared by those who fetch."""

    def _names(self) -> Iterator[str]:
        for each in self._store.objects(f"{VERSIONS}/"):
            name = each.key.removeprefix(f"{VERSIONS}/").removesuffix(".json")
            if NAME.fullmatch(name) and each.key == _key(name):
                yield name

    def _all(self) -> list[CopiedVersion]:
        """Return every version whose manifest can be read, oldest first."""
        versions = []
        names = sorted(self._names(), key=number)
        for name in names:
            try:
                versions.append(self._manifest(name))
            except (ObjectMissing, IndexBroken) as error:
                log.info("Version %s is left out: %s", name, error)
        for known in list(self._manifests):
            if known[0] not in names:
                self._manifests.pop(known, None)
        return versions

    def _manifest(self, name: str) -> CopiedVersion:
        """Read a version's manifest.

        Raises:
            ObjectMissing: there is none. IndexBroken: it is damaged.
        """
        key = _key(name)
        try:
            stored = self._store.get(key, MAX_JSON_BYTES)
            version = self._manifests.get((name, stored.etag))
            if version is None:
                version = self._copies.version(name, stored.data)
                self._manifests[name, stored.etag] = version
        except (TooLarge, ValueError, KeyError, TypeError) as error:
            raise IndexBroken(
                f"The manifest {key} of the store {self._store.name} cannot be used ({error}): "
                "roll back with 'imgrec index rollback VERSION' or rebuild."
            ) from error
        # A value of its own: a version keeps the files that it maps, and they may be given up.
        return replace(version)

    def _require_uploaded(self, version: CopiedVersion) -> None:
        prefix = f"{BUILDS}/{version.build}/"
        sizes = {each.key.removeprefix(prefix): each.size for each in self._store.objects(prefix)}
        for name, facts in version.manifest["files"].items():
            if sizes.get(name) != facts["bytes"]:
                raise IndexBroken(
                    f"The store {self._store.name} lacks the file {name} of {version.name}: roll "
                    "back to another version or rebuild."
                )

    # -- what queries of this host use -------------------------------------------------------------

    def followed(self) -> tuple[str | None, Stamp]:
        """Return the newest version whose copy is whole; a thread fetches what comes after it."""
        if self._followed is None:
            with self._turn:
                if self._followed is None:
                    self._followed = self._copies.recorded()
                if self._followed is None:
                    self._catch_up()
            self._follower.start()
        followed = self._followed
        return (followed.name if followed else None), self._followed_stamp

    def on_disk(self) -> Version:
        version = self._followed or self._copies.recorded()
        if version is None:
            raise IndexMissing
        return version

    def _look(self) -> None:
        with self._turn:
            self._catch_up()

    def _catch_up(self) -> None:
        pointer = self._current.read()
        if pointer.version is None or pointer.stamp == self._followed_stamp:
            return
        version = self._manifest(pointer.version)
        self._copies.fetch(version)
        self._copies.record(version)
        self._followed, self._followed_stamp = version, pointer.stamp
        self._copies.prune(lambda: {each.build for each in self._all()})

    # -- deletion ----------------------------------------------------------------------------------

    def prunable(self, keep: int, protect: Collection[str]) -> list[Version]:
        doomed = {version.name for version in super().prunable(keep, protect)}
        doomed |= {*self._current.look().deleting}
        return [version for version in self._all() if version.name in doomed]

    def prune(self, keep: int, protect: Collection[str]) -> list[str]:
        """Delete what is `prunable`; nothing if another process publishes meanwhile."""
        pointer = self._current.read()
        pruned = self.prunable(keep, protect)
        names = [version.name for version in pruned]
        if not pruned or pointer.version is None:
            return []
        try:
            self._current.replace(pointer, pointer.version, names)
        except ObjectConflict:  # then that one prunes
            return []
        for version in pruned:
            assert isinstance(version, CopiedVersion)
            self._store.delete([_key(version.name)])
            failpoint("prune.named")
            self.delete_build(version.build)
        return names

    def abandoned_builds(self, open_jobs: Callable[[], Collection[str]]) -> list[str]:
        """Return the builds that no version names and nobody writes: their publisher was killed.

        A job says that it has ended. A migration has no job, so its build has a day.

        Args:
            open_jobs: called after the builds were listed, so that a new one is left out.
        """
        prefixes, _ = self._store.first_level(f"{BUILDS}/")
        builds = [prefix.rstrip("/").rpartition("/")[2] for prefix in prefixes]
        jobs = open_jobs()
        named = {version.build for version in self._all()}

        def is_abandoned(build: str) -> bool:
            job = build.rpartition(".")[0]
            if build in named or job in jobs:
                return False
            return job != MIGRATION or self._idle_s(build) > ABANDONED_S

        return [build for build in builds if is_abandoned(build)]

    def _idle_s(self, build: str) -> float:
        """Return how long ago the last file of a build was put."""
        ages = self._store.ages(f"{BUILDS}/{build}/")
        return time.time() - max((at for _, at in ages), default=0.0)

    def delete_build(self, build: str) -> None:
        self._store.delete([each.key for each in self._store.objects(f"{BUILDS}/{build}/")])


def _key(name: str) -> str:
    return f"{VERSIONS}/{name}.json"
