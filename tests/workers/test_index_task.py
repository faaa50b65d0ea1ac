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


def embedded(desk: InlineWorker) -> str:
    """Bring a rebuild to where only its merge is left."""
    job_id = desk.shop.plan()
    desk.advance(job_id)
    while desk.messages[0][0] == "imgrec.embed_shard":
        embed(desk.resources, *desk.messages.popleft()[1])
    return job_id


def test_a_merge_that_is_sent_twice_publishes_once(desk: InlineWorker) -> None:
    job_id = embedded(desk)
    merge_shards(desk.resources, job_id)
    merge_shards(desk.resources, job_id)
    assert [version.name for version in desk.shop.versions.versions()] == ["v0001"]
    assert desk.job(job_id).index_version == "v0001"


def test_a_merge_that_comes_too_early_does_nothing(desk: InlineWorker) -> None:
    job_id = desk.shop.plan()
    merge_shards(desk.resources, job_id)
    assert desk.job(job_id).state == "planned"
    assert desk.shop.versions.current_name() is None


def test_after_a_merge_shard_files_and_plans_are_gone_and_counts_stay(desk: InlineWorker) -> None:
    other = desk.shop.plan()
    job_id = desk.rebuild()
    folder = desk.shop.settings.jobs_dir
    assert not (folder / job_id).exists()
    assert all(not shard.images for shard in desk.shop.jobs.shards.done(job_id))
    assert desk.progress(job_id).embedded == 20
    claim = desk.shop.jobs.shards.claim(other, 0, "me", 1)
    assert claim is not None
    assert claim.images  # the plan of an open job stays


def test_only_so_many_versions_are_kept(desk: InlineWorker) -> None:
    desk.start_again(keep_versions=2)
    for number in range(4):
        desk.shop.draw("changing.png", seed=100 + number)
        desk.rebuild()
    assert [version.name for version in desk.shop.versions.versions()] == ["v0003", "v0004"]


def test_a_version_that_an_open_job_builds_on_is_kept(desk: InlineWorker) -> None:
    desk.start_again(keep_versions=2)
    desk.rebuild()
    waiting = desk.shop.plan()  # its rows are those of v0001
    for number in range(3):
        desk.shop.draw("changing.png", seed=100 + number)
        desk.rebuild()
    names = [version.name for version in desk.shop.versions.versions()]
    assert names == ["v0001", "v0003", "v0004"]
    desk.shop.jobs.cancel(waiting)
    desk.shop.draw("changing.png", seed=110)
    desk.rebuild()
    assert "v0001" not in [version.name for version in desk.shop.versions.versions()]


def test_a_shard_file_that_is_gone_is_made_again_and_then_published(desk: InlineWorker) -> None:
    job_id = embedded(desk)
    for file in (desk.shop.settings.jobs_dir / job_id).glob("shard-000000-*"):
        file.unlink()
    desk.work()
    assert desk.job(job_id).state == "published"
    assert len(desk.shop.versions.current().paths) == 20
    assert desk.progress(job_id).embedded + desk.progress(job_id).reused == 20


def test_a_job_without_one_good_image_fails_and_names_the_command_that_tells_why(
    desk: InlineWorker,
) -> None:
    for file in desk.shop.root.rglob("*.png"):
        file.write_bytes(b"bad")
    job_id = desk.rebuild()
    job = desk.job(job_id)
    assert job.state == "failed"
    assert f"'imgrec failures {job_id}'" in str(job.error)
    assert len(desk.shop.jobs.failures(job_id)) == 20


def test_a_full_disk_publishes_nothing_and_the_merge_is_tried_again(
    desk: InlineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = embedded(desk)
    desk.start_again(lease_s=0.05)

    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.index.faiss_index.save", disk_full)
        merge_shards(desk.resources, job_id)
    assert desk.job(job_id).state == "merging"
    assert desk.shop.versions.current_name() is None
    assert not list(desk.shop.settings.index_dir.glob(".build-*"))
    until(lambda: desk.shop.jobs.ready_to_merge(job_id), "the lease ends by itself", 20)
    merge_shards(desk.resources, job_id)
    assert desk.job(job_id).state == "published"


def test_a_held_lock_leaves_the_job_to_the_next_look_and_says_so(
    desk: InlineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = embedded(desk)
    monkeypatch.setattr(index, "LOCK_WAIT_S", 0.01)
    with desk.shop.versions.lock() as lock:
        merge_shards(desk.resources, job_id)
    assert desk.job(job_id).state == "merging"
    note = str(desk.job(job_id).error)
    assert note.startswith(
        f"Another process, a merge or a rollback, holds the lock {lock.lock_file}"
    )
    assert note.endswith("The merge is retried automatically.")
    assert "space" not in note


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
    desk: InlineWorker, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    job_id = embedded(desk)
    desk.start_again(lease_s=0.05)
    folder = desk.shop.settings.index_dir

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number), str(folder / "index.bin"))

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.index.faiss_index.save", refuse)
        merge_shards(desk.resources, job_id)
    job = desk.job(job_id)
    assert job.state == "merging"
    assert words.format(uid=os.geteuid(), user=getpass.getuser()) in str(job.error)
    assert (f"may not write to the folder {folder}" in str(job.error)) == (number in DENIED)
    assert ("Free space" in str(job.error)) == (number in DISK_FULL)
    until(lambda: desk.shop.jobs.ready_to_merge(job_id), "the lease ends by itself", 20)
    merge_shards(desk.resources, job_id)
    assert (desk.job(job_id).state, desk.job(job_id).error) == ("published", None)


def test_a_merge_whose_disk_fails_again_and_again_ends_the_job_with_the_reason(
    desk: InlineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    job_id = embedded(desk)
    monkeypatch.setattr("pipeline.index.faiss_index.save", fail)
    for _ in range(desk.resources.settings.shard_max_attempts):
        merge_shards(desk.resources, job_id)
        assert desk.job(job_id).open
        assert "failed and is tried again" in str(desk.job(job_id).error)
    merge_shards(desk.resources, job_id)
    assert desk.job(job_id).state == "failed"
    assert "the merge failed in 4 attempts" in str(desk.job(job_id).error)


def test_a_worker_asked_to_stop_gives_its_merge_back_at_once(desk: InlineWorker) -> None:
    job_id = embedded(desk)
    desk.resources.stopping.set()
    merge_shards(desk.resources, job_id)
    desk.resources.stopping.clear()
    assert desk.job(job_id).state == "merging"
    assert desk.shop.jobs.ready_to_merge(job_id)  # although the lease would last for 15 s
    merge_shards(desk.resources, job_id)
    assert desk.job(job_id).state == "published"


def test_an_error_that_nobody_foresaw_ends_the_job_with_its_name(
    desk: InlineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def surprise(*_: object) -> None:
        raise ZeroDivisionError("surprise")

    job_id = embedded(desk)
    monkeypatch.setattr("pipeline.index.faiss_index.build", surprise)
    merge_shards(desk.resources, job_id)
    assert desk.job(job_id).state == "failed"
    assert "ZeroDivisionError: surprise" in str(desk.job(job_id).error)


def test_a_job_cancelled_before_the_version_is_named_publishes_nothing(
    desk: InlineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = embedded(desk)
    desk.start_again(lease_s=0.06)
    save = faiss_index.save

    def cancel_meanwhile(*args: object) -> None:
        save(*args)
        desk.shop.jobs.cancel(job_id)
        desk.resources.stopping.wait(0.3)  # several beats: one of them tells the lease

    monkeypatch.setattr("pipeline.index.faiss_index.save", cancel_meanwhile)
    merge_shards(desk.resources, job_id)
    assert desk.job(job_id).state == "cancelled"
    assert desk.shop.versions.versions() == []


def test_a_job_cancelled_after_the_pointer_was_swapped_is_published(
    desk: InlineWorker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job_id = embedded(desk)
    monkeypatch.setattr(
        index,
        "failpoint",
        lambda name: name == "index.before_record" and desk.shop.jobs.cancel(job_id),
    )
    with caplog.at_level("INFO", index.log.name):
        merge_shards(desk.resources, job_id)
    job = desk.job(job_id)
    assert desk.shop.versions.current_name() == "v0001"
    assert (job.state, job.index_version) == ("published", "v0001")
    assert "was ended too late: it had already published v0001" in caplog.text
    assert f"{job_id} published" not in caplog.text


def test_an_older_job_fails_after_a_later_one_has_published(
    desk: InlineWorker, caplog: pytest.LogCaptureFixture
) -> None:
    older = embedded(desk)
    desk.messages.clear()
    desk.shop.draw("later.png", seed=77)
    later = desk.rebuild()
    merge_shards(desk.resources, older)
    assert desk.job(older).state == "failed"
    assert later in str(desk.job(older).error)
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert later in record.getMessage()
    assert not record.exc_info  # the sentence is enough for whoever waits in a terminal


def test_a_database_that_is_away_leaves_the_merge_to_be_sent_again(
    desk: InlineWorker, caplog: pytest.LogCaptureFixture
) -> None:
    class Away:
        def get(self, job_id: str) -> None:
            raise ServerUnavailable("The database is away.")

    desk.resources.jobs = Away()
    merge_shards(desk.resources, "some-job")
    assert "The merge of job some-job: The database is away." in caplog.text
