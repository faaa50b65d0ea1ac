"""The seam between who sends tasks and who runs them: workers anywhere, or this process."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Protocol

import redis

from pipeline.errors import WrongUse
from pipeline.store.redis_client import PREFIX, connect, require_fit, trouble
from workers.registry import EVERY_S, WorkerRegistry
from workers.routes import FORM, FORM_HEADER, QUEUE_OF, QUEUES

PAUSE_S = 3.0
THIS_PROCESS = "this process"  # the name of a worker that is none


class Dispatcher(Protocol):
    """Takes tasks that answer through the job table, each into its queue."""

    # Seconds in which another worker may join that can do what those that are there cannot.
    join_s: float
    # What the workers have said that may take the tasks; None where this process runs them.
    registry: WorkerRegistry | None

    def send(self, task: str, *args: object) -> None:
        """Send a task.

        Raises:
            ServerUnavailable: the broker does not take it.
        """

    def queue_length(self, queue: str) -> int:
        """Count the messages that no worker has taken yet."""

    def require_broker(self) -> None:
        """Check within seconds that tasks can be sent, before anything is planned.

        Raises:
            ServerUnavailable: they cannot.
        """

    def workers(self, patience_s: float = 1.0) -> Counter[str]:
        """Count the workers on each queue that answer within `patience_s`."""

    def worker_queues(self, patience_s: float = 1.0) -> dict[str, list[str]]:
        """Return the queues of each worker that answers within `patience_s`, by its name."""

    def pause_for_others(self, stopping: threading.Event) -> None:
        """Take no message for a while, so that other workers take what this one gave back."""


class CeleryDispatcher:
    """Sends through Celery's broker, the Redis at `redis_url`; every method may raise what
    `send` does."""

    join_s = 30.0

    # Celery is imported at first use: most commands look into the database alone.

    def __init__(self, redis_url: str) -> None:
        self._redis_url = redis_url
        self.registry: WorkerRegistry | None = WorkerRegistry(redis_url)

    def send(self, task: str, *args: object) -> None:
        from workers.celery_app import app

        with self._broker():
            app().send_task(
                task,
                args=args,
                queue=QUEUE_OF[task],
                ignore_result=True,
                headers={FORM_HEADER: FORM, "sent_at": time.time()},  # the age is a metric
            )

    def queue_length(self, queue: str) -> int:
        from workers.celery_app import app

        with self._broker(), app().connection_for_write() as connection:
            return int(connection.default_channel.client.llen(queue))

    def require_broker(self) -> None:
        with self._broker(), closing(connect(self._redis_url, 2)) as client:
            require_fit(self._redis_url, client)
            client.delete(f"{PREFIX}check")  # not a mere ping, which any user may send

    def workers(self, patience_s: float = 1.0) -> Counter[str]:
        return Counter(
            queue for queues in self.worker_queues(patience_s).values() for queue in queues
        )

    def worker_queues(self, patience_s: float = 1.0) -> dict[str, list[str]]:
        from workers.celery_app import app

        with self._broker():
            replies = app().control.inspect(timeout=patience_s).active_queues() or {}
        queues = {
            name: [queue["name"] for queue in reply]
            for name, reply in replies.items()
            if isinstance(reply, list)  # not an error
        }
        # kombu writes the binding of a queue of replies once: a process that has outlived a Redis
        # that restarted empty may get no reply any more. What workers announce still arrives.
        if self.registry is not None:
            for each in self.registry.present(2 * EVERY_S):
                queues.setdefault(each.worker, list(each.queues))
        return queues

    def pause_for_others(self, stopping: threading.Event) -> None:
        stopping.wait(PAUSE_S)

    @contextmanager
    def _broker(self) -> Iterator[None]:
        """Turn what kombu and redis-py raise into the sentence about Redis.

        kombu 5.7 may use a channel that was closed a moment ago, with its connection: `None`.
        """
        from kombu.exceptions import OperationalError

        try:
            yield
        except (OperationalError, redis.RedisError) as error:
            raise trouble(self._redis_url, error) from error
        except AttributeError as error:
            if error.obj is not None:
                raise
            raise trouble(self._redis_url, None) from error


class InlineDispatcher:
    """Keeps tasks in this process for whoever runs them here: `--local`, and tests."""

    join_s = 0.0
    registry: WorkerRegistry | None = None

    def __init__(self) -> None:
        self.messages: deque[tuple[str, tuple[object, ...]]] = deque()

    def send(self, task: str, *args: object) -> None:
        self.messages.append((task, args))

    def queue_length(self, queue: str) -> int:
        return sum(QUEUE_OF[task] == queue for task, _ in list(self.messages))

    def require_broker(self) -> None:
        pass

    def workers(self, patience_s: float = 1.0) -> Counter[str]:
        return Counter(QUEUES)

    def worker_queues(self, patience_s: float = 1.0) -> dict[str, list[str]]:
        return {THIS_PROCESS: list(QUEUES)}

    def pause_for_others(self, stopping: threading.Event) -> None:
        """There are none."""


def require_names(job_id: object, n: object = 0) -> None:
    """Check what a message names before a database is asked for it.

    Raises:
        WrongUse: no job or shard can be called so.
    """
    # NUL: PostgreSQL stores none. Its INTEGER ends where int32 does.
    if not isinstance(job_id, str) or "\0" in job_id or len(job_id) > 100:
        raise WrongUse(f"There is no job {str(job_id)[:50]!r}: 'imgrec jobs' lists them.")
    if not isinstance(n, int) or isinstance(n, bool) or not 0 <= n < 2**31:
        raise WrongUse(f"There is no shard {str(n)[:50]!r} of job {job_id[:50]!r}.")
