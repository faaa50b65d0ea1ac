"""What comes next in a job: send shards, send the merge, send again what got lost.

Each function may run anywhere, any number of times and at once: the ledger decides, messages are
hints.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import redis
from celery import current_app
from kombu.exceptions import OperationalError
from redis.backoff import NoBackoff
from redis.retry import Retry

from pipeline.errors import ServerAway
from pipeline.failpoints import failpoint
from pipeline.settings import load_settings

if TYPE_CHECKING:
    from pipeline.store.jobs import Jobs

log = logging.getLogger(__name__)

EMBED, INDEX, QUERY = "embed", "index", "query"
QUEUES = (EMBED, INDEX, QUERY)
# Set while this process does all the work itself (workers.local): tasks wait here, not in Redis.
inbox: deque[tuple[str, tuple[object, ...]]] | None = None
_answered_at = float("-inf")

ANSWERED_S = 5.0  # a Redis that has answered so lately is not asked again
LOST_AFTER_S = 5.0  # a queued shard without a message: the queue is empty and it was not taken


def advance(job_id: str) -> None:
    """Send the next shards of a job, or its merge when no shard is left.

    Raises:
        ServerAway: Redis does not take messages; the shards stay marked and are sent again.
    """
    jobs = _jobs()
    window = jobs.next_window(job_id, load_settings().shard_window)
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
        ServerAway: Redis does not answer.
    """
    if inbox is not None:
        inbox.append((task, args))
        return
    try:
        current_app.send_task(task, args=args, queue=queue, ignore_result=True)
    except OperationalError as error:
        raise redis_away(error) from error


def redis_away(error: BaseException | None = None) -> ServerAway:
    """Return the sentence for a Redis that does not answer, or that takes nothing more."""
    from pipeline.store.database import without_password

    url = without_password(load_settings().redis_url)
    if "used memory > 'maxmemory'" in f"{error} {error.__cause__ if error else None}":
        return ServerAway(
            f"Redis at {url} is full and takes no message: raise its maxmemory, or empty the cache "
            "with 'imgrec cache clear'. What was planned goes on when there is room."
        )
    return ServerAway(
        f"Redis does not answer at {url}: start it ('imgrec up' starts everything on one machine), "
        "or correct REDIS_URL."
    )


def require_redis() -> None:
    """Check within seconds that Redis answers, before anything is planned or sent.

    Raises:
        ServerAway: it does not.
    """
    global _answered_at
    if inbox is not None or time.monotonic() - _answered_at < ANSWERED_S:
        return
    url = load_settings().redis_url
    client = redis.Redis.from_url(
        url, socket_connect_timeout=2, socket_timeout=2, retry=Retry(NoBackoff(), 0)
    )
    try:
        client.ping()
        _answered_at = time.monotonic()
    except redis.RedisError as error:
        raise redis_away(error) from error
    finally:
        client.close()


def workers_on(queue: str) -> int:
    """Count the workers that say, within a second, that they serve a queue."""
    try:
        replies = current_app.control.inspect(timeout=1.0).active_queues() or {}
    except OperationalError as error:
        raise redis_away(error) from error
    return sum(any(q["name"] == queue for q in queues) for queues in replies.values())


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
        if _queue_length(EMBED) == 0:
            send_shards(job.id, jobs.lost_messages(job.id, LOST_AFTER_S))
        advance(job.id)


def remove_leftovers() -> None:
    """Delete the plans and shard files of jobs that have ended."""
    jobs = _jobs()
    jobs.forget_plans()
    folder = load_settings().jobs_dir
    if not folder.is_dir():
        return
    still_open = {job.id for job in jobs.open_jobs()}
    for child in folder.iterdir():
        if child.name not in still_open:
            shutil.rmtree(child, ignore_errors=True)


def _queue_length(queue: str) -> int:
    if inbox is not None:
        return len(inbox)
    try:
        with current_app.connection_for_write() as connection:
            return int(connection.default_channel.client.llen(queue))
    except OperationalError as error:
        raise redis_away(error) from error


def _jobs() -> Jobs:
    # Not at the top: a command that only asks a question needs nothing that a worker holds.
    from workers import runtime

    return runtime.jobs()
