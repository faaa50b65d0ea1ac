"""Enqueue, watch, look into, cancel: what people read, what programs read, and the exit codes."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from inline_worker import InlineWorker
from live_stack import draw_product

from cli import watch
from pipeline.embed.stage_times import STAGES
from pipeline.errors import ServerUnavailable, TimedOut
from workers import reconcile
from workers.resources import Resources

Run = Callable[..., Any]


def test_a_folder_whose_name_is_not_utf8_is_refused(
    inline_worker: InlineWorker, imgrec: Run, tmp_path: Path
) -> None:
    folder = tmp_path / os.fsdecode(b"bad\xff")
    folder.mkdir()
    draw_product(folder / "a.jpg", 1)
    (tmp_path / "link").symlink_to(folder)
    for name in (folder, tmp_path / "link"):
        for local in ((), ("--local",)):
            done = imgrec("enqueue-rebuild", name, *local)
            assert done.code == 2
            assert "bad\\udcff' is not UTF-8: rename it." in done.err


CONTRACT = {
    *("job_id", "state", "images", "embedded", "reused", "skipped", "warnings"),
    *("left_out", "index_version", "seconds", "error", "stage", "fetched", "unchanged"),
}


TIMES = {"stage_seconds", "bottleneck"}


def test_a_rebuild_that_is_waited_for_ends_with_one_object(
    inline_worker: InlineWorker, imgrec: Run
) -> None:
    inline_worker.inline = True
    (inline_worker.toy.root / "bad.png").touch()
    done = imgrec("enqueue-rebuild", inline_worker.toy.root, "--wait", "--json")
    assert done.code == 0
    assert set(done.object) == CONTRACT | TIMES
    counts = {key: done.object[key] for key in ("images", "embedded", "reused", "skipped")}
    assert counts == {"images": 21, "embedded": 20, "reused": 0, "skipped": 1}
    assert (done.object["state"], done.object["index_version"]) == ("published", "v0001")
    assert done.object["error"] is None
    assert done.err == ""
    again = imgrec("enqueue-rebuild", inline_worker.toy.root, "--wait", "--json").object
    assert (again["embedded"], again["reused"]) == (0, 20)


def test_people_get_a_table_and_the_next_command(inline_worker: InlineWorker, imgrec: Run) -> None:
    inline_worker.inline = True
    (inline_worker.toy.root / "bad.png").touch()
    done = imgrec("enqueue-rebuild", inline_worker.toy.root, "--wait")
    assert done.code == 0
    for words in ("published", "v0001", "21", "20"):
        assert words in done.out
    assert "imgrec failures" in done.err


def test_status_tells_which_stage_takes_the_workers_time_and_what_would_help(
    inline_worker: InlineWorker, imgrec: Run
) -> None:
    inline_worker.inline = True
    job_id = imgrec("enqueue-rebuild", inline_worker.toy.root, "--wait", "--json").object["job_id"]
    assert "Bottleneck" not in imgrec("status", job_id).err  # it took less than a minute
    seconds = {"read": 10.0, "decode": 20.0, "cut_out": 142.0, "embed": 26.0, "write": 2.0}
    with inline_worker.toy.jobs._database.transaction() as tx:
        tx.rows("DELETE FROM shard_timings WHERE job_id = ? AND n <> 0", (job_id,))
        for stage, value in seconds.items():
            tx.rows(f"UPDATE shard_timings SET {stage}_s = ? WHERE job_id = ?", (value, job_id))
    answer = imgrec("status", job_id, "--json").object
    assert answer["stage_seconds"] == seconds
    assert answer["bottleneck"] == {"stage": "cut_out", "share": 0.71}
    assert (
        "Bottleneck: cut out, 71% of worker time. What would help: more embed workers, or a "
        "smaller REMBG_MODEL."
    ) in imgrec("status", job_id).err


def test_a_job_without_finished_shards_has_no_bottleneck(
    inline_worker: InlineWorker, imgrec: Run
) -> None:
    job_id = imgrec("enqueue-rebuild", inline_worker.toy.root).out.strip()
    answer = imgrec("status", job_id, "--json").object
    assert answer["bottleneck"] is None
    assert set(answer["stage_seconds"]) == set(watch.ADVICE) == set(STAGES)


def test_without_wait_only_the_id_is_on_stdout_and_status_takes_it(
    inline_worker: InlineWorker, imgrec: Run
) -> None:
    done = imgrec("enqueue-rebuild", inline_worker.toy.root)
    job_id = done.out.strip()
    assert f"imgrec status {job_id}" in done.err
    assert imgrec("status", job_id, "--json").object["state"] == "planned"
    assert imgrec("status", job_id).code == 0
    inline_worker.work()
    assert imgrec("status", job_id, "--json").object["state"] == "published"
    assert imgrec("status", job_id, "--wait", "--json").code == 0
    assert imgrec("enqueue-rebuild", inline_worker.toy.root, "--json").object["job_id"] != job_id


def test_a_rebuild_that_fails_is_exit_code_1_with_its_reason(
    inline_worker: InlineWorker, imgrec: Run
) -> None:
    for file in inline_worker.toy.root.rglob("*.png"):
        file.write_bytes(b"bad")
    inline_worker.inline = True
    done = imgrec("enqueue-rebuild", inline_worker.toy.root, "--wait")
    assert done.code == 1
    assert "No image of the folder could be used" in done.err
    done = imgrec("enqueue-rebuild", inline_worker.toy.root, "--wait", "--json")
    assert done.code == 1
    assert done.object["state"] == "failed"
    assert "No image of the folder" in done.object["error"]
    assert done.object["skipped"] == 20


def test_a_cancelled_rebuild_is_exit_code_1_for_whom_waits(
    inline_worker: InlineWorker, imgrec: Run
) -> None:
    job_id = imgrec("enqueue-rebuild", inline_worker.toy.root).out.strip()
    done = imgrec("cancel", job_id)
    assert done.code == 0
    assert f"Cancelled job {job_id}." in done.err
    done = imgrec("status", job_id, "--wait")
    assert done.code == 1
    assert "was cancelled" in done.err
    done = imgrec("cancel", job_id)
    assert done.code == 0
    assert "already ended: cancelled" in done.err
    assert imgrec("cancel", job_id, "--json").object["state"] == "cancelled"


def test_a_wait_that_ends_too_early_is_exit_code_1_and_the_job_goes_on(
    inline_worker: InlineWorker, imgrec: Run
) -> None:
    done = imgrec("enqueue-rebuild", inline_worker.toy.root, "--wait", "--timeout", "0")
    assert done.code == 1
    assert "The job continues." in done.err
    assert len(inline_worker.toy.jobs.open_jobs()) == 1
    inline_worker.work()
    assert inline_worker.toy.versions.current_name() == "v0001"


def test_ctrl_c_ends_the_wait_and_not_the_job(
    inline_worker: InlineWorker, imgrec: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watch.time, "sleep", interrupt)
    done = imgrec("enqueue-rebuild", inline_worker.toy.root, "--wait")
    monkeypatch.undo()
    assert done.code == 130
    (job,) = inline_worker.toy.jobs.open_jobs()
    assert f"imgrec cancel {job.id}" in done.err


def test_options_reach_the_job(inline_worker: InlineWorker, imgrec: Run) -> None:
    job_id = imgrec("enqueue-rebuild", inline_worker.toy.root, "--full").out.strip()
    assert inline_worker.job(job_id).full
    job_id = imgrec("enqueue-rebuild", inline_worker.toy.root, "--save-preprocessed").out.strip()
    assert inline_worker.job(job_id).save_preprocessed


def test_another_folder_is_said_to_replace_the_index(
    inline_worker: InlineWorker, imgrec: Run
) -> None:
    inline_worker.rebuild()
    assert "replaces" not in imgrec("enqueue-rebuild", inline_worker.toy.root).err
    part = inline_worker.toy.root / "kind0"
    done = imgrec("enqueue-rebuild", part)
    root = inline_worker.toy.root
    replaced = f"Index v0001 was built from {root}; this rebuild replaces it with one of {part}."
    assert replaced in done.err


def test_a_broken_index_does_not_keep_anybody_from_making_a_new_one(
    inline_worker: InlineWorker, imgrec: Run
) -> None:
    inline_worker.rebuild()
    (inline_worker.toy.settings.index_dir / "v0001" / "index.bin").write_bytes(b"short")
    inline_worker.inline = True
    done = imgrec("enqueue-rebuild", inline_worker.toy.root, "--wait", "--json")
    assert done.code == 0
    assert (done.object["index_version"], done.object["reused"]) == ("v0002", 20)  # by content


def test_failures_tell_path_stage_and_reason(inline_worker: InlineWorker, imgrec: Run) -> None:
    (inline_worker.toy.root / "[red]bad.png").touch()  # no markup: a file's name
    job_id = inline_worker.rebuild()
    done = imgrec("failures", job_id)
    for words in ("[red]bad.png", "read", "0 bytes", "Left out: 1"):
        assert words in done.out
    found = imgrec("failures", job_id, "--json").object
    reason = "the file is empty (0 bytes)"
    failure = {"path": "[red]bad.png", "stage": "read", "reason": reason}
    assert found == {"job_id": job_id, "failures": [failure], "warnings": []}
    (inline_worker.toy.root / "[red]bad.png").unlink()
    job_id = inline_worker.rebuild()
    assert f"Job {job_id} left out no images" in imgrec("failures", job_id).err


@pytest.mark.parametrize("command", ["status", "failures", "cancel"])
@pytest.mark.parametrize("option", [(), ("--json",)])
def test_an_unknown_job_is_exit_code_2(imgrec: Run, command: str, option: tuple[str]) -> None:
    done = imgrec(command, "nothing", *option)
    assert (done.code, done.out) == (2, "")
    assert "There is no job 'nothing'" in done.err


def test_rebuilds_are_listed_newest_first(inline_worker: InlineWorker, imgrec: Run) -> None:
    done = imgrec("jobs")
    assert (done.code, done.out) == (0, "")
    assert "No rebuilds yet" in done.err
    ids = [inline_worker.rebuild(), inline_worker.rebuild(), inline_worker.rebuild()]
    found = imgrec("jobs", "--json", "--limit", "2").object["jobs"]
    assert [job["job_id"] for job in found] == ids[:0:-1]
    assert all(set(job) == CONTRACT for job in found)
    out = imgrec("jobs").out
    assert out.index(ids[2]) < out.index(ids[0])
    assert str(inline_worker.toy.root) in out


def quickly(inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Help and look as often as possible."""
    inline_worker.start_again(reconcile_s=0.001)
    monkeypatch.setattr(watch, "NO_WORKER_AFTER_S", 0.0)
    monkeypatch.setattr(watch, "POLL_S", 0.002)


def test_who_waits_is_told_once_which_worker_is_missing(
    inline_worker: InlineWorker, imgrec: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    quickly(inline_worker, monkeypatch)
    looks: list[None] = []

    def none_listen() -> Counter[str]:
        looks.append(None)
        if len(looks) > 20:
            raise TimedOut("Looked often enough.")
        return Counter()

    monkeypatch.setattr(inline_worker, "workers", none_listen)
    done = imgrec("enqueue-rebuild", inline_worker.toy.root, "--wait")
    assert "Looked often enough." in done.err
    assert done.err.count("No worker listens on queue 'embed'") == 1
    assert "celery worker -Q embed" in done.err
    (job,) = inline_worker.toy.jobs.open_jobs()
    inline_worker.toy.jobs.shards.next_window(job.id, 0)
    inline_worker.messages.clear()
    for n in (0, 1):
        claim = inline_worker.toy.jobs.shards.claim(job.id, n, "me", 1000)
        assert claim is not None
        inline_worker.toy.jobs.shards.finish(
            claim, file="f", sha256="0", embedded=0, reused=0, failures=[]
        )
    looks.clear()
    done = imgrec("status", job.id, "--wait")
    assert "Looked often enough." in done.err
    assert done.err.count("No worker listens on queue 'index'") == 1


def test_who_waits_outlives_a_redis_that_is_away_and_is_told(
    inline_worker: InlineWorker, imgrec: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    quickly(inline_worker, monkeypatch)
    own, calls = reconcile.reconcile, []

    def back_after_three(resources: Resources) -> None:
        calls.append(1)
        if len(calls) <= 3:
            raise ServerUnavailable("Redis does not answer.")
        own(resources)
        inline_worker.work()

    monkeypatch.setattr(reconcile, "reconcile", back_after_three)
    done = imgrec("enqueue-rebuild", inline_worker.toy.root, "--wait", "--timeout", "60")
    assert done.code == 0
    assert done.err.count("Redis does not answer. Waiting for it.") == 1


def test_who_waits_does_the_work_of_a_missing_reconciler(
    inline_worker: InlineWorker, imgrec: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message is lost, no index worker runs: the one who waits sends it again."""
    quickly(inline_worker, monkeypatch)
    monkeypatch.setattr(reconcile, "LOST_AFTER_S", -1.0)
    job_id = imgrec("enqueue-rebuild", inline_worker.toy.root).out.strip()
    inline_worker.messages.clear()
    sleep = time.sleep

    def work_meanwhile(seconds: float) -> None:
        inline_worker.work()
        sleep(seconds)

    monkeypatch.setattr(watch.time, "sleep", work_meanwhile)
    assert imgrec("status", job_id, "--wait", "--timeout", "60").code == 0


def test_progress_is_a_line_now_and_then_where_no_bar_can_be_drawn(
    inline_worker: InlineWorker, imgrec: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cli.progress.PLAIN_EVERY_S", 0.0)
    done = imgrec("enqueue-rebuild", inline_worker.toy.root, "--wait", "--timeout", "0.3")
    assert "planned: 0 of 20 images, waiting for a worker" in done.err
    assert "\x1b" not in done.err
    (job,) = inline_worker.toy.jobs.open_jobs()
    claim = inline_worker.toy.jobs.shards.claim(job.id, 0, "me", 1000)
    assert claim is not None
    inline_worker.toy.jobs.renew_leases({claim.owner: 3}, (), 1000)
    done = imgrec("status", job.id, "--wait", "--timeout", "0.3")
    assert "running: 3 of 20 images, " in done.err


def test_vectors_of_an_earlier_decoding_are_told_until_all_are_embedded_again(
    imgrec: Run, inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = inline_worker.toy.root
    inline_worker.rebuild()
    assert "color profiles" not in imgrec("enqueue-rebuild", root).err
    monkeypatch.setattr("cli.rebuild.DECODING", 99)
    assert "once with --full" in imgrec("enqueue-rebuild", root).err
    assert "once with --full" not in imgrec("enqueue-rebuild", root, "--full").err
