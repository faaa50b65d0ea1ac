"""Do the workers' tasks in this process: no Redis, no worker, one machine, for --local.

The job table, the index and every rule are the same; only the messages stay here, and the shared
cache is left alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from pipeline.cgroup import cores
from pipeline.settings import Settings
from pipeline.store.cache import NoCache
from workers import (
    duplicates,
    embed,
    fetch,
    index,
    plan_fetched,
    product_images,
    query,
    routes,
    webhooks,
)
from workers.dispatch import InlineDispatcher
from workers.reconcile import reconcile
from workers.resources import Resources

IDLE_S = 0.2  # between two looks at a job whose shards another process holds
JOB_TASKS: dict[str, Callable[..., None]] = {
    routes.EMBED_SHARD: embed.embed,
    routes.FETCH_SHARD: fetch.fetch,
    routes.PLAN_FETCHED: plan_fetched.plan,
    routes.MERGE_SHARDS: index.merge_shards,
    routes.SEND_WEBHOOK: webhooks.send_webhook,
    routes.FIND_DUPLICATES: duplicates.find_duplicates,
}
QUERIES: dict[str, Callable[..., dict[str, Any]]] = {
    routes.QUERY_IMAGE: query.query_image,
    routes.CLASSIFY_IMAGE: query.classify_image,
    routes.IMAGE_VECTOR: query.image_vector,
}


class LocalWorker:
    """All workers of one machine in this process."""

    def __init__(self, settings: Settings) -> None:
        if not settings.cpu_threads:  # nobody shares the cores
            settings = settings.model_copy(update={"cpu_threads": cores()})
        self.dispatcher = InlineDispatcher()
        self.resources = Resources(settings, self.dispatcher, cache=NoCache())

    def answer(self, task: str, query_id: str, args: tuple[Any, ...]) -> dict[str, Any]:
        """Run a task of queue `query` and return its answer.

        Raises:
            ImgrecError: what the task raised.
        """
        if task in (routes.THUMBNAILS, routes.PICTURES):
            return product_images.thumbnails(self.resources, *args)
        answer = QUERIES[task](self.resources, *args, query_id=query_id)
        self.resources.query_log.flush()
        return answer

    def run_all(self) -> None:
        """Run the tasks that were sent, until none is left."""
        while run_next(self.resources, self.dispatcher):
            pass

    def work_at(self, job_id: str) -> Work:
        """Start to work at a job."""
        return Work(self.resources, self.dispatcher, job_id)


class Work:
    """Work at a job in a thread, until it has ended or `stop` is called."""

    def __init__(self, resources: Resources, dispatcher: InlineDispatcher, job_id: str) -> None:
        self._resources = resources
        self._dispatcher = dispatcher
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
        self._resources.stopping.set()
        self._thread.join()
        self._resources.stopping.clear()

    def _run(self) -> None:
        resources = self._resources
        try:
            reconcile(resources)  # picks up what another process has left
            while resources.jobs.get(self._job_id).open and not resources.stopping.is_set():
                if not run_next(resources, self._dispatcher):
                    time.sleep(IDLE_S)
                    reconcile(resources)
        except BaseException as error:
            self._error = error


def run_next(resources: Resources, dispatcher: InlineDispatcher) -> bool:
    """Run the task that was sent first; False where there is none."""
    if not dispatcher.messages:
        return False
    task, args = dispatcher.messages.popleft()
    JOB_TASKS[task](resources, *args)
    return True
