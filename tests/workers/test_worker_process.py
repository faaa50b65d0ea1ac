"""How Celery is set up: nothing pickled, nothing forked, every task routed, every worker named."""

from __future__ import annotations

import io
import logging
import os
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from celery import Celery, Task
from celery.backends.base import Backend
from celery.concurrency.thread import TaskPool
from celery.utils.imports import symbol_by_name
from inline_worker import InlineWorker
from live_stack import ROOT, until

import celeryconfig
from pipeline import errors
from pipeline.errors import BadImage, ImgrecError, IndexMissing
from pipeline.rebuild.merge import Merged
from pipeline.settings import Settings
from pipeline.store.heartbeat import FORGET_S, Heartbeat, HeartbeatStatus, read_heartbeats
from workers import app, consumer_watchdog, lifecycle, product_images, query, routes, tasks
from workers.consumer_watchdog import ConsumerWatchdog
from workers.resources import Resources, set_process_resources
from workers.watchdog import Watchdog

HOST = socket.gethostname()

ERRORS = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, ImgrecError)
]


def test_pickle_is_accepted_nowhere() -> None:
    for setting in ("accept_content", "result_accept_content"):
        assert "pickle" not in getattr(celeryconfig, setting)
    assert celeryconfig.task_serializer == celeryconfig.result_serializer == "json"


def test_every_task_has_a_queue_and_every_queue_a_task() -> None:
    for module in celeryconfig.imports:
        __import__(module)
    ours = {name for name in app.tasks if name.startswith("imgrec.")}
    assert ours == set(celeryconfig.task_routes)
    assert {route["queue"] for route in celeryconfig.task_routes.values()} == set(routes.QUEUES)


def test_the_threads_of_openmp_are_known_before_numpy_loads() -> None:
    """A pool that has its size cannot be made smaller: a bare `celery worker` used all cores."""
    script = "import celeryconfig, os, sys; print(os.environ['OMP_NUM_THREADS'], *sys.modules)"
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**environment, "CPU_THREADS": "3"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    threads, *modules = done.stdout.split()
    assert threads == "3"
    assert not {"numpy", "torch", "faiss"} & set(modules)


def test_no_model_meets_a_fork() -> None:
    """torch, onnxruntime and CUDA break in a forked child (celery#3402)."""
    assert issubclass(symbol_by_name(celeryconfig.worker_pool), TaskPool)
    assert celeryconfig.worker_pool_start_method == "spawn"


def test_a_message_restored_while_its_task_runs_is_impossible() -> None:
    """Acknowledged at their start, tasks may be longer than the visibility timeout."""
    assert celeryconfig.task_acks_late is False
    assert celeryconfig.worker_prefetch_multiplier == 1


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_an_error_keeps_kind_sentence_and_exit_code_on_its_way_from_a_worker(
    kind: type[ImgrecError],
) -> None:
    error = BadImage("cut off", "read") if kind is BadImage else kind("a sentence")
    backend = Backend(app=Celery(set_as_current=False), serializer="json")
    crossed = backend.exception_to_python(
        backend.decode(backend.encode(backend.prepare_exception(error)))
    )
    for copy in (crossed, pickle.loads(pickle.dumps(error))):
        assert type(copy) is kind
        assert str(copy) == str(error)
        assert copy.exit_code == error.exit_code
        assert vars(copy) == vars(error)
    assert str(IndexMissing()).startswith("FAISS index not found.")


@pytest.fixture
def process(inline_worker: InlineWorker) -> Iterator[InlineWorker]:
    """The inline worker's resources are this process's."""
    set_process_resources(inline_worker.resources)
    yield inline_worker
    set_process_resources(None)


def configure_worker(
    queues: object, hostname: str = "celery@host"
) -> tuple[SimpleNamespace, SimpleNamespace]:
    conf = SimpleNamespace(task_queues=None)
    instance = SimpleNamespace(hostname=hostname)
    lifecycle.configure_worker(instance=instance, conf=conf, options={"queues": queues})
    return instance, conf


def test_workers_on_one_machine_get_names_of_their_own(process: InlineWorker) -> None:
    assert configure_worker("embed")[0].hostname == f"embed-{os.getpid()}@host"
    assert configure_worker(["query", "index"])[0].hostname == f"index-query-{os.getpid()}@host"
    assert configure_worker("embed", "mine@host")[0].hostname == "mine@host"


def test_a_worker_without_queues_serves_all(process: InlineWorker) -> None:
    instance, conf = configure_worker(None)
    assert {queue.name for queue in conf.task_queues} == set(routes.QUEUES)
    assert instance.hostname.startswith("embed-fetch-index-query-")


@pytest.mark.parametrize("queues", [None, "query", "embed,query"])
def test_only_queries_are_taken_without_a_note_and_nothing_is_taken_ahead(
    process: InlineWorker, queues: str | None
) -> None:
    """What is taken without a note must start at once, or a worker's end would lose it."""
    unnoted = {queue.name for queue in configure_worker(queues)[1].task_queues if queue.no_ack}
    assert unnoted == {routes.QUERY}
    assert celeryconfig.worker_disable_prefetch is True


@pytest.mark.parametrize(
    ("queues", "concurrency", "expected"),
    [({"query"}, 1, 16), ({"query"}, 3, 3), ({"query", "embed"}, 1, 1), ({"embed"}, 1, 1)],
)
def test_only_a_worker_of_queries_alone_gets_many_threads_and_never_against_c(
    process: InlineWorker, queues: set[str], concurrency: int, expected: int
) -> None:
    consumed = SimpleNamespace(amqp=SimpleNamespace(queues=SimpleNamespace(consume_from=queues)))
    sender = SimpleNamespace(app=consumed, concurrency=concurrency, options={})
    lifecycle.set_query_concurrency(sender=sender)
    assert sender.concurrency == expected


@pytest.fixture
def beating(
    inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], Path]]:
    """Start the heartbeat of a worker that needs nothing yet; return its file's name."""
    monkeypatch.setattr(lifecycle, "EVERY_S", 0.02)
    threads: list[threading.Thread] = []

    def start() -> Path:
        arguments = (inline_worker.resources, f"me@{HOST}")
        threads.append(threading.Thread(target=lifecycle._beat, args=arguments))
        threads[0].start()
        return inline_worker.toy.settings.data_dir / "run" / f"me@{HOST}.alive"

    yield start
    stop(inline_worker)
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)


def stop(inline_worker: InlineWorker) -> None:
    inline_worker.resources.stopping.set()
    inline_worker.resources.consumer.changed.set()


def me(inline_worker: InlineWorker) -> HeartbeatStatus:
    folder = inline_worker.toy.settings.data_dir / "run"
    (sign,) = until(lambda: read_heartbeats(folder, HOST), "a sign", 20)
    assert isinstance(sign, HeartbeatStatus)
    return sign


def test_a_heartbeat_is_there_while_the_worker_lives_and_gone_when_it_ends(
    inline_worker: InlineWorker, beating: Callable[[], Path]
) -> None:
    folder = inline_worker.toy.settings.data_dir / "run"
    folder.mkdir(parents=True)
    for name, age_s in (("killed@host.alive", 2 * FORGET_S), ("other@host.alive", 0)):
        (folder / name).touch()
        then = (folder / name).stat().st_mtime - age_s
        os.utime(folder / name, (then, then))
    file = beating()
    until(file.exists, "the first heartbeat", 20)
    first = file.stat().st_mtime_ns
    until(lambda: file.stat().st_mtime_ns > first, "the next", 20)
    assert me(inline_worker).problem == ""
    stop(inline_worker)
    until(lambda: [f.name for f in folder.iterdir()] == ["other@host.alive"], "the end", 20)


def test_a_heartbeat_stops_for_a_dead_thread_and_says_why(
    inline_worker: InlineWorker, beating: Callable[[], Path], caplog: pytest.LogCaptureFixture
) -> None:
    ends = threading.Event()
    needed = threading.Thread(target=ends.wait, name="reconciler")
    needed.start()
    inline_worker.resources.watchdog.register_thread(needed)
    file = beating()
    until(file.exists, "the first heartbeat", 20)
    ends.set()
    needed.join()
    until(lambda: me(inline_worker).reason, "the reason", 20)
    assert me(inline_worker).problem == "the thread 'reconciler' is dead"
    last = file.stat().st_mtime_ns
    until(lambda: caplog.text.count("This worker is unhealthy"), "the log", 20)
    assert file.stat().st_mtime_ns == last
    assert caplog.text.count("This worker is unhealthy") == 1  # once, not at each beat


def test_a_heartbeat_goes_on_when_what_hung_moves_again(
    inline_worker: InlineWorker, beating: Callable[[], Path]
) -> None:
    shard = inline_worker.resources.watchdog.deadline("shard 3 of job J", limit_s=0.1)
    shard.begin()
    file = beating()
    until(
        lambda: me(inline_worker).reason.startswith("shard 3 of job J has not moved for"),
        "the reason",
        20,
    )
    shard.end()
    until(lambda: not me(inline_worker).reason, "it is well again", 20)
    last = file.stat().st_mtime_ns
    until(lambda: file.stat().st_mtime_ns > last, "the next beat", 20)


def test_a_redis_that_is_away_makes_nobody_ill_but_a_deaf_worker_is(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer = ConsumerWatchdog(settings, Watchdog())
    consumer.disconnect()
    monkeypatch.setattr(consumer_watchdog, "DEAF_S", 0.0)
    assert consumer.problem() == ""
    monkeypatch.setattr(consumer_watchdog, "_answers", lambda url: True)
    assert "Redis answers, but no connection has come about" in consumer.problem()
    consumer.connect()
    assert consumer.problem() == ""


def test_a_loop_that_stands_is_told_only_while_it_is_connected(settings: Settings) -> None:
    watchdog = Watchdog()
    consumer = ConsumerWatchdog(settings.model_copy(update={"hung_after_s": 0.01}), watchdog)
    assert watchdog.failures() == []
    consumer.connect()
    until(watchdog.failures, "the loop stands", 20)
    assert watchdog.failures()[0].startswith("the loop that takes messages has not moved for")
    consumer.disconnect()
    assert watchdog.failures() == []


@pytest.mark.parametrize(
    ("task", "args", "body"),
    [
        (tasks.query_image, (b"", 3), (query, "query_image")),
        (tasks.classify_image, (b"",), (query, "classify_image")),
        (tasks.thumbnails, ("v0001", []), (product_images, "thumbnails")),
        (tasks.pictures, ("v0001", []), (product_images, "thumbnails")),
    ],
)
def test_a_query_that_hangs_is_watched_until_it_ends_and_has_its_task_s_id(
    process: InlineWorker,
    monkeypatch: pytest.MonkeyPatch,
    task: Task,
    args: object,
    body: tuple[ModuleType, str],
) -> None:
    process.start_again(hung_after_s=-1.0)  # whatever is under way hangs
    set_process_resources(process.resources)
    failures: list[str] = []

    def note(resources: Resources, *args: object, query_id: str = "the-id") -> None:
        assert query_id == "the-id"
        failures.extend(resources.watchdog.failures())

    monkeypatch.setattr(*body, note)
    task.apply(args=args, task_id="the-id", throw=True)
    (failure,) = failures
    assert failure.startswith(f"{task.name} the-id has not moved for")
    assert process.resources.watchdog.failures() == []


def test_a_merge_is_not_watched(process: InlineWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    process.start_again(hung_after_s=-1.0)
    set_process_resources(process.resources)
    failures: list[list[str]] = []
    monkeypatch.setattr(
        "workers.index._publish",
        lambda resources, *_: failures.append(resources.watchdog.failures()) or Merged(None, []),
    )
    job_id = process.toy.plan()
    process.toy.embed(job_id)
    tasks.merge_shards.apply(args=(job_id,), throw=True)
    assert failures == [[]]


def test_a_heartbeat_that_cannot_be_written_does_not_end_the_worker(
    beating: Callable[[], Path], caplog: pytest.LogCaptureFixture
) -> None:
    file = beating()
    until(file.exists, "the first heartbeat", 20)
    file.unlink()
    file.mkdir()
    until(lambda: "heartbeat file cannot be written" in caplog.text, "the warning", 20)
    file.rmdir()
    until(file.is_file, "the next heartbeat", 20)


def test_a_heartbeat_needs_no_room_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heartbeat = Heartbeat(tmp_path, "me@host")
    heartbeat.beat("ready", "")

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("pipeline.store.heartbeat.write_atomic", full)
    os.utime(tmp_path / "me@host.alive", (1, 1))
    heartbeat.beat("ready", "")
    assert read_heartbeats(tmp_path, "host")[0].problem == ""


def test_the_reconciler_outlives_outages_and_its_own_bugs(
    inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []
    troubles = [errors.ServerUnavailable("the database is away"), ZeroDivisionError("a bug")]

    def reconcile(resources: Resources) -> None:
        calls.append(len(calls))
        if troubles:
            raise troubles.pop(0)

    inline_worker.start_again(reconcile_s=0.001)
    monkeypatch.setattr(lifecycle, "reconcile", reconcile)
    thread = threading.Thread(target=lifecycle._reconcile, args=(inline_worker.resources,))
    thread.start()
    try:
        until(lambda: len(calls) >= 4, "it goes on", 20)
    finally:
        inline_worker.resources.stopping.set()
        thread.join(20)
    assert "The job table is unavailable, trying again: the database is away" in caplog.text
    assert "a bug" in caplog.text


def test_a_model_that_is_missing_at_the_start_is_a_log_line_and_the_worker_lives(
    inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def cannot(*_: object, **__: object) -> None:
        raise errors.SetupError("rembg is not installed")

    monkeypatch.setattr("workers.resources.load_remover", cannot)
    inline_worker.start_again(use_bg_removal=True)
    lifecycle._load_model(inline_worker.resources)
    assert "rembg is not installed" in caplog.text


def test_a_name_in_a_worker_s_log_does_not_steer_a_terminal() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger = logging.Logger("a worker's")
    logger.addHandler(handler)
    lifecycle.escape_log(logger=logger)
    name = "a\x1b[31m\x9b.jpg"
    try:
        raise ValueError(name)
    except ValueError:
        logger.exception("No thumbnail of %s", name)
    text = stream.getvalue()
    assert not set(text) & {"\x1b", "\x9b"}
    lines = text.splitlines()
    assert lines[0] == "No thumbnail of a\\x1b[31m\\x9b.jpg"
    assert (lines[1], lines[-1]) == (
        "Traceback (most recent call last):",
        "ValueError: a\\x1b[31m\\x9b.jpg",
    )


def test_a_query_worker_loads_what_is_published_before_a_query_asks(
    inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "INDEX_S", 0.01)
    resources = inline_worker.resources
    thread = threading.Thread(target=lifecycle._follow_index, args=(resources,))
    thread.start()  # before anything is published
    try:
        for name in ("v0001", "v0002"):
            inline_worker.toy.draw(f"{name}.png", seed=int(name[1:]))
            inline_worker.rebuild()
            until(lambda name=name: loaded_of(resources) == name, f"{name} is loaded", 20)
    finally:
        resources.stopping.set()
        thread.join(20)
    assert not thread.is_alive()


def loaded_of(resources: Resources) -> str:
    """Return the version that answers, without a look at which one is published."""
    state = resources.live_index._state
    return state.index.version.name if state else ""
