"""How Celery is set up: nothing pickled, nothing forked, every task routed, every worker named."""

from __future__ import annotations

import logging
import os
import pickle
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from celery import Celery
from celery.backends.base import Backend
from desk import Desk
from stand import until

import celeryconfig
from pipeline import errors
from pipeline.errors import BadImage, ImgrecError, IndexMissing
from pipeline.settings import load_settings
from workers import app, flow, lifecycle, runtime

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
    assert {route["queue"] for route in celeryconfig.task_routes.values()} == set(flow.QUEUES)


def test_no_model_meets_a_fork() -> None:
    """torch, onnxruntime and CUDA break in a forked child (celery#3402)."""
    assert celeryconfig.worker_pool == "threads"
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


def set_up(
    queues: object, hostname: str = "celery@host"
) -> tuple[SimpleNamespace, SimpleNamespace]:
    conf = SimpleNamespace(task_queues=None, worker_disable_prefetch=True)
    steps = {"consumer": set()}
    instance = SimpleNamespace(hostname=hostname, app=SimpleNamespace(steps=steps))
    lifecycle.set_up(instance=instance, conf=conf, options={"queues": queues})
    return instance, conf


def test_workers_on_one_machine_get_names_of_their_own(desk: Desk) -> None:
    assert set_up("embed")[0].hostname == f"embed-{os.getpid()}@host"
    assert set_up(["query", "index"])[0].hostname == f"index-query-{os.getpid()}@host"
    assert set_up("embed", "mine@host")[0].hostname == "mine@host"


def test_a_worker_without_queues_serves_all_and_one_of_queries_looks_ahead(desk: Desk) -> None:
    instance, conf = set_up(None)
    assert {queue.name for queue in conf.task_queues} == set(flow.QUEUES)
    assert instance.hostname.startswith("embed-index-query-")
    assert conf.worker_disable_prefetch is True
    assert set_up(" query ")[1].worker_disable_prefetch is False
    assert set_up("embed")[1].worker_disable_prefetch is True


def test_a_worker_s_loop_turns_again_after_each_new_connection(desk: Desk) -> None:
    """Its timers die with a connection, and only a turn of the loop asks for the next shard."""
    instance, _ = set_up("embed")
    (step,) = instance.app.steps["consumer"]
    turns: list[float] = []
    hub = SimpleNamespace(call_repeatedly=lambda pause_s, call: turns.append(pause_s))
    turning = step(SimpleNamespace(hub=hub))
    for _ in range(2):
        turning.start(SimpleNamespace(hub=hub))
    assert turns == [lifecycle.TICK_S] * 2
    turning.start(SimpleNamespace(hub=None))


@pytest.mark.parametrize(
    ("queues", "concurrency", "expected"),
    [({"query"}, 1, 16), ({"query"}, 3, 3), ({"query", "embed"}, 1, 1), ({"embed"}, 1, 1)],
)
def test_only_a_worker_of_queries_alone_gets_many_threads_and_never_against_c(
    desk: Desk, queues: set[str], concurrency: int, expected: int
) -> None:
    consumed = SimpleNamespace(amqp=SimpleNamespace(queues=SimpleNamespace(consume_from=queues)))
    sender = SimpleNamespace(app=consumed, concurrency=concurrency)
    lifecycle.widen(sender=sender)
    assert sender.concurrency == expected


def test_a_heartbeat_is_there_while_the_worker_lives_and_gone_when_it_ends(desk: Desk) -> None:
    folder = load_settings().data_dir / "run"
    folder.mkdir(parents=True)
    for name, age_s in (("killed@host.alive", 2 * lifecycle.FORGET_S), ("other@host.alive", 0)):
        (folder / name).touch()
        then = (folder / name).stat().st_mtime - age_s
        os.utime(folder / name, (then, then))
    beating = threading.Thread(target=lifecycle._beat, args=("me@host",))
    beating.start()
    try:
        until((folder / "me@host.alive").exists, "the first heartbeat", 20)
    finally:
        runtime.stopping.set()
        beating.join(20)
        runtime.stopping.clear()
    assert not beating.is_alive()
    assert [file.name for file in folder.iterdir()] == ["other@host.alive"]


def test_a_heartbeat_that_cannot_be_written_does_not_end_the_worker(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    load_settings().data_dir.mkdir(parents=True, exist_ok=True)
    Path(load_settings().data_dir, "run").write_text("a file where the folder should be")
    beating = threading.Thread(target=lifecycle._beat, args=("me@host",))
    with caplog.at_level(logging.WARNING):
        beating.start()
        until(lambda: "heartbeat file cannot be written" in caplog.text, "the warning", 20)
        assert beating.is_alive()
        runtime.stopping.set()
        beating.join(20)
        runtime.stopping.clear()
    assert not beating.is_alive()


def test_the_reconciler_outlives_outages_and_its_own_bugs(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []
    troubles = [errors.ServerAway("the database is away"), ZeroDivisionError("a bug")]

    def reconcile() -> None:
        calls.append(len(calls))
        if troubles:
            raise troubles.pop(0)

    monkeypatch.setenv("RECONCILE_S", "0.001")
    load_settings.cache_clear()
    monkeypatch.setattr(flow, "reconcile", reconcile)
    thread = threading.Thread(target=lifecycle._reconcile)
    thread.start()
    try:
        until(lambda: len(calls) >= 4, "it goes on", 20)
    finally:
        runtime.stopping.set()
        thread.join(20)
        runtime.stopping.clear()
    assert "The ledger waits: the database is away" in caplog.text
    assert "a bug" in caplog.text


def test_a_model_that_is_missing_at_the_start_is_a_log_line_and_the_worker_lives(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def cannot() -> None:
        raise errors.SetupError("rembg is not installed")

    monkeypatch.setattr(runtime, "query_prepare", cannot)
    lifecycle._warm_up()
    assert "rembg is not installed" in caplog.text
