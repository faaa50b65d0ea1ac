"""The workers' tasks in this process: messages stay in memory instead of in Redis."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from toy_pipeline import ToyPipeline

from pipeline.settings import Settings
from pipeline.store.job import Job, Progress
from workers.dispatch import InlineDispatcher
from workers.local import run_next
from workers.reconcile import advance
from workers.resources import Resources


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


class InlineWorker(InlineDispatcher):
    """A worker process of one machine: real tasks, job table and index; a toy encoder; no Redis."""

    def __init__(self, settings: Settings, tmp_path: Path) -> None:
        super().__init__()
        self.inline = False  # whether what is sent is done at once
        self.toy = ToyPipeline(settings, tmp_path)
        self.memory = MemoryCache()
        self.resources = self._made(settings, self.toy)

    def start_again(self, encoder: Any = None, **changes: Any) -> None:
        """Be another process: of other settings, or with another encoder."""
        settings = self.resources.settings.model_copy(update=changes)
        self.resources = self._made(settings, encoder or self.resources.clip)

    def _made(self, settings: Settings, encoder: Any) -> Resources:
        return Resources(settings, self, cache=self.memory, clip=encoder)

    def send(self, task: str, *args: object) -> None:
        super().send(task, *args)
        if self.inline:
            self.work()

    def work(self) -> None:
        """Take messages until none is left, as one worker of each queue would."""
        while run_next(self.resources, self):
            pass

    def advance(self, job_id: str) -> None:
        advance(self.resources, job_id)

    def rebuild(self, full: bool = False) -> str:
        """Plan and run a rebuild of the shop's folder; return the job's id."""
        job_id = self.toy.plan(full)
        self.advance(job_id)
        self.work()
        return job_id

    def job(self, job_id: str) -> Job:
        return self.toy.jobs.get(job_id)

    def progress(self, job_id: str) -> Progress:
        return self.toy.jobs.progress(job_id)
