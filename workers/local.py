"""Do the workers' tasks in this process: no Redis, no worker, one machine, for --local.

The ledger, the index and every rule are the same; only the messages stay here, and the shared cache
is left alone.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from typing import Any

from celery import current_app

from pipeline.settings import cores, load_settings
from workers import dispatch, embed, index, query, resources

IDLE_S = 0.2  # between two looks at a job whose shards another process holds
TASKS = {"imgrec.embed_shard": embed.embed, "imgrec.merge_shards": index.merge_shards}
assert query  # imported, so that its tasks are known by their names


def begin() -> None:
    """From here on, this process is all workers at once."""
    if dispatch.inbox is not None:
        return
    dispatch.inbox = deque()
    resources.disable_cache()
    if not load_settings().cpu_threads:  # nobody shares the cores
        os.environ["CPU_THREADS"] = str(cores())
        load_settings.cache_clear()


def answer(task: str, task_id: str, args: tuple[Any, ...]) -> Any:
    """Run a task of queue `query` and return its answer.

    Raises:
        ImgrecError: what the task raised.
    """
    begin()
    found = current_app.tasks[task].apply(args=args, task_id=task_id, throw=True).result
    resources.query_log().flush()
    return found


class Work:
    """Work at a job in a thread, until it has ended or `stop` is called."""

    def __init__(self, job_id: str) -> None:
        begin()
        self._job_id = job_id
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="work")
        resources.stopping.clear()
        self._thread.start()

    def check(self) -> None:
        """Raise what ended the thread before its time."""
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """End after the current image; what is done so far stays done."""
        resources.stopping.set()
        self._thread.join()
        resources.stopping.clear()

    def _run(self) -> None:
        assert dispatch.inbox is not None
        try:
            dispatch.reconcile()  # picks up what another process has left
            while resources.jobs().get(self._job_id).open and not resources.stopping.is_set():
                if dispatch.inbox:
                    task, args = dispatch.inbox.popleft()
                    TASKS[task](*args)
                else:
                    time.sleep(IDLE_S)
                    dispatch.reconcile()
        except BaseException as error:
            self._error = error
