"""The row about the published index."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from cli.checks.row import CheckContext, CheckFailed
from pipeline.errors import FingerprintMismatch, ImgrecError, IndexBroken, IndexMissing

if TYPE_CHECKING:
    from pipeline.index.versions import VersionStore

REBUILD = "imgrec enqueue-rebuild FOLDER --wait"


def index(context: CheckContext) -> str:
    """The published index is whole, loads, and is of this machine's fingerprint."""
    from pipeline.embed.fingerprint import find_fingerprint

    store = context.resources.versions
    try:
        version = store.current()
        store.verify(version)
        n_vectors = context.resources.live_index.version(version.name).n_vectors
    except IndexMissing as error:
        raise CheckFailed(str(error), REBUILD) from error
    except ImgrecError as error:
        raise CheckFailed(str(error), _way_back(store)) from error
    images = version.manifest["images"]
    if n_vectors != images:
        raise CheckFailed(
            f"{version.name} has {n_vectors} vectors for {images} images", _way_back(store)
        )
    mine = find_fingerprint(context.settings)
    if mine is None:
        return (
            f"{version.name}, {images} images; its fingerprint was not compared, because the "
            "model's revision is unknown until it is downloaded"
        )
    try:
        version.require(mine.id, mine.summary)
    except FingerprintMismatch as error:
        root = shlex.quote(str(version.manifest["root"]))
        raise CheckFailed(str(error), f"imgrec enqueue-rebuild {root} --wait") from error
    return f"{version.name}, {images} images, made with the same model and settings"


def _way_back(store: VersionStore) -> str:
    """Name an older version that is whole, or the rebuild that mends everything."""
    try:
        current = store.current_name()
    except IndexBroken:
        current = None
    for older in reversed(store.versions()):
        try:
            if older.name != current:
                store.verify(store.open(older.name))
                return f"imgrec index rollback {older.name}"
        except ImgrecError:
            continue
    return REBUILD
