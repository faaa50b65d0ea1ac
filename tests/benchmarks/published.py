"""Publish an index of random unit vectors for a model: a search as long as a real one."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
from live_stack import LiveStack

from pipeline.embed.fingerprint import find_fingerprint
from pipeline.index import faiss_index
from pipeline.index.versions import Version, VersionStore
from pipeline.settings import Settings


def publish_random(settings: Settings, rows: int, dim: int, root: Path) -> Version:
    """Write and publish a version of `rows` products that this model could have embedded."""
    mine = find_fingerprint(settings)
    assert mine is not None
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((rows, dim), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    versions = VersionStore(settings.index_dir)
    with versions.lock():
        workspace = versions.workspace()
        built, kind = faiss_index.build(vectors, settings.flat_max_vectors, settings.threads)
        faiss_index.save(built, workspace / "index.bin")
        names = {str(row): f"kind{row % 7}/product-{row:07d}.jpg" for row in range(rows)}
        (workspace / "id_to_filename.json").write_text(json.dumps(names))
        np.save(workspace / "vectors.npy", vectors)
        np.save(workspace / "sha256.npy", np.array([f"{row:064x}" for row in range(rows)], "S64"))
        np.save(workspace / "files.npy", np.ones((rows, 2), np.int64))
        version = versions.commit(
            workspace,
            {
                "job_id": "random",
                "job_created_at": time.time(),
                "created_at": time.time(),
                "root": str(root),
                "images": rows,
                "dimension": dim,
                "index": kind.parameters(),
                "random_pairs": faiss_index.random_pairs(vectors),
                "fingerprint": {"id": mine.id, "summary": mine.summary},
            },
        )
        versions.point_to(version)
    return version


def settings_of(stack: LiveStack) -> Settings:
    """Return the settings that the stack's processes have."""
    names = {name.lower(): value for name, value in stack.environment.items()}
    return Settings(_env_file=None, **names)
