"""What comes next in a job: send shards, send the merge, send again what got lost.

Each function may run anywhere, any number of times and at once: the ledger decides, messages are
hints.
"""

from __future__ import annotations

import logging
import shutil
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import redis
from celery import current_app
from kombu.exceptions import OperationalError

from pipeline.errors import WrongUse
from pipeline.failpoints import failpoint
from pipeline.settings import load_settings
from pipeline.store.redis_client import PREFIX, connect, trouble

if TYPE_CHECKING:
    from pipeline.store.jobs import Jobs

log = logging.getLogger(__name__)

EMBED, INDEX, QUERY = "embed", "index", "query"
QUEUES = (EMBED, INDEX, QUERY)
# Set while this process does all the work itself (workers.local): tasks wait here, not in Redis.
inbox: deque[tuple[str, tuple[object, ...]]] | None = None

LOST_AFTER_S = 5.0  # a queued shard without a message: the queue is empty and it was not taken


def advance(job_id: str) -> None:
    """Send the next shards of a job, or its merge when no shard is left.

    Raises:
        ServerUnavailable: Redis does not take messages; the shards stay marked and are sent again.
    """
    jobs = _jobs()
    window = jobs.next_window(job_id, load_settings().max_shards_in_flight)
    failpoint("flow.before_send")
    send_shards(job_id, window)
    if jobs.ready_to_merge(job_id):
        send("imgrec.merge_shards", INDEX, job_id)


def send_shards(job_id: str, numbers: Sequence[int]) -> None:
    """Send one message a shard."""
    for n in numbers:
        send("imgrec.embed_shard", EMBED, job_id, n)


def send(task: str, queue: str, *args: object) -> None:
    """Send a task that answers through the ledger.

    Raises:
        ServerUnavailable: Redis does not answer.
    """
    if inbox is not None:
        inbox.append((task, args))
        return
    with broker():
        current_app.send_task(task, args=args, queue=queue, ignore_result=True)


@contextmanager
def broker() -> Iterator[None]:
    """Turn what kombu and redis-py raise into the sentence about Redis.

    Raises:
        ServerUnavailable: it does not answer, refuses us, or takes nothing more.
    """
    try:
        yield
    except (OperationalError, redis.RedisError) as error:
        raise trouble(load_settings().redis_url, error) from error


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


def require_redis() -> None:
    """Check within seconds that Redis works for us, before anything is planned or sent.

    Raises:
        ServerUnavailable: it does not.
    """
    if inbox is not None:
        return
    url = load_settings().redis_url
    with broker(), closing(connect(url, 2)) as client:
        client.delete(f"{PREFIX}check")  # not a mere ping, which any user may send


def workers(patience_s: float = 1.0) -> Counter[str]:
    """Count the workers that say, within `patience_s`, which queues they serve."""
    with broker():
        replies = current_app.control.inspect(timeout=patience_s).active_queues() or {}
    return Counter(queue["name"] for queues in replies.values() for queue in queues)


def workers_on(queue: str, patience_s: float = 1.0) -> int:
    """Count the workers that say, within `patience_s`, that they serve a queue."""
    return workers(patience_s)[queue]


def reconcile() -> None:
    """Look at every open job once and set going what stands still."""
    jobs = _jobs()
    jobs.fail_abandoned_plans()
    for job in jobs.open_jobs():
        if not job.plan_done:
            continue
        freed = jobs.free_expired_shards(job.id)
        if freed:
            log.warning("Job %s: the workers of shards %s are gone; sending again.", job.id, freed)
        if queue_length(EMBED) == 0:
            send_shards(job.id, jobs.lost_messages(job.id, LOST_AFTER_S))
        advance(job.id)


def remove_leftovers() -> None:
    """Delete the plans and shard files of jobs that have ended."""
    jobs = _jobs()
    jobs.drop_items()
    folder = load_settings().jobs_dir
    if not folder.is_dir():
        return
    # The folders first: a job that is created meanwhile is then open, or its folder is not listed.
    children = list(folder.iterdir())
    still_open = {job.id for job in jobs.open_jobs()}
    for child in children:
        if child.name not in still_open:
            shutil.rmtree(child, ignore_errors=True)


def queue_length(queue: str) -> int:
    """Count the messages that no worker has taken yet."""
    if inbox is not None:
        return len(inbox)
    with broker(), current_app.connection_for_write() as connection:
        return int(connection.default_channel.client.llen(queue))


def _jobs() -> Jobs:
    # Not at the top: a command that only asks a question needs nothing that a worker holds.
    from workers import resources

    return resources.jobs()
