"""The workers' tasks in this process: messages lie on a desk instead of in Redis."""

from __future__ import annotations

from collections import deque
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_pipeline import ToyPipeline

from pipeline.settings import Settings, load_settings
from pipeline.store.jobs import Job, Progress
from workers import dispatch, embed, index, resources

MADE_ONCE = (
    *("jobs", "versions", "published", "cache", "clip", "fingerprint", "embedder"),
    *("query_prepare", "batcher", "zero_shot", "trained", "database", "products", "catalogue"),
    *("feedback", "opinions", "query_log", "shelves"),
)


class MemoryCache:
    """The shared cache as a dictionary; counts what it answered."""

    def __init__(self) -> None:
        self.vectors: dict[tuple[str, str], np.ndarray] = {}
        self.texts: dict[tuple[str, str], np.ndarray] = {}
        self.results: dict[str, Any] = {}

    def get_vector(self, fingerprint: str, digest: str) -> np.ndarray | None:
        return self.vectors.get((fingerprint, digest))

    def put_vectors(self, fingerprint: str, vectors: dict[str, np.ndarray]) -> None:
        self.vectors |= {(fingerprint, digest): vector for digest, vector in vectors.items()}

    def get_text(self, fingerprint: str, digest: str) -> np.ndarray | None:
        return self.texts.get((fingerprint, digest))

    def put_texts(self, fingerprint: str, vectors: dict[str, np.ndarray]) -> None:
        self.texts |= {(fingerprint, digest): vector for digest, vector in vectors.items()}

    def get_result(self, key: str) -> Any:
        return self.results.get(key)

    def put_result(self, key: str, result: Any) -> None:
        self.results[key] = result

    def pipelined(self) -> AbstractContextManager[None]:
        return nullcontext()


class InlineWorker:
    """A worker process of one machine: real tasks, ledger and index; a toy encoder; no Redis."""

    def __init__(self, settings: Settings, tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
        self.messages: deque[tuple[str, tuple[Any, ...]]] = deque()
        self.inline = False
        self.shop = ToyPipeline(settings, tmp_path)
        self.encoder = self.shop
        self.memory = MemoryCache()
        patch.chdir(tmp_path)
        for name in Settings.model_fields:
            patch.delenv(name.upper(), raising=False)
        for name in ("data_dir", "database_url", "embedding_model"):
            patch.setenv(name.upper(), str(getattr(settings, name)))
        patch.setenv("REDIS_URL", "redis://127.0.0.1:9/0")  # nobody listens
        patch.setenv("USE_BG_REMOVAL", "false")
        patch.setenv("CPU_THREADS", "1")
        load_settings.cache_clear()
        for name in MADE_ONCE:
            patch.setattr(resources, name, resources.once(getattr(resources, name).__wrapped__))
        patch.setattr(resources, "clip", lambda: self.encoder)
        patch.setattr(resources, "cache", lambda: self.memory)
        patch.setattr(dispatch, "send", self._send)
        patch.setattr(dispatch, "require_redis", lambda: None)
        patch.setattr(dispatch, "workers_on", lambda queue, patience_s=1.0: 1)
        patch.setattr(dispatch, "queue_length", lambda queue: self._waiting(queue))
        resources.stopping.clear()

    def _send(self, task: str, queue: str, *args: Any) -> None:
        self.messages.append((task, args))
        if self.inline:
            self.work()

    def _waiting(self, queue: str) -> int:
        return sum(task == "imgrec.embed_shard" for task, _ in self.messages)

    def work(self) -> None:
        """Take messages until none is left, as one worker of each queue would."""
        tasks = {"imgrec.embed_shard": embed.embed, "imgrec.merge_shards": index.merge_shards}
        while self.messages:
            task, args = self.messages.popleft()
            tasks[task](*args)

    def rebuild(self, full: bool = False) -> str:
        """Plan and run a rebuild of the shop's folder; return the job's id."""
        job_id = self.shop.plan(full)
        dispatch.advance(job_id)
        self.work()
        return job_id

    def job(self, job_id: str) -> Job:
        return self.shop.jobs.get(job_id)

    def progress(self, job_id: str) -> Progress:
        return self.shop.jobs.progress(job_id)
