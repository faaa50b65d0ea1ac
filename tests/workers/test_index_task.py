"""The task of queue `index`: published once, tidied up, and every failure has its sentence."""

from __future__ import annotations

import errno
import getpass
import os

import pytest
from inline_worker import InlineWorker
from live_stack import until

from pipeline.access import DENIED, DISK_FULL
from pipeline.errors import ServerUnavailable
from pipeline.index import faiss_index
from workers import index
from workers.embed import embed
from workers.index import merge_shards


def embedded(inline_worker: InlineWorker) -> str:
    """Bring a rebuild to where only its merge is left."""
    job_id = inline_worker.toy.plan()
    inline_worker.advance(job_id)
    while inline_worker.messages[0][0] == "imgrec.embed_shard":
        embed(inline_worker.resources, *inline_worker.messages.popleft()[1])
    return job_id


def test_a_merge_that_is_sent_twice_publishes_once(inline_worker: InlineWorker) -> None:
    job_id = embedded(inline_worker)
    merge_shards(inline_worker.resources, job_id)
    merge_shards(inline_worker.resources, job_id)
    assert [version.name for version in inline_worker.toy.versions.versions()] == ["v0001"]
    assert inline_worker.job(job_id).index_version == "v0001"


def test_a_worker_that_refused_a_job_is_healthy_again_with_the_next_merge(
    inline_worker: InlineWorker,
) -> None:
    job_id = embedded(inline_worker)
    inline_worker.resources.watchdog.refusal = "It cannot do another job."
    merge_shards(inline_worker.resources, job_id)
    assert inline_worker.job(job_id).state == "published"
    assert inline_worker.resources.watchdog.failures() == []


def test_a_merge_that_comes_too_early_does_nothing(inline_worker: InlineWorker) -> None:
    job_id = inline_worker.toy.plan()
    merge_shards(inline_worker.resources, job_id)
    assert inline_worker.job(job_id).state == "planned"
    assert inline_worker.toy.versions.current_name() is None


def test_after_a_merge_shard_files_and_plans_are_gone_and_counts_stay(
    inline_worker: InlineWorker,
) -> None:
    other = inline_worker.toy.plan()
    job_id = inline_worker.rebuild()
    folder = inline_worker.toy.settings.jobs_dir
    assert not (folder / job_id).exists()
    assert all(not shard.images for shard in inline_worker.toy.jobs.shards.done(job_id))
    assert inline_worker.progress(job_id).embedded == 20
    claim = inline_worker.toy.jobs.shards.claim(other, 0, "me", 1)
    assert claim is not None
    assert claim.images  # the plan of an open job stays


def test_only_so_many_versions_are_kept(inline_worker: InlineWorker) -> None:
    inline_worker.start_again(keep_versions=2)
    for number in range(4):
        inline_worker.toy.draw("changing.png", seed=100 + number)
        inline_worker.rebuild()
    assert [version.name for version in inline_worker.toy.versions.versions()] == ["v0003", "v0004"]


def test_a_version_that_an_open_job_builds_on_is_kept(inline_worker: InlineWorker) -> None:
    inline_worker.start_again(keep_versions=2)
    inline_worker.rebuild()
    waiting = inline_worker.toy.plan()  # its rows are those of v0001
    for number in range(3):
        inline_worker.toy.draw("changing.png", seed=100 + number)
        inline_worker.rebuild()
    names = [version.name for version in inline_worker.toy.versions.versions()]
    assert names == ["v0001", "v0003", "v0004"]
    inline_worker.toy.jobs.cancel(waiting)
    inline_worker.toy.draw("changing.png", seed=110)
    inline_worker.rebuild()
    assert "v0001" not in [version.name for version in inline_worker.toy.versions.versions()]


def test_a_shard_file_that_is_gone_is_made_again_and_then_published(
    inline_worker: InlineWorker,
) -> None:
    job_id = embedded(inline_worker)
    for file in (inline_worker.toy.settings.jobs_dir / job_id).glob("shard-000000-*"):
        file.unlink()
    inline_worker.work()
    assert inline_worker.job(job_id).state == "published"
    assert len(inline_worker.toy.versions.current().paths) == 20
    assert inline_worker.progress(job_id).embedded + inline_worker.progress(job_id).reused == 20


def test_a_job_without_one_good_image_fails_and_names_the_command_that_tells_why(
    inline_worker: InlineWorker,
) -> None:
    for file in inline_worker.toy.root.rglob("*.png"):
        file.write_bytes(b"bad")
    job_id = inline_worker.rebuild()
    job = inline_worker.job(job_id)
    assert job.state == "failed"
    assert f"'imgrec failures {job_id}'" in str(job.error)
    assert len(inline_worker.toy.jobs.failures(job_id)) == 20


def test_a_full_disk_publishes_nothing_and_the_merge_is_tried_again(
    inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = embedded(inline_worker)
    inline_worker.start_again(lease_s=0.05)

    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.index.faiss_index.save", disk_full)
        merge_shards(inline_worker.resources, job_id)
    assert inline_worker.job(job_id).state == "merging"
    assert inline_worker.toy.versions.current_name() is None
    assert not list(inline_worker.toy.settings.index_dir.glob(".build-*"))
    until(lambda: inline_worker.toy.jobs.ready_to_merge(job_id), "the lease ends by itself", 20)
    merge_shards(inline_worker.resources, job_id)
    assert inline_worker.job(job_id).state == "published"


def test_a_merge_that_waits_for_a_disk_is_not_built_again_at_once(
    inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id, builds = embedded(inline_worker), []

    def disk_full(*_: object) -> None:
        builds.append(1)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(index, "PAUSE", 1e9)
    monkeypatch.setattr("pipeline.index.faiss_index.save", disk_full)
    for _ in range(3):
        merge_shards(inline_worker.resources, job_id)
        assert not inline_worker.toy.jobs.ready_to_merge(job_id)
    assert len(builds) == 1
    assert "Free space" in str(inline_worker.job(job_id).error)


def test_a_held_lock_leaves_the_job_to_the_next_look_and_says_so(
    inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = embedded(inline_worker)
    monkeypatch.setattr(index, "LOCK_WAIT_S", 0.01)
    with inline_worker.toy.versions.lock() as lock:
        merge_shards(inline_worker.resources, job_id)
    assert inline_worker.job(job_id).state == "merging"
    note = str(inline_worker.job(job_id).error)
    assert note.startswith(
        f"Another process, a merge or a rollback, holds the lock {lock.lock_file}"
    )
    assert note.endswith("The merge is retried automatically.")
    assert "space" not in note
    assert inline_worker.toy.jobs.ready_to_merge(job_id)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (
            errno.EACCES,
            "Permission denied. The user '{user}' (uid {uid}) may not write to the folder",
        ),
        (errno.EROFS, "Read-only file system. The user '{user}' (uid {uid}) may not write"),
        (errno.EIO, "Input/output error"),
        (errno.ENOSPC, "No space left on device. Free space there"),
    ],
)
def test_a_disk_that_cannot_be_written_is_a_note_with_the_remedy_and_the_merge_is_tried_again(
    inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    job_id = embedded(inline_worker)
    inline_worker.start_again(lease_s=0.05)
    folder = inline_worker.toy.settings.index_dir

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number), str(folder / "index.bin"))

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.index.faiss_index.save", refuse)
        merge_shards(inline_worker.resources, job_id)
    job = inline_worker.job(job_id)
    assert job.state == "merging"
    assert words.format(uid=os.geteuid(), user=getpass.getuser()) in str(job.error)
    assert (f"may not write to the folder {folder}" in str(job.error)) == (number in DENIED)
    assert ("Free space" in str(job.error)) == (number in DISK_FULL)
    until(lambda: inline_worker.toy.jobs.ready_to_merge(job_id), "the lease ends by itself", 20)
    merge_shards(inline_worker.resources, job_id)
    assert (inline_worker.job(job_id).state, inline_worker.job(job_id).error) == ("published", None)


def test_a_merge_whose_disk_fails_again_and_again_ends_the_job_with_the_reason(
    inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    job_id = embedded(inline_worker)
    monkeypatch.setattr("pipeline.index.faiss_index.save", fail)
    for _ in range(inline_worker.resources.settings.shard_max_attempts):
        merge_shards(inline_worker.resources, job_id)
        assert inline_worker.job(job_id).open
        assert "failed and is tried again" in str(inline_worker.job(job_id).error)
    merge_shards(inline_worker.resources, job_id)
    assert inline_worker.job(job_id).state == "failed"
    assert "the merge failed in 4 attempts" in str(inline_worker.job(job_id).error)


def test_a_worker_asked_to_stop_gives_its_merge_back_at_once(inline_worker: InlineWorker) -> None:
    job_id = embedded(inline_worker)
    inline_worker.resources.stopping.set()
    merge_shards(inline_worker.resources, job_id)
    inline_worker.resources.stopping.clear()
    assert inline_worker.job(job_id).state == "merging"
    assert inline_worker.toy.jobs.ready_to_merge(job_id)  # although the lease would last for 15 s
    merge_shards(inline_worker.resources, job_id)
    assert inline_worker.job(job_id).state == "published"


def test_an_error_that_nobody_foresaw_ends_the_job_with_its_name(
    inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def surprise(*_: object) -> None:
        raise ZeroDivisionError("surprise")

    job_id = embedded(inline_worker)
    monkeypatch.setattr("pipeline.index.faiss_index.build", surprise)
    merge_shards(inline_worker.resources, job_id)
    assert inline_worker.job(job_id).state == "failed"
    assert "ZeroDivisionError: surprise" in str(inline_worker.job(job_id).error)


def test_a_job_cancelled_before_the_version_is_named_publishes_nothing(
    inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = embedded(inline_worker)
    inline_worker.start_again(lease_s=0.06)
    save = faiss_index.save

    def cancel_meanwhile(*args: object) -> None:
        save(*args)
        inline_worker.toy.jobs.cancel(job_id)
        inline_worker.resources.stopping.wait(0.3)  # several beats: one of them tells the lease

    monkeypatch.setattr("pipeline.index.faiss_index.save", cancel_meanwhile)
    merge_shards(inline_worker.resources, job_id)
    assert inline_worker.job(job_id).state == "cancelled"
    assert inline_worker.toy.versions.versions() == []


def test_a_job_cancelled_after_the_pointer_was_swapped_is_published(
    inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job_id = embedded(inline_worker)
    monkeypatch.setattr(
        index,
        "failpoint",
        lambda name: name == "index.before_record" and inline_worker.toy.jobs.cancel(job_id),
    )
    with caplog.at_level("INFO", index.log.name):
        merge_shards(inline_worker.resources, job_id)
    job = inline_worker.job(job_id)
    assert inline_worker.toy.versions.current_name() == "v0001"
    assert (job.state, job.index_version) == ("published", "v0001")
    assert "was ended too late: it had already published v0001" in caplog.text
    assert f"{job_id} published" not in caplog.text


def test_an_older_job_fails_after_a_later_one_has_published(
    inline_worker: InlineWorker, caplog: pytest.LogCaptureFixture
) -> None:
    older = embedded(inline_worker)
    inline_worker.messages.clear()
    inline_worker.toy.draw("later.png", seed=77)
    later = inline_worker.rebuild()
    merge_shards(inline_worker.resources, older)
    assert inline_worker.job(older).state == "failed"
    assert later in str(inline_worker.job(older).error)
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert later in record.getMessage()
    assert not record.exc_info  # the sentence is enough for whoever waits in a terminal


def test_a_database_that_is_away_leaves_the_merge_to_be_sent_again(
    inline_worker: InlineWorker, caplog: pytest.LogCaptureFixture
) -> None:
    class Away:
        def get(self, job_id: str) -> None:
            raise ServerUnavailable("The database is away.")

    inline_worker.resources.jobs = Away()
    merge_shards(inline_worker.resources, "some-job")
    assert "The merge of job some-job: The database is away." in caplog.text
