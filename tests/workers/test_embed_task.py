"""The task of queue `embed`: done once whatever is delivered twice, given back, or broken."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from inline_worker import InlineWorker
from PIL import Image
from toy_pipeline import ToyPipeline

from pipeline.errors import ServerUnavailable, SetupError, WrongUse
from pipeline.images.decode import sha256
from pipeline.store.heartbeat import HOST
from workers.dispatch import THIS_PROCESS
from workers.embed import MAX_CRASHES, embed
from workers.routes import EMBED, INDEX


class CountingEncoder:
    """The shop's encoder; counts images, and raises where a test says so."""

    def __init__(self, toy: ToyPipeline) -> None:
        self.dim = toy.dim
        self.toy = toy
        self.images = 0
        self.error: Exception | None = None

    def embed_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        if self.error is not None:
            raise self.error
        self.images += len(images)
        return self.toy.embed_images(list(images))


@pytest.fixture
def encoder(inline_worker: InlineWorker) -> CountingEncoder:
    encoder = CountingEncoder(inline_worker.toy)
    inline_worker.start_again(encoder)
    return encoder


def shards(inline_worker: InlineWorker, job_id: str) -> dict[int, dict[str, object]]:
    with inline_worker.toy.jobs._database.transaction() as tx:
        rows = tx.rows("SELECT n, state, attempts FROM shards WHERE job_id = ?", (job_id,))
    return {row["n"]: row for row in rows}


def test_a_rebuild_runs_from_plan_to_published_index(
    inline_worker: InlineWorker, encoder: CountingEncoder
) -> None:
    job_id = inline_worker.rebuild()
    assert inline_worker.job(job_id).state == "published"
    assert inline_worker.progress(job_id).embedded == encoder.images == 20
    assert inline_worker.toy.versions.current().paths == sorted(
        file.relative_to(inline_worker.toy.root).as_posix()
        for file in inline_worker.toy.root.rglob("*.png")
    )


def test_a_shard_delivered_again_costs_no_forward_pass(
    inline_worker: InlineWorker, encoder: CountingEncoder
) -> None:
    job_id = inline_worker.toy.plan()
    for _ in range(3):
        embed(inline_worker.resources, job_id, 0)
    assert encoder.images == 16
    assert shards(inline_worker, job_id)[0] == {"n": 0, "state": "done", "attempts": 1}


def test_a_shard_that_another_worker_holds_is_left_alone(
    inline_worker: InlineWorker, encoder: CountingEncoder
) -> None:
    job_id = inline_worker.toy.plan()
    assert inline_worker.toy.jobs.shards.claim(job_id, 0, "another", 1000)
    embed(inline_worker.resources, job_id, 0)
    assert encoder.images == 0


def test_a_shard_of_a_job_that_has_ended_is_not_touched(
    inline_worker: InlineWorker, encoder: CountingEncoder
) -> None:
    job_id = inline_worker.toy.plan()
    inline_worker.toy.jobs.cancel(job_id)
    embed(inline_worker.resources, job_id, 0)
    assert encoder.images == 0
    assert shards(inline_worker, job_id)[0]["state"] == "pending"


def test_known_content_is_reused_from_the_index_and_then_from_the_cache(
    inline_worker: InlineWorker, encoder: CountingEncoder
) -> None:
    inline_worker.rebuild()
    inline_worker.memory.vectors.clear()
    moved = inline_worker.toy.root / "moved.png"
    (inline_worker.toy.root / "kind0/00.png").rename(moved)  # another path, the same content
    job_id = inline_worker.rebuild()
    assert (inline_worker.progress(job_id).embedded, inline_worker.progress(job_id).reused) == (
        0,
        20,
    )

    inline_worker.toy.draw("new.png", seed=90)
    inline_worker.rebuild()
    assert encoder.images == 21
    content = (inline_worker.toy.root / "new.png").read_bytes()
    (inline_worker.toy.root / "new.png").unlink()
    inline_worker.rebuild()  # out of the index, still in the cache
    (inline_worker.toy.root / "back.png").write_bytes(content)
    inline_worker.rebuild()
    assert encoder.images == 21
    assert "back.png" in inline_worker.toy.versions.current().paths


def test_full_embeds_again_what_index_and_cache_know(
    inline_worker: InlineWorker, encoder: CountingEncoder
) -> None:
    inline_worker.rebuild()
    job_id = inline_worker.rebuild(full=True)
    assert inline_worker.progress(job_id).embedded == 20
    assert encoder.images == 40


def test_bad_images_are_in_the_ledger_and_the_rest_is_published(
    inline_worker: InlineWorker,
) -> None:
    (inline_worker.toy.root / "empty.png").touch()
    (inline_worker.toy.root / "text.jpg").write_text("text")
    job_id = inline_worker.rebuild()
    assert inline_worker.job(job_id).state == "published"
    found = {failure.path: failure.stage for failure in inline_worker.toy.jobs.failures(job_id)}
    assert found == {"empty.png": "read", "text.jpg": "decode"}
    assert len(inline_worker.toy.versions.current().paths) == 20


def test_a_passing_error_costs_an_attempt_and_the_next_one_succeeds(
    inline_worker: InlineWorker, encoder: CountingEncoder
) -> None:
    job_id = inline_worker.toy.plan()
    encoder.error = RuntimeError("CUDA error")
    embed(inline_worker.resources, job_id, 0)
    assert shards(inline_worker, job_id)[0] == {"n": 0, "state": "pending", "attempts": 1}
    assert (
        not inline_worker.messages
    )  # the reconciler sends it after a pause; at once would be a hot loop
    encoder.error = None
    inline_worker.advance(job_id)
    inline_worker.work()
    assert inline_worker.job(job_id).state == "published"


def test_an_error_that_persists_ends_the_job_with_its_reason(
    inline_worker: InlineWorker, encoder: CountingEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken_disk(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("pipeline.embed.shard_files.write_shard", broken_disk)
    job_id = inline_worker.toy.plan()
    for _ in range(inline_worker.resources.settings.shard_max_attempts):
        embed(inline_worker.resources, job_id, 0)
        assert inline_worker.job(job_id).open
        assert "failed and is tried again" in str(inline_worker.job(job_id).error)
    embed(inline_worker.resources, job_id, 0)
    job = inline_worker.job(job_id)
    assert job.state == "failed"
    assert "shard 0 failed in 4 attempts" in str(job.error)
    assert "Input/output error" in str(job.error)


def test_a_full_disk_is_waited_for_and_told_until_there_is_room(
    inline_worker: InlineWorker, encoder: CountingEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    job_id = inline_worker.toy.plan()
    with monkeypatch.context() as full:
        full.setattr("pipeline.embed.shard_files.write_shard", disk_full)
        for _ in range(3 * inline_worker.resources.settings.shard_max_attempts):
            embed(inline_worker.resources, job_id, 0)
            assert inline_worker.job(job_id).open
        assert "No space left on device. Free space there" in str(inline_worker.job(job_id).error)
    inline_worker.advance(job_id)
    inline_worker.work()
    assert inline_worker.job(job_id).state == "published"
    assert inline_worker.job(job_id).error is None


def test_after_too_many_crashes_images_run_alone_and_the_bad_one_is_left_out(
    inline_worker: InlineWorker, encoder: CountingEncoder
) -> None:
    job_id = inline_worker.toy.plan()
    jobs = inline_worker.toy.jobs
    for _ in range(
        inline_worker.resources.settings.shard_max_attempts
    ):  # as many workers that died
        assert jobs.shards.claim(job_id, 0, "dead", -1)
        assert jobs.shards.free_expired(job_id) == [0]
    claim = jobs.shards.claim(job_id, 0, "dead", -1)
    assert claim is not None
    for _ in range(MAX_CRASHES):  # two more died while they worked on the sixth image alone
        jobs.shards.mark_started(claim, 5)
    jobs.shards.free_expired(job_id)
    inline_worker.advance(job_id)
    inline_worker.work()
    assert inline_worker.job(job_id).state == "published"
    (failure,) = jobs.failures(job_id)
    assert (failure.path, failure.stage) == (claim.images[5].path, "crash")
    assert len(inline_worker.toy.versions.current().paths) == 19


def test_a_worker_asked_to_stop_gives_the_shard_back_without_an_attempt(
    inline_worker: InlineWorker,
) -> None:
    job_id = inline_worker.toy.plan()
    inline_worker.resources.stopping.set()
    embed(inline_worker.resources, job_id, 0)
    # Back and already sent to the next worker.
    assert shards(inline_worker, job_id)[0] == {"n": 0, "state": "queued", "attempts": 0}
    assert ("imgrec.embed_shard", (job_id, 0)) in inline_worker.messages


def test_a_job_cancelled_within_a_shard_stops_it_and_records_nothing(
    inline_worker: InlineWorker, encoder: CountingEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    inline_worker.start_again(lease_s=0.06, embed_batch_size=1)
    job_id = inline_worker.toy.plan()
    cancelled = threading.Event()
    embed_images = encoder.embed_images

    def cancel_then_wait(images: Sequence[Image.Image]) -> np.ndarray:
        if not cancelled.is_set():
            inline_worker.toy.jobs.cancel(job_id)
            cancelled.set()
            threading.Event().wait(0.3)  # many beats: one of them tells the lease
        return embed_images(images)

    monkeypatch.setattr(encoder, "embed_images", cancel_then_wait)
    embed(inline_worker.resources, job_id, 0)
    assert encoder.images < 16
    assert inline_worker.progress(job_id).embedded == 0
    assert inline_worker.job(job_id).state == "cancelled"


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (SetupError("rembg is not installed: run `pip install rembg`."), "failed"),
        (RuntimeError("CUDA driver version is insufficient"), "failed"),
        (ServerUnavailable("the hub is away"), "planned"),
    ],
)
def test_a_worker_that_cannot_load_its_model_ends_the_job_before_any_shard_runs(
    inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch, error: Exception, state: str
) -> None:
    def cannot(*_: object) -> None:
        raise error

    monkeypatch.setattr("workers.resources.build_embedder", cannot)
    job_id = inline_worker.rebuild()
    assert inline_worker.job(job_id).state == state
    assert all(shard["attempts"] == 0 for shard in shards(inline_worker, job_id).values())
    if state == "failed":
        assert str(error) in str(inline_worker.job(job_id).error)
        assert HOST in str(inline_worker.job(job_id).error)


def test_a_server_that_the_model_needs_is_waited_for_and_told(
    inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable(*_: object) -> None:
        raise ServerUnavailable("The hub does not answer.")

    job_id = inline_worker.toy.plan()
    with monkeypatch.context() as patch:
        patch.setattr("workers.resources.build_embedder", unavailable)
        for _ in range(3 * inline_worker.resources.settings.shard_max_attempts):
            embed(inline_worker.resources, job_id, 0)
    assert inline_worker.job(job_id).error == "The hub does not answer."
    assert shards(inline_worker, job_id)[0]["attempts"] == 0
    inline_worker.advance(job_id)
    inline_worker.work()
    assert inline_worker.job(job_id).state == "published"


def stand_beside(inline_worker: InlineWorker, *names: str) -> None:
    """Have two workers on queue `embed`."""
    queues = {name: [EMBED] for name in names or (THIS_PROCESS, "another")} | {"index": [INDEX]}
    inline_worker.worker_queues = lambda patience_s=1.0: queues


def test_a_misconfigured_worker_gives_its_shards_to_the_others_and_says_why_it_is_unhealthy(
    inline_worker: InlineWorker, encoder: CountingEncoder
) -> None:
    job_id = inline_worker.toy.plan()
    stand_beside(inline_worker)
    healthy = inline_worker.resources
    inline_worker.start_again(preprocess_size=(64, 64))
    misconfigured = inline_worker.resources
    inline_worker.advance(job_id)
    for _ in range(9):  # it takes each message first
        task, args = inline_worker.messages.popleft()
        assert task == "imgrec.embed_shard"
        embed(misconfigured, *args)
    job = inline_worker.job(job_id)
    assert job.open
    assert "64x64" in str(job.error)
    (problem,) = misconfigured.watchdog.failures()
    assert problem == job.error
    assert "cannot do this job" in problem
    assert encoder.images == 0

    inline_worker.resources = healthy
    inline_worker.work()
    assert (inline_worker.job(job_id).state, inline_worker.job(job_id).error) == ("published", None)
    assert healthy.watchdog.failures() == []
    assert all(shard["attempts"] == 1 for shard in shards(inline_worker, job_id).values())
    # What was refused before counts no more: the job has moved since.
    assert inline_worker.toy.jobs.add_refusal(job_id, "another:1", "It cannot.", 60).workers == {
        "another:1"
    }


def test_a_job_that_every_live_worker_refuses_fails_with_the_reason_of_the_last(
    inline_worker: InlineWorker,
) -> None:
    job_id = inline_worker.toy.plan()
    stand_beside(inline_worker)
    inline_worker.start_again(preprocess_size=(64, 64))
    for restart in range(3):  # a worker that ends and is started again is no other one
        inline_worker.resources.worker_name = f"embed-{restart}@host"
        names = inline_worker.resources.worker_name, "another"
        stand_beside(inline_worker, *names)
        embed(inline_worker.resources, job_id, 0)
    assert inline_worker.job(job_id).open
    inline_worker.toy.jobs.add_refusal(job_id, "another", "It cannot.", 60)
    inline_worker.join_s = 1000
    embed(inline_worker.resources, job_id, 0)
    assert inline_worker.job(job_id).open  # a third may still join
    inline_worker.join_s = 0
    embed(inline_worker.resources, job_id, 0)
    job = inline_worker.job(job_id)
    assert job.state == "failed"
    assert "64x64" in str(job.error)


def test_a_look_for_workers_that_finds_nobody_fails_no_job(
    inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine that is too busy to answer in a second."""
    job_id = inline_worker.toy.plan()
    inline_worker.start_again(preprocess_size=(64, 64))
    with monkeypatch.context() as patch:
        patch.setattr(inline_worker, "worker_queues", dict)
        embed(inline_worker.resources, job_id, 0)
        assert inline_worker.job(job_id).open
    embed(inline_worker.resources, job_id, 0)
    assert inline_worker.job(job_id).state == "failed"


def test_a_job_at_which_a_worker_is_at_work_is_not_failed_by_those_that_refuse_it(
    inline_worker: InlineWorker,
) -> None:
    job_id = inline_worker.toy.plan()
    assert inline_worker.toy.jobs.shards.claim(job_id, 1, "silent", 1000)
    inline_worker.start_again(preprocess_size=(64, 64))
    for _ in range(9):
        embed(inline_worker.resources, job_id, 0)
    assert inline_worker.job(job_id).state == "running"


def test_a_refused_shard_is_sent_back_at_once_and_the_worker_pauses(
    inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = inline_worker.toy.plan()
    inline_worker.start_again(preprocess_size=(64, 64))
    stand_beside(inline_worker)
    sent: list[list[object]] = []
    monkeypatch.setattr(
        inline_worker, "pause_for_others", lambda stopping: sent.append([*inline_worker.messages])
    )
    embed(inline_worker.resources, job_id, 0)
    assert sent == [[("imgrec.embed_shard", (job_id, 0))]]


def test_a_worker_that_can_do_the_next_job_is_healthy_again(
    inline_worker: InlineWorker, tmp_path: Path
) -> None:
    job_id = inline_worker.toy.plan()
    stand_beside(inline_worker)
    inline_worker.toy.root.rename(tmp_path / "elsewhere")  # a disk that is not mounted yet
    embed(inline_worker.resources, job_id, 0)
    assert str(inline_worker.toy.root) in "".join(inline_worker.resources.watchdog.failures())
    (tmp_path / "elsewhere").rename(inline_worker.toy.root)
    inline_worker.work()
    assert inline_worker.job(job_id).state == "published"
    assert inline_worker.resources.watchdog.failures() == []


def test_a_folder_that_the_worker_cannot_see_ends_the_job(
    inline_worker: InlineWorker, tmp_path: Path
) -> None:
    job_id = inline_worker.toy.plan()
    inline_worker.toy.root.rename(tmp_path / "elsewhere")
    inline_worker.advance(job_id)
    inline_worker.work()
    job = inline_worker.job(job_id)
    assert job.state == "failed"
    assert str(inline_worker.toy.root) in str(job.error)
    assert inline_worker.toy.jobs.failures(job_id) == []  # not one failure an image


def test_a_worker_opens_no_folder_outside_of_its_own_roots(
    inline_worker: InlineWorker, tmp_path: Path
) -> None:
    job_id = inline_worker.toy.plan()  # by a command line that has no such setting
    inline_worker.start_again(image_roots=str(tmp_path / "only-here"))
    inline_worker.advance(job_id)
    inline_worker.work()
    assert inline_worker.job(job_id).state == "failed"
    assert "outside of IMAGE_ROOTS" in str(inline_worker.job(job_id).error)


def test_a_worker_of_another_model_mixes_nothing_and_names_both_sides(
    inline_worker: InlineWorker, encoder: CountingEncoder
) -> None:
    job_id = inline_worker.toy.plan()
    inline_worker.start_again(preprocess_size=(64, 64))
    inline_worker.advance(job_id)
    inline_worker.work()
    error = str(inline_worker.job(job_id).error)
    assert "64x64" in error
    assert "224x224" in error
    assert encoder.images == 0


def test_what_the_model_saw_is_kept_for_each_product(inline_worker: InlineWorker) -> None:
    names = ("shoe.jpg", "shoe.png", "shoe.JPG", "shoe.png.jpg")  # four products
    for seed, name in enumerate(names):
        inline_worker.toy.draw(name, seed=700 + seed)
    job_id = inline_worker.toy.plan(save_preprocessed=True)
    inline_worker.advance(job_id)
    inline_worker.work()
    assert inline_worker.job(job_id).state == "published"
    folder = inline_worker.resources.settings.data_dir / "preprocessed"
    kept = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.jpg"))
    assert len(kept) == 24
    assert {"shoe.jpg", "shoe.png.jpg", "shoe.JPG.jpg", "shoe.png.jpg.jpg"} <= set(kept)
    with Image.open(folder / "shoe.png.jpg") as image:
        assert image.size == (224, 224)


def test_a_name_that_is_too_long_for_a_kept_picture_is_a_failure_of_its_image(
    inline_worker: InlineWorker,
) -> None:
    """The whole job failed."""
    longest, too_long = f"{'a' * 247}.png", f"{'b' * 248}.png"  # and .jpg: 255 bytes, and 256
    for name in (longest, too_long):
        inline_worker.toy.draw(name, seed=ord(name[0]))
    job_id = inline_worker.toy.plan(save_preprocessed=True)
    inline_worker.advance(job_id)
    inline_worker.work()
    assert inline_worker.job(job_id).state == "published"
    (failure,) = inline_worker.toy.jobs.failures(job_id)
    assert (failure.path, failure.stage) == (too_long, "save")
    folder = inline_worker.resources.settings.data_dir / "preprocessed"
    assert (folder / f"{longest}.jpg").exists()


def test_a_link_in_the_folder_of_kept_pictures_leads_nothing_out_of_it(
    inline_worker: InlineWorker, tmp_path: Path
) -> None:
    folder = inline_worker.resources.settings.data_dir / "preprocessed"
    folder.mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (folder / "kind0").symlink_to(tmp_path / "outside")
    job_id = inline_worker.toy.plan(save_preprocessed=True)
    inline_worker.advance(job_id)
    inline_worker.work()
    assert list((tmp_path / "outside").iterdir()) == []
    stages = {failure.stage for failure in inline_worker.toy.jobs.failures(job_id)}
    assert stages == {"save"}
    assert inline_worker.job(job_id).state == "published"


def test_a_database_that_is_away_is_a_log_line_and_no_crash(
    inline_worker: InlineWorker, caplog: pytest.LogCaptureFixture
) -> None:
    job_id = inline_worker.toy.plan()

    class Away:
        def get(self, job_id: str) -> None:
            raise ServerUnavailable("The database is away.")

    inline_worker.resources.jobs = Away()
    embed(inline_worker.resources, job_id, 0)
    assert f"Shard 0 of job {job_id}: The database is away." in caplog.text


def test_a_result_that_the_database_never_takes_ends_the_job_with_the_reason(
    inline_worker: InlineWorker, encoder: CountingEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one whose encoding cannot hold the name of a broken image."""

    def refuse(*_: object, **__: object) -> None:
        raise WrongUse("The database cannot hold this text.")

    job_id = inline_worker.toy.plan()
    monkeypatch.setattr("pipeline.store.shards.Shards.finish", refuse)
    for _ in range(inline_worker.resources.settings.shard_max_attempts):
        embed(inline_worker.resources, job_id, 0)
        assert shards(inline_worker, job_id)[0]["state"] == "pending"
    embed(inline_worker.resources, job_id, 0)
    assert inline_worker.job(job_id).state == "failed"
    assert "cannot hold this text" in str(inline_worker.job(job_id).error)


def warned(inline_worker: InlineWorker, job_id: str) -> set[str]:
    failures = inline_worker.toy.jobs.failures(job_id)
    assert all("blank" in failure.reason and failure.warning for failure in failures)
    return {failure.path for failure in failures}


def test_a_blank_image_is_warned_of_in_each_rebuild_however_its_vector_comes(
    inline_worker: InlineWorker, encoder: CountingEncoder
) -> None:
    blank = inline_worker.toy.root / "kind0" / "blank.png"
    Image.new("RGB", (64, 64), "white").save(blank)
    assert warned(inline_worker, inline_worker.rebuild()) == {"kind0/blank.png"}
    unchanged = inline_worker.rebuild()
    assert (warned(inline_worker, unchanged), inline_worker.progress(unchanged).embedded) == (
        {"kind0/blank.png"},
        0,
    )
    assert warned(inline_worker, inline_worker.rebuild()) == {"kind0/blank.png"}  # from job to job
    os.utime(blank, ns=(1, 1))
    assert warned(inline_worker, inline_worker.rebuild()) == {"kind0/blank.png"}
    (inline_worker.toy.root / "copy.png").write_bytes(blank.read_bytes())
    images = encoder.images
    copied = inline_worker.rebuild()
    assert warned(inline_worker, copied) == {"copy.png", "kind0/blank.png"}
    assert encoder.images == images + 1
    (inline_worker.toy.root / "kind1" / "copy.png").write_bytes(
        (inline_worker.toy.root / "kind0" / "00.png").read_bytes()
    )
    assert (
        inline_worker.progress(inline_worker.rebuild()).embedded == 0
    )  # a vector without a warning is reused
    blank.unlink()
    assert warned(inline_worker, inline_worker.rebuild()) == {"copy.png"}
    assert warned(inline_worker, inline_worker.rebuild(full=True)) == {"copy.png"}


def test_a_file_that_changes_after_the_listing_is_read_again_by_the_next_rebuild(
    inline_worker: InlineWorker, encoder: CountingEncoder
) -> None:
    file = inline_worker.toy.root / "kind0" / "00.png"
    job_id = inline_worker.toy.plan()
    inline_worker.toy.draw("kind0/00.png", seed=999)
    inline_worker.advance(job_id)
    inline_worker.work()
    version = inline_worker.toy.versions.current()
    row = list(version.paths).index("kind0/00.png")
    assert version.sha256[row].decode() == sha256(file.read_bytes())  # whole, as it was then
    assert version.files[row][1] != file.stat().st_mtime_ns
    inline_worker.rebuild()
    version = inline_worker.toy.versions.current()
    assert version.files[row][1] == file.stat().st_mtime_ns


def test_a_file_that_is_still_being_written_is_a_failure_until_it_is_whole(
    inline_worker: InlineWorker, encoder: CountingEncoder
) -> None:
    whole = (inline_worker.toy.root / "kind0" / "00.png").read_bytes()
    file = inline_worker.toy.root / "new.png"
    file.write_bytes(whole[: len(whole) // 2])
    assert [
        failure.path for failure in inline_worker.toy.jobs.failures(inline_worker.rebuild())
    ] == ["new.png"]
    with file.open("ab") as stream:
        stream.write(whole[len(whole) // 2 :])
    assert inline_worker.toy.jobs.failures(inline_worker.rebuild()) == []
    assert "new.png" in inline_worker.toy.versions.current().paths
