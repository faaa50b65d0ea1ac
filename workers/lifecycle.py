"""What a worker process does around its tasks: set itself up, look after jobs, end gently."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from typing import Any

from celery import signals
from kombu.entity import Queue

from pipeline.errors import ImgrecError
from pipeline.files import write_atomic
from pipeline.memory import keep_little
from pipeline.settings import load_settings
from workers import flow, gate, memory, runtime

log = logging.getLogger(__name__)

HEARTBEAT_S = 10.0
FORGET_S = 86_400.0


@signals.celeryd_init.connect
def set_up(instance: Any, conf: Any, options: dict[str, Any], **_: Any) -> None:
    """Fit the configuration to the queues that this worker serves."""
    settings = load_settings()
    gate.install()
    keep_little()
    # OpenMP sizes its pool when torch or faiss first load: the share must be known before.
    os.environ.setdefault("OMP_NUM_THREADS", str(settings.threads))
    queues = _queues(options.get("queues"))
    if not queues:
        conf.task_queues = [Queue(name) for name in flow.QUEUES]  # type: ignore[no-untyped-call]
    if queues == {flow.QUERY}:
        conf.worker_disable_prefetch = False
    name, _, host = instance.hostname.partition("@")
    if name == "celery":
        # Workers that share the default name would share one control mailbox, too.
        instance.hostname = f"{'-'.join(sorted(queues or flow.QUEUES))}-{os.getpid()}@{host}"


@signals.worker_init.connect
def widen(sender: Any, **_: Any) -> None:
    """Give a worker of queries alone its threads, unless `-c` has."""
    # Not in `set_up`: the command line has read the configured concurrency before that.
    if set(sender.app.amqp.queues.consume_from) == {flow.QUERY} and sender.concurrency == 1:
        sender.concurrency = load_settings().query_concurrency


@signals.after_setup_logger.connect
def quieten(**_: Any) -> None:
    """Keep to what an operator reads: our own lines, and what goes wrong."""
    for name in ("celery.app.trace", "celery.worker.strategy", "faiss.loader", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)


@signals.worker_ready.connect
def start_helpers(sender: Any, **_: Any) -> None:
    """Start this worker's threads: heartbeat, memory watch, model warm-up, reconciler."""
    queues = {queue.name for queue in sender.task_consumer.queues}
    memory.begin()
    _thread("heartbeat", _beat, sender.hostname)
    if flow.QUERY in queues:
        _thread("warm-up", _warm_up)
    if flow.INDEX in queues:
        _thread("reconciler", _reconcile)


@signals.worker_shutting_down.connect
def stop(**_: Any) -> None:
    """Let running shards go back to the queue after their current image."""
    runtime.stopping.set()


@signals.worker_shutdown.connect
def end(**_: Any) -> None:
    """Write the last queries to their log."""
    with contextlib.suppress(ImgrecError):
        runtime.query_log().flush()


def _queues(option: Any) -> set[str]:
    if isinstance(option, str):
        return {name.strip() for name in option.split(",") if name.strip()}
    return set(option or ())


def _thread(name: str, run: Any, *args: Any) -> None:
    threading.Thread(target=run, args=args, name=name, daemon=True).start()


def _beat(name: str) -> None:
    """Touch a file for health checks; liveness must not depend on Redis or the database."""
    folder = load_settings().data_dir / "run"
    file = folder / f"{name}.alive"
    for old in folder.glob("*.alive"):  # of workers that were killed
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > FORGET_S:
                old.unlink()
    while not runtime.stopping.is_set():
        try:
            write_atomic(file, str(time.time()).encode())
        except OSError as error:
            log.warning("The heartbeat file cannot be written: %s", error)
        runtime.stopping.wait(HEARTBEAT_S)
    with contextlib.suppress(OSError):
        file.unlink()


def _warm_up() -> None:
    """Load the model before the first query asks for it."""
    try:
        start = time.monotonic()
        runtime.query_prepare()
        runtime.fingerprint()
        runtime.batcher()
        memory.settle(runtime.room, flow.QUERY)
        log.info("The model is loaded (%.1f s).", time.monotonic() - start)
    except ImgrecError as error:
        log.error("%s", error)  # each query will say it, too


def _reconcile() -> None:
    pause_s = load_settings().reconcile_s
    while not runtime.stopping.wait(pause_s):
        try:
            flow.reconcile()
        except ImgrecError as error:
            log.warning("The ledger waits: %s", error)
        except Exception:
            # This thread is the one that finds lost work: it must outlive its own bugs.
            log.exception("The reconciler failed; it goes on.")
