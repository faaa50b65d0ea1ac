"""A shop in one process: a folder, a ledger, an index, and a toy encoder instead of workers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.embed.embed_images import Embedder, embed_shard
from pipeline.embed.shard_files import ShardFiles, ShardFolder
from pipeline.engines.choice import engines
from pipeline.images.decode import Limits
from pipeline.images.roots import open_source
from pipeline.index.versions import VersionStore
from pipeline.preprocess.prepare import PreparedImage
from pipeline.rebuild.merge import Merged, merge
from pipeline.rebuild.plan import plan_rebuild
from pipeline.settings import Settings
from pipeline.store.database import Database
from pipeline.store.jobs import Jobs


class ToyPipeline:
    """Rebuilds a folder in one process, step by step, with a toy encoder."""

    dim = 12

    def __init__(self, settings: Settings, tmp_path: Path) -> None:
        self.settings = settings
        self.root = tmp_path / "products"
        self.root.mkdir()
        self.address: str | None = None  # of a store that holds the products instead
        self.jobs = Jobs(Database(settings.database_url))
        self.versions = VersionStore(settings.index_dir)
        self.engines = engines(settings, lambda: "toy")
        self.files: ShardFiles = ShardFolder(settings.jobs_dir)
        self.tools = Embedder(
            self, lambda image: PreparedImage(image), Limits(10**6, 10**6), (255, 255, 255), 8, 1
        )

    def embed_images(self, images: list[Image.Image]) -> np.ndarray:
        """2x2 mean colours, centred and unit length: unlike pictures get unlike vectors."""
        small = [np.asarray(image.resize((2, 2))).reshape(-1) - 127.0 for image in images]
        rows = np.array(small) + 0.5
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    has_words = True

    def text_warnings(self, texts: list[str]) -> list[str]:
        return []

    def get(self, digest: str) -> None:
        """An empty cache."""

    def put(self, vectors: dict[str, np.ndarray]) -> None:
        """Forget."""

    def draw(self, name: str, seed: int) -> None:
        pixels = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize((16, 16), Image.Resampling.NEAREST).save(file)

    def plan(self, full: bool = False, save_preprocessed: bool = False) -> str:
        return plan_rebuild(
            self.address or self.root,
            self.settings,
            self.jobs,
            self.versions,
            full=full,
            save_preprocessed=save_preprocessed,
        )

    def embed(self, job_id: str) -> None:
        for n in self.jobs.shards.next_window(job_id, 1000):
            claim = self.jobs.shards.claim(job_id, n, "me", 1000)
            assert claim is not None
            result = embed_shard(
                open_source(self.address or self.root, self.settings),
                claim.images,
                self.tools,
                self,
                check=lambda done: None,
            )
            name, digest = self.files.write(job_id, n, result.vectors)
            self.jobs.shards.finish(
                claim,
                file=name,
                sha256=digest,
                embedded=result.embedded,
                reused=result.reused,
                failures=result.failures,
            )

    def merge(self, job_id: str) -> Merged:
        claim = self.jobs.claim_merge(job_id, "me", 0)
        assert claim is not None
        with self.versions.lock():
            seen = self.versions.pointer_stamp()
            merged = merge(
                claim.job,
                self.jobs.shards.done(job_id),
                self.settings,
                self.versions,
                lambda: None,
                engines=self.engines,
                later_jobs=self.jobs.created_after(job_id),
                files=self.files,
                seen=seen,
            )
        if merged.version:
            self.jobs.publish(job_id, merged.version)
        return merged

    def rebuild(self, full: bool = False) -> tuple[str | None, int, int]:
        """Return (version, embedded, reused)."""
        job_id = self.plan(full)
        self.embed(job_id)
        version = self.merge(job_id).version
        progress = self.jobs.progress(job_id)
        return version, progress.embedded, progress.reused
