"""Messages are hints: what got lost is sent again, what waits is not sent twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import current_app
from inline_worker import InlineWorker
from kombu.exceptions import OperationalError
from live_stack import free_port

from pipeline.errors import ServerUnavailable
from pipeline.store.job import Job
from workers import reconcile as reconcile_module
from workers.dispatch import CeleryDispatcher
from workers.prune import prune
from workers.reconcile import reconcile
from workers.routes import EMBED_SHARD


def sent(inline_worker: InlineWorker) -> list[tuple[str, tuple[Any, ...]]]:
    messages = list(inline_worker.messages)
    inline_worker.messages.clear()
    return messages


def test_only_a_window_of_shards_is_sent_and_the_merge_when_none_is_left(
    inline_worker: InlineWorker,
) -> None:
    inline_worker.start_again(max_shards_in_flight=1)
    job_id = inline_worker.toy.plan()
    inline_worker.advance(job_id)
    assert sent(inline_worker) == [("imgrec.embed_shard", (job_id, 0))]
    inline_worker.advance(job_id)
    assert sent(inline_worker) == []
    inline_worker.toy.embed(job_id)  # both shards, by hand
    claim = inline_worker.toy.jobs.shards.claim(job_id, 0, "me", 1000)
    assert claim is not None
    inline_worker.toy.jobs.shards.finish(
        claim, file="f", sha256="0", embedded=0, reused=0, failures=[]
    )
    inline_worker.advance(job_id)
    assert sent(inline_worker) == [("imgrec.merge_shards", (job_id,))]


def test_the_shard_of_a_dead_worker_is_sent_again(inline_worker: InlineWorker) -> None:
    job_id = inline_worker.toy.plan()
    inline_worker.advance(job_id)
    inline_worker.messages.clear()
    assert inline_worker.toy.jobs.shards.claim(job_id, 1, "dead", -1)
    reconcile(inline_worker.resources)
    assert sent(inline_worker) == [("imgrec.embed_shard", (job_id, 1))]


def test_a_lost_message_is_sent_again_beside_those_of_another_job(
    inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the other job publishes first, and the older one fails."""
    monkeypatch.setattr(reconcile_module, "LOST_BESIDE_OTHERS_AFTER_S", -1.0)
    older, later = inline_worker.toy.plan(), inline_worker.toy.plan()
    inline_worker.advance(older)
    inline_worker.advance(later)
    reconcile(inline_worker.resources)  # each shard has its message
    assert len(inline_worker.messages) == 4
    inline_worker.messages.popleft()
    reconcile(inline_worker.resources)
    assert set(sent(inline_worker)) == {
        ("imgrec.embed_shard", (job_id, n)) for job_id in (older, later) for n in (0, 1)
    }


def test_lost_messages_are_sent_again_only_when_the_queue_is_empty(
    inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile_module, "LOST_AFTER_S", -1.0)
    job_id = inline_worker.toy.plan()
    inline_worker.advance(job_id)
    reconcile(inline_worker.resources)  # both still lie there
    assert len(sent(inline_worker)) == 2
    reconcile(inline_worker.resources)
    assert sent(inline_worker) == [("imgrec.embed_shard", (job_id, n)) for n in (0, 1)]


def test_a_lost_merge_is_sent_again(inline_worker: InlineWorker) -> None:
    job_id = inline_worker.toy.plan()
    inline_worker.toy.embed(job_id)
    reconcile(inline_worker.resources)
    assert sent(inline_worker) == [("imgrec.merge_shards", (job_id,))]
    assert inline_worker.toy.jobs.claim_merge(job_id, "me", 1000)
    reconcile(inline_worker.resources)
    assert sent(inline_worker) == []  # an indexer holds it


def test_a_plan_that_is_still_written_is_left_alone_and_a_dead_one_ended(
    inline_worker: InlineWorker,
) -> None:
    def create(lease_s: float) -> str:
        return inline_worker.toy.jobs.create(
            inline_worker.toy.root,
            full=False,
            save_preprocessed=False,
            fingerprint=None,
            base_version=None,
            lease_s=lease_s,
        )

    writing, dead = create(1000), create(-1)
    reconcile(inline_worker.resources)
    assert sent(inline_worker) == []
    assert inline_worker.job(writing).state == "planned"
    assert inline_worker.job(dead).state == "failed"


def test_one_job_s_leftovers_do_not_take_another_s(inline_worker: InlineWorker) -> None:
    done, going = inline_worker.rebuild(), inline_worker.toy.plan()
    folder = inline_worker.toy.settings.jobs_dir
    # Of jobs that the database does not know: another one may be at work on the recent one.
    long_ago, recent = "20200101-120000-0123abcd", f"{going[:15]}-0123abcd"
    for name in (done, going, long_ago, recent):
        (folder / name).mkdir(parents=True, exist_ok=True)
    prune(inline_worker.resources)
    assert {child.name for child in folder.iterdir()} == {going, recent}


def test_the_files_of_a_job_that_is_created_meanwhile_stay(
    inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, folder = inline_worker.resources.jobs, inline_worker.toy.settings.jobs_dir
    folder.mkdir(parents=True)
    open_jobs = jobs.open_jobs

    def open_jobs_and_create_one() -> list[Job]:
        open_before = open_jobs()
        (folder / inline_worker.toy.plan()).mkdir()
        return open_before

    monkeypatch.setattr(jobs, "open_jobs", open_jobs_and_create_one)
    prune(inline_worker.resources)
    assert [child.name for child in folder.iterdir()] == [job.id for job in open_jobs()]


def refuse(*_: object, **__: object) -> None:
    raise OperationalError("connection refused")


@pytest.mark.parametrize(
    "ask",
    [CeleryDispatcher.require_broker, lambda dispatcher: dispatcher.send(EMBED_SHARD, "job", 1)],
)
def test_a_redis_that_is_away_is_one_sentence_without_the_password(
    monkeypatch: pytest.MonkeyPatch, ask: Callable[[CeleryDispatcher], None]
) -> None:
    dispatcher = CeleryDispatcher(f"redis://:secret@127.0.0.1:{free_port()}/0")
    monkeypatch.setattr(current_app, "send_task", refuse)
    with pytest.raises(ServerUnavailable, match="Redis does not answer at redis://:") as caught:
        ask(dispatcher)
    assert caught.value.exit_code == 4
    assert "REDIS_URL" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_messages_name_ids_and_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(
        current_app, "send_task", lambda task, **options: calls.append({"task": task, **options})
    )
    CeleryDispatcher("redis://").send(EMBED_SHARD, "job", 3)
    assert calls[0]["headers"].pop("sent_at") > 0
    assert calls == [
        {
            "task": "imgrec.embed_shard",
            "args": ("job", 3),
            "queue": "embed",
            "ignore_result": True,
            "headers": {"imgrec_form": 1},
        }
    ]
