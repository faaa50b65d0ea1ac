"""This host's copies of the versions in a store: fetched file by file, checked, pruned.

BUILD/vNNNN/manifest.json, index.bin, ...   a file is there only when it is whole
FOLLOWED                                    the version that queries of this host use
"""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from pipeline.atomic_files import file_sha256, sync_folder, write_atomic
from pipeline.errors import IndexBroken
from pipeline.index.versions import (
    ADVICE,
    MANIFEST,
    NAME,
    NAMES,
    Version,
    manifest_bytes,
    parse_manifest,
)
from pipeline.storage.download import download
from pipeline.storage.object_store import ObjectStore

BUILDS = "builds"
FOLLOWED = "FOLLOWED"
FETCHERS = 4  # files at the same time
# Part of paths of this host, and written by whoever may write to the store.
PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")


@dataclass(frozen=True)
class CopiedVersion(Version):
    """A version in a store: a file of it is fetched when it is first read."""

    fetch: Callable[[CopiedVersion, str], Path]

    @property
    def build(self) -> str:
        return str(self.manifest["build"])

    @property
    def is_current(self) -> bool:
        """Whether the copy is still there: a build never changes."""
        return (self.folder / MANIFEST).is_file()

    def file(self, name: str) -> Path:
        return self.fetch(self, name)


class VersionCopies:
    """The folder of the copies of one store."""

    def __init__(self, store: ObjectStore, folder: Path) -> None:
        self._store, self.folder = store, folder

    def version(self, name: str, manifest: bytes) -> CopiedVersion:
        """Return a version by its manifest; nothing is fetched.

        Raises:
            ValueError: it is no manifest of a version in a store.
        """
        facts = parse_manifest(manifest)
        names = [facts.get("build"), *facts["files"]]
        if not all(isinstance(each, str) and PLAIN.fullmatch(each) for each in names):
            raise ValueError(f"{MANIFEST} names a file that no version has")
        return CopiedVersion(self.folder / facts["build"] / name, facts, 0, self._fetch_one)

    def open(self, version: CopiedVersion) -> None:
        """Make a version's folder; drop a copied file that names rows and is damaged.

        That the store holds the version is told by `RemoteVersions`, which has read its manifest.
        """
        version.folder.mkdir(parents=True, exist_ok=True)
        for name in NAMES:
            file, facts = version.folder / name, version.manifest["files"].get(name)
            if facts and _has(file, facts["bytes"]) and file_sha256(file) != facts["sha256"]:
                file.unlink(missing_ok=True)
        if not version.is_current:
            write_atomic(version.folder / MANIFEST, manifest_bytes(version.manifest))

    def verify(self, version: CopiedVersion, only: Collection[str] | None = None) -> None:
        """Compare the copied files, or some, with their digests; what is missing is fetched.

        Raises:
            IndexBroken: a file has changed on this disk. The copy is given up: who opens the
                version again fetches that file anew.
        """
        for name, facts in version.manifest["files"].items():
            if only is not None and name not in only:
                continue
            file = version.file(name)
            if file_sha256(file) != facts["sha256"]:
                file.unlink(missing_ok=True)
                (version.folder / MANIFEST).unlink(missing_ok=True)
                raise IndexBroken(
                    f"{file} does not match the digest in its manifest; it is fetched again. If "
                    f"that does not help, {ADVICE}."
                )

    def fetch(self, version: CopiedVersion) -> None:
        """Fetch what is missing of a version.

        Raises:
            ObjectMissing: the version was pruned. IndexBroken: an object is damaged.
            ServerUnavailable, StoreRefused: the store cannot be read.
        """
        self.open(version)
        with self._turn(version), ThreadPoolExecutor(FETCHERS, "fetch") as pool:
            for _ in pool.map(lambda name: self._fetch(version, name), version.manifest["files"]):
                pass

    def is_whole(self, version: CopiedVersion) -> bool:
        """Whether every file is there."""
        files = version.manifest["files"].items()
        return version.is_current and all(
            _has(version.folder / name, facts["bytes"]) for name, facts in files
        )

    def adopt(self, workspace: Path, version: CopiedVersion) -> None:
        """Make a copy of the folder in which a version was built."""
        version.folder.parent.mkdir(parents=True, exist_ok=True)
        workspace.rename(version.folder)
        sync_folder(version.folder.parent)

    def record(self, version: CopiedVersion) -> None:
        """Note which version the queries of this host use."""
        facts = {"version": version.name, "build": version.build}
        write_atomic(self.folder / FOLLOWED, json.dumps(facts).encode())

    def recorded(self) -> CopiedVersion | None:
        """Return the version that was noted last, if its copy is whole."""
        try:
            facts: Any = json.loads((self.folder / FOLLOWED).read_bytes())
            name, build = str(facts["version"]), str(facts["build"])
            if not NAME.fullmatch(name) or not PLAIN.fullmatch(build):
                return None
            version = self.version(name, (self.folder / build / name / MANIFEST).read_bytes())
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return version if version.build == build and self.is_whole(version) else None

    def prune(self, kept: Callable[[], Collection[str]]) -> None:
        """Delete the copies of builds that the store no longer names.

        Args:
            kept: returns those that it names; called after this folder was listed, so that a build
                that comes meanwhile stays.
        """
        if not self.folder.is_dir():
            return
        builds = [child for child in self.folder.iterdir() if PLAIN.fullmatch(child.name)]
        names = {FOLLOWED, *kept()}
        for build in builds:
            if build.is_dir() and build.name not in names:
                hidden = build.rename(self.folder / f".build-{uuid.uuid4().hex[:8]}")
                shutil.rmtree(hidden, ignore_errors=True)

    def _fetch_one(self, version: CopiedVersion, name: str) -> Path:
        file = version.folder / name
        if not _has(file, version.manifest["files"][name]["bytes"]):
            version.folder.mkdir(parents=True, exist_ok=True)
            with self._turn(version):
                self._fetch(version, name)
        return file

    def _fetch(self, version: CopiedVersion, name: str) -> None:
        facts, file = version.manifest["files"][name], version.folder / name
        if not _has(file, facts["bytes"]):
            key = f"{BUILDS}/{version.build}/{name}"
            download(self._store, key, file, facts["bytes"], facts["sha256"])

    def _turn(self, version: CopiedVersion) -> FileLock:
        """Let one process of this host fetch a version at a time."""
        return FileLock(version.folder.parent / ".lock")


def _has(file: Path, size: int) -> bool:
    try:
        return file.stat().st_size == size
    except OSError:
        return False
