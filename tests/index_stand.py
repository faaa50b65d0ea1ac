"""Index versions in folders of a test's own, built by any engine without a rebuild."""

from __future__ import annotations

import time
import uuid
from pathlib import Path

import numpy as np

from pipeline.index.engine import Base, Engine
from pipeline.index.faiss_index import random_pairs
from pipeline.index.id_map import write_id_map
from pipeline.index.segments import SegmentedVectors, base_files
from pipeline.index.versions import Version, VersionStore, order_by_hash


def clustered(count: int, dim: int, seed: int = 0) -> np.ndarray:
    """Return (count, dim) unit vectors around some hundred centres, as photos of products are."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(2, count // 100), dim))
    rows = centres[rng.integers(len(centres), size=count)] + 0.7 * rng.normal(size=(count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def publish(
    store: VersionStore, engine: Engine, vectors: np.ndarray, base: Base | None = None
) -> Version:
    """Publish vectors as a merge does; those in two segments beside the files of the base."""
    count = len(vectors)
    with store.lock():
        workspace = store.workspace()
        if isinstance(vectors, SegmentedVectors):
            assert base is not None
            for name, of_base in base_files(base.version.manifest["files"]).items():
                (workspace / name).hardlink_to(base.version.folder / of_base)
            np.save(workspace / "new_vectors.npy", vectors.new)
            np.save(workspace / "places.npy", vectors.places)
        else:
            np.save(workspace / "vectors.npy", vectors)
        index = engine.build(vectors, workspace, lambda: None, base)
        write_id_map(workspace, [f"{row:06d}.jpg" for row in range(count)])
        sha256 = np.array([f"{row:064x}" for row in range(count)], "S64")
        np.save(workspace / "sha256.npy", sha256)
        np.save(workspace / "by_hash.npy", order_by_hash(sha256))
        np.save(workspace / "files.npy", np.zeros((count, 2), np.int64))
        version = store.commit(workspace, _manifest(vectors, index))
        store.point_to(version)
    return version


def _manifest(vectors: np.ndarray, index: dict[str, object]) -> dict[str, object]:
    return {
        "job_id": uuid.uuid4().hex,
        "job_created_at": time.time(),
        "created_at": time.time(),
        "root": "/products",
        "images": len(vectors),
        "dimension": vectors.shape[1],
        "index": index,
        "random_pairs": random_pairs(vectors),
        "fingerprint": {"id": "f", "summary": "a toy"},
    }


def store_in(folder: Path) -> VersionStore:
    store = VersionStore(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return store
