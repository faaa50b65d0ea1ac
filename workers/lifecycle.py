"""What a worker process does around its tasks: set itself up, look after jobs, end gently."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from typing import Any

from celery import current_app, signals
from kombu.entity import Queue

from pipeline.embed.fingerprint import find_fingerprint
from pipeline.errors import ImgrecError
from pipeline.failpoints import failpoint
from pipeline.images.memory_budget import limit_malloc_arenas
from pipeline.settings import load_settings
from pipeline.store.heartbeat import EVERY_S, READY, Heartbeat
from workers import dispatch, memory_guard, resources, transport, watchdog
from workers.consumer_watchdog import Pulse, connection

log = logging.getLogger(__name__)

current_app.steps["consumer"].add(Pulse)
_tasks: dict[str, watchdog.Deadline] = {}


@signals.celeryd_init.connect
def configure_worker(instance: Any, conf: Any, options: dict[str, Any], **_: Any) -> None:
    """Fit the configuration to the queues that this worker serves."""
    settings = load_settings()
    transport.install()
    limit_malloc_arenas()
    # OpenMP sizes its pool when torch or faiss first load: the share must be known before.
    os.environ.setdefault("OMP_NUM_THREADS", str(settings.threads))
    queues = _queues(options.get("queues"))
    # What was taken is started at once, so the noting of a query as taken, which costs a quarter of
    # its way, would only help one that is lost in the same instant; its client sends it again.
    conf.task_queues = [
        Queue(name, no_ack=name == dispatch.QUERY)  # type: ignore[no-untyped-call]
        for name in dispatch.QUEUES
    ]
    name, _, host = instance.hostname.partition("@")
    if name == "celery":
        # Workers that share the default name would share one control mailbox, too.
        instance.hostname = f"{'-'.join(sorted(queues or dispatch.QUEUES))}-{os.getpid()}@{host}"


@signals.worker_init.connect
def set_query_concurrency(sender: Any, **_: Any) -> None:
    """Give a worker of queries alone its threads, unless `-c` has; leave out workers' small talk.

    Gossip and mingle tell workers of each other, which nothing here needs. They cost each a second
    at its start, and on a connection that went silent each message waits for its own timeout.
    """
    sender.options |= {"without_mingle": True, "without_gossip": True}
    # Not in `configure_worker`: the command line has read the configured concurrency before that.
    if set(sender.app.amqp.queues.consume_from) == {dispatch.QUERY} and sender.concurrency == 1:
        sender.concurrency = load_settings().query_concurrency


@signals.worker_init.connect
def start_heartbeat(sender: Any, **_: Any) -> None:
    """Give signs of life from here on: a worker that waits for Redis is well."""
    _thread("heartbeat", _beat, sender.hostname)


@signals.worker_init.connect
def warm_up(sender: Any, **_: Any) -> None:
    """Load what queries need, in two threads, while Celery still connects."""
    if dispatch.QUERY in sender.app.amqp.queues.consume_from:
        _thread("warm-up", _load_model)
        _thread("warm-up-index", _open_index)


@signals.after_setup_logger.connect
def silence_loggers(**_: Any) -> None:
    """Keep to what an operator reads: our own lines, and what goes wrong."""
    for name in ("celery.app.trace", "celery.worker.strategy", "faiss.loader", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)


@signals.worker_ready.connect
def start_helpers(sender: Any, **_: Any) -> None:
    """Start this worker's threads: memory watch, reconciler."""
    queues = {queue.name for queue in sender.task_consumer.queues}
    memory_guard.begin()
    if dispatch.INDEX in queues:
        watchdog.register_thread(_thread("reconciler", _reconcile))


@signals.task_prerun.connect
def begin_task(task_id: str, task: Any, **_: Any) -> None:
    """Watch a query; a shard has its lease, and a merge no limit."""
    if task.name not in ("imgrec.embed_shard", "imgrec.merge_shards"):
        _tasks[task_id] = watchdog.Deadline(f"{task.name} {task_id}", load_settings().hung_after_s)
        _tasks[task_id].begin()


@signals.task_postrun.connect
def end_task(task_id: str, **_: Any) -> None:
    if task_id in _tasks:
        _tasks.pop(task_id).end()


@signals.worker_shutting_down.connect
def stop(**_: Any) -> None:
    """Let running shards go back to the queue after their current image."""
    resources.stopping.set()
    connection.changed.set()


@signals.worker_shutdown.connect
def end(**_: Any) -> None:
    """Write the last queries to their log."""
    with contextlib.suppress(ImgrecError):
        resources.query_log().flush()


def _queues(option: Any) -> set[str]:
    if isinstance(option, str):
        return {name.strip() for name in option.split(",") if name.strip()}
    return set(option or ())


def _thread(name: str, run: Any, *args: Any) -> threading.Thread:
    thread = threading.Thread(target=run, args=args, name=name, daemon=True)
    thread.start()
    return thread


def _beat(name: str) -> None:
    """Touch a file for health checks while all that is needed lives; say in another why not.

    A Redis or a database that is away makes nobody ill: nothing here could mend it.
    """
    heartbeat, before = Heartbeat(load_settings().data_dir / "run", name), ""
    while True:
        connection.changed.clear()
        if resources.stopping.is_set():
            break
        ill = "; ".join([*watchdog.failures(), *filter(None, [connection.problem()])])
        if ill and not before:
            log.error("This worker is ill: %s.", ill)
        elif before and not ill:
            log.warning("This worker is well again.")
        before = ill
        try:
            heartbeat.beat(READY if connection.connected else "waiting for Redis", ill)
        except OSError as error:
            log.warning("The heartbeat file cannot be written: %s", error)
        connection.changed.wait(EVERY_S)
    heartbeat.end()


def _load_model() -> None:
    """Load the model before the first query asks for it."""
    try:
        start = time.monotonic()
        resources.query_prepare()
        resources.fingerprint()
        resources.batcher()
        memory_guard.apply_limit(resources.budget, dispatch.QUERY)
        log.info("The model is loaded (%.1f s).", time.monotonic() - start)
    except ImgrecError as error:
        log.error("%s", error)  # each query will say it, too


def _open_index() -> None:
    """Read the model's digest and the index while the other thread imports torch."""
    with contextlib.suppress(ImgrecError):  # each query will say it
        find_fingerprint(load_settings())
        resources.shelves().of(resources.published().current().version)


def _reconcile() -> None:
    pause_s = load_settings().reconcile_s
    while not resources.stopping.wait(pause_s):
        failpoint("reconcile")
        try:
            with watchdog.Deadline("the reconciler", load_settings().hung_after_s):
                dispatch.reconcile()
        except ImgrecError as error:
            log.warning("The ledger waits: %s", error)
        except Exception:
            # This thread is the one that finds lost work: it must outlive its own bugs.
            log.exception("The reconciler failed; it goes on.")
