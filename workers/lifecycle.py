"""What a worker process does around its tasks: set itself up, look after jobs, end gently."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from typing import Any

import redis
from celery import bootsteps, current_app, signals
from kombu.entity import Queue

from pipeline.embed.fingerprint import find_fingerprint
from pipeline.errors import ImgrecError, ServerUnavailable
from pipeline.failpoints import failpoint
from pipeline.images.memory_budget import limit_malloc_arenas
from pipeline.store.heartbeat import EVERY_S, READY, Heartbeat
from pipeline.store.redis_client import connect, require_fit
from workers import transport
from workers.announcer import Announcer
from workers.log_escape import escape
from workers.reconcile import reconcile
from workers.resources import Resources, process_resources
from workers.routes import INDEX, QUERY, QUEUES

log = logging.getLogger(__name__)

TURN_S = 1.0
BROKER_S = 2.0
INDEX_S = 0.25  # between two looks at which version is published
MISSING_S = 1.0  # the same while there is none: each look may ask a store


class WatchConsumer(bootsteps.StartStopStep):
    """Tells the consumer's watchdog of each turn of Celery's loop, and of the connection."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._timer: Any = None

    def start(self, consumer: Any) -> None:
        watchdog = process_resources().consumer
        self._timer = consumer.timer.call_repeatedly(TURN_S, watchdog.turn)
        watchdog.connect()

    def stop(self, consumer: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        process_resources().consumer.disconnect()

    shutdown = stop


current_app.steps["consumer"].add(WatchConsumer)


@signals.celeryd_init.connect
def configure_worker(instance: Any, conf: Any, options: dict[str, Any], **_: Any) -> None:
    """Fit the configuration to the queues that this worker serves."""
    settings = process_resources().settings
    _require_fit_broker(settings.redis_url)
    _require_fit_store(process_resources())
    transport.install()
    limit_malloc_arenas()
    queues = _queues(options.get("queues"))
    # Queries need no acknowledgement, which would cost a quarter of their round trip: they start at
    # once, and the client of one that is lost in that instant sends it again.
    conf.task_queues = [
        Queue(name, no_ack=name == QUERY)  # type: ignore[no-untyped-call]
        for name in QUEUES
    ]
    name, _, host = instance.hostname.partition("@")
    if name == "celery":
        # Workers that share the default name would share one control mailbox, too.
        instance.hostname = f"{'-'.join(sorted(queues or QUEUES))}-{os.getpid()}@{host}"


@signals.worker_init.connect
def set_query_concurrency(sender: Any, **_: Any) -> None:
    """Set the concurrency of query-only workers, unless `-c` was given; disable gossip and mingle.

    Those two tell workers of each other, which nothing here needs. They cost each a second at its
    start, and on a connection that went silent each message waits for its own timeout.
    """
    sender.options |= {"without_mingle": True, "without_gossip": True}
    # Not in `configure_worker`: the command line has read the configured concurrency before that.
    if set(sender.app.amqp.queues.consume_from) == {QUERY} and sender.concurrency == 1:
        sender.concurrency = process_resources().settings.query_concurrency


@signals.worker_init.connect
def start_heartbeat(sender: Any, **_: Any) -> None:
    """Start the heartbeat before Redis is there: a worker that waits for it is healthy."""
    _thread("heartbeat", _beat, process_resources(), sender.hostname)


@signals.worker_init.connect
def announce(sender: Any, **_: Any) -> None:
    """Say from here on what this worker works with; commands compare before they send."""
    resources = process_resources()
    resources.worker_name = sender.hostname
    registry = resources.dispatcher.registry
    if registry is not None:
        queues = sorted(sender.app.amqp.queues.consume_from)
        announcer = Announcer(
            registry, sender.hostname, queues, resources.identifier, resources.stopping
        )
        resources.watchdog.register_thread(_thread("announcer", announcer.run))


@signals.worker_init.connect
def warm_up(sender: Any, **_: Any) -> None:
    """Load what queries need, in two threads, while Celery still connects."""
    if QUERY in sender.app.amqp.queues.consume_from:
        _thread("warm-up", _load_model, process_resources())
        _thread("index", _follow_index, process_resources())


@signals.after_setup_logger.connect
def silence_loggers(**_: Any) -> None:
    """Keep to what an operator reads: our own lines, and what goes wrong."""
    for name in ("celery.app.trace", "celery.worker.strategy", "faiss.loader", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)


@signals.after_setup_logger.connect
@signals.after_setup_task_logger.connect
def escape_log(logger: logging.Logger, **_: Any) -> None:
    """Let no name of a file steer the terminal that shows the log."""
    for handler in logger.handlers:
        handler.addFilter(escape)


@signals.worker_ready.connect
def start_helpers(sender: Any, **_: Any) -> None:
    """Start this worker's threads: memory watch, reconciler."""
    resources = process_resources()
    resources.memory_guard.start()
    resources.metrics.start()
    if INDEX in {queue.name for queue in sender.task_consumer.queues}:
        resources.watchdog.register_thread(_thread("reconciler", _reconcile, resources))


@signals.worker_shutting_down.connect
def stop(**_: Any) -> None:
    """Let running shards go back to the queue after their current image."""
    resources = process_resources()
    resources.stopping.set()
    resources.consumer.changed.set()


@signals.worker_shutdown.connect
def end(**_: Any) -> None:
    """Write the last queries to their log."""
    with contextlib.suppress(ImgrecError):
        process_resources().query_log.flush()


def _require_fit_broker(redis_url: str) -> None:
    """End at once where the Redis can never carry queues; one that is away is waited for."""
    try:
        with contextlib.closing(connect(redis_url, BROKER_S)) as client:
            require_fit(redis_url, client)
    except redis.RedisError:
        pass
    except ServerUnavailable as error:
        sys.exit(f"Error: {error}")


def _require_fit_store(resources: Resources) -> None:
    """End at once where ARTIFACTS_URL names no fit store; one that is away is waited for."""
    try:
        resources.require_fit_artifacts()
    except ServerUnavailable as error:
        log.warning("%s This worker waits for it.", error)
    except ImgrecError as error:
        sys.stderr.write(f"Error: {error}\n")
        sys.exit(error.exit_code)


def _queues(option: Any) -> set[str]:
    if isinstance(option, str):
        return {name.strip() for name in option.split(",") if name.strip()}
    return set(option or ())


def _thread(name: str, run: Any, *args: Any) -> threading.Thread:
    thread = threading.Thread(target=run, args=args, name=name, daemon=True)
    thread.start()
    return thread


def _beat(resources: Resources, name: str) -> None:
    """Touch a file for health checks while all that is needed lives; say in another why not.

    An unavailable Redis or database makes no worker unhealthy: a restart would not help.
    """
    heartbeat, before = Heartbeat(resources.settings.run_dir, name), ""
    consumer = resources.consumer
    while True:
        consumer.changed.clear()
        if resources.stopping.is_set():
            break
        problems = [*resources.watchdog.failures(), *filter(None, [consumer.problem()])]
        problem = "; ".join(problems)
        if problem and not before:
            log.error("This worker is unhealthy: %s.", problem)
        elif before and not problem:
            log.warning("This worker is healthy again.")
        before = problem
        try:
            heartbeat.beat(READY if consumer.connected else "waiting for Redis", problem)
        except OSError as error:
            log.warning("The heartbeat file cannot be written: %s", error)
        consumer.changed.wait(EVERY_S)
    heartbeat.end()


def _load_model(resources: Resources) -> None:
    """Load the model before the first query asks for it."""
    try:
        start = time.monotonic()
        _ = resources.query_prepare, resources.fingerprint, resources.batcher
        resources.memory_guard.apply_limit(QUERY)
        log.info("The model is loaded (%.1f s).", time.monotonic() - start)
    except ImgrecError as error:
        log.error("%s", error)  # each query will say it, too


def _follow_index(resources: Resources) -> None:
    """Read the model's digest and the index while the other thread imports torch; follow the index.

    So most queries find a new version loaded, and a server's is used soon after its publication.
    """
    with contextlib.suppress(Exception):  # each query will say it, here and below
        find_fingerprint(resources.settings)
        resources.indexed_catalogues.of(resources.live_index.current().version)
    pause_s = INDEX_S
    while not resources.stopping.wait(pause_s):
        pause_s = MISSING_S
        with contextlib.suppress(Exception):
            resources.live_index.current()
            pause_s = INDEX_S


def _reconcile(resources: Resources) -> None:
    settings = resources.settings
    work = resources.watchdog.deadline("the reconciler", settings.hung_after_s)
    while not resources.stopping.wait(settings.reconcile_s):
        failpoint("reconcile")
        try:
            with work:
                reconcile(resources)
        except ImgrecError as error:
            log.warning("The job table is unavailable, trying again: %s", error)
        except Exception:
            # This thread is the one that finds lost work: it must outlive its own bugs.
            log.exception("The reconciler failed; it continues.")
