"""The plan: every picture of the folder stands in it once, and it is whole or its job failed."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from itertools import count, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from toy_pipeline import ToyPipeline

from pipeline.errors import WrongUse
from pipeline.images import source
from pipeline.images.failure import Failure
from pipeline.images.find import ImageFile, find_images
from pipeline.images.source import ImageFolder
from pipeline.rebuild import plan
from pipeline.rebuild.plan import ChangeDetector, plan_rebuild
from pipeline.rebuild.retry import plan_retry
from pipeline.settings import Settings
from pipeline.store import shards
from pipeline.store.database import Database
from pipeline.store.feeds import Feeds
from pipeline.store.shards import PlanLost


def rows(toy: ToyPipeline, job_id: str) -> list[tuple[int, str, list[object]]]:
    with toy.jobs._database.transaction() as tx:
        found = tx.rows("SELECT n, kind, items FROM shards WHERE job_id = ? ORDER BY n", (job_id,))
    return [(row["n"], row["kind"], json.loads(row["items"])) for row in found]


def test_a_long_listing_is_written_piece_by_piece_and_every_picture_once(
    toy: ToyPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many transactions, many shards of each kind, in one job."""
    toy.rebuild()
    monkeypatch.setattr(plan, "SHARDS_AT_ONCE", 3)
    monkeypatch.setattr(plan, "REUSE_ROWS", 4)
    monkeypatch.setattr(shards, "SHARDS_AT_ONCE", 3)
    toy.settings = toy.settings.model_copy(update={"shard_size": 2})
    for number in range(25):
        toy.draw(f"new/{number:02d}.png", seed=100 + number)
    (toy.root / "kind0" / "00.png").unlink()
    heard: list[int] = []
    job_id = plan_rebuild(toy.root, toy.settings, toy.jobs, toy.versions, listed=heard.append)
    found = rows(toy, job_id)
    assert [n for n, _, _ in found] == list(range(len(found)))
    embedded = [item[0] for _, kind, items in found if kind == "embed" for item in items]
    reused = [row for _, kind, items in found if kind == "reuse" for row in items]
    assert sorted(embedded) == [f"new/{number:02d}.png" for number in range(25)]
    assert sorted(reused) == list(range(1, 30))  # all rows of v0001 but the deleted one
    assert all(len(items) <= 4 for _, kind, items in found if kind == "reuse")
    assert heard == sorted(heard)
    assert (len(heard) > 3, heard[-1]) == (True, 54)
    toy.embed(job_id)
    toy.merge(job_id)
    assert len(toy.versions.current().paths) == 54


def test_a_touched_file_is_read_again_and_a_new_size_too(toy: ToyPipeline) -> None:
    toy.rebuild()
    os.utime(toy.root / "kind0" / "00.png", ns=(1, 1))
    same_time = (toy.root / "kind1" / "01.png").stat()
    toy.draw("kind1/01.png", seed=999)
    with (toy.root / "kind1" / "01.png").open("ab") as file:
        file.write(b"one more byte")
    os.utime(toy.root / "kind1" / "01.png", ns=(same_time.st_atime_ns, same_time.st_mtime_ns))
    found = rows(toy, toy.plan())
    changed = [item[0] for _, kind, items in found if kind == "embed" for item in items]
    assert changed == ["kind0/00.png", "kind1/01.png"]


@pytest.mark.parametrize("seed", range(20))
def test_each_image_is_reused_embedded_or_left_out_as_if_compared_alone(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Images are compared some at a time, and the base is read in pieces."""
    monkeypatch.setattr(plan, "REUSE_ROWS", 40)
    rng = np.random.default_rng(seed)
    base = [ImageFile(f"{n:04d}.jpg", n, 10 * n) for n in range(0, 600, 2)]
    listed: list[ImageFile | Failure] = []
    for n in range(0, 620, 2):
        chance = rng.random()
        if chance < 0.02:  # another one comes before it
            listed.append(ImageFile(f"{n - 1:04d}.jpg", n, n))
        if 0.02 < chance < 0.04:
            listed.append(Failure(f"{n:04d}.jpg", "find", "the file has gone"))
        elif 0.04 < chance < 0.06:
            listed.append(ImageFile(f"{n:04d}.jpg", n, 10 * n + 1))
        elif chance > 0.08:
            listed.append(ImageFile(f"{n:04d}.jpg", n, 10 * n))
    small = [Failure(file.path, "read", "it is small", warning=True) for file in base[::50]]
    warnings = {warning.path: warning for warning in small}
    removed = {file.path: (file.size, file.mtime_ns) for file in base[7::60]}
    version: Any = SimpleNamespace(
        manifest={"root": "photos"},
        paths=[file.path for file in base],
        files=np.array([file[1:3] for file in base], np.int64),
    )
    images: Any = SimpleNamespace(name="photos", find=lambda *options: iter(listed))
    detector = ChangeDetector(images, version, warnings=warnings, removed=removed)

    changed = list(detector.changed())

    row_of = {file: row for row, file in enumerate(base)}
    files = [file for file in listed if isinstance(file, ImageFile)]
    taken = [file for file in files if removed.get(file.path) != file[1:3]]
    kept = [file for file in taken if file in row_of]
    assert changed == [file for file in taken if file not in row_of]
    assert [row for rows in detector.take_rows(last=True) for row in rows] == [
        row_of[file] for file in kept
    ]
    failures = [file for file in listed if isinstance(file, Failure)]
    failures += [warnings[file.path] for file in kept if file.path in warnings]
    assert detector.take_failures() == sorted(failures, key=lambda failure: failure.path)
    assert detector.count == len(taken) + len(failures) - sum(f.warning for f in failures)
    assert detector.left_out.counts[plan.REMOVED] == len(files) - len(taken) > 0


def test_what_the_listing_could_not_take_is_in_the_ledger_and_counted(toy: ToyPipeline) -> None:
    (toy.root / "nowhere.png").symlink_to("nothing.png")
    with open(os.fsencode(toy.root) + b"/bad-\xff.jpg", "wb") as file:
        file.write(b"x")
    job_id = toy.plan()
    failures = {failure.path: failure for failure in toy.jobs.failures(job_id)}
    assert set(failures) == {"nowhere.png", "bad-\\xff.jpg"}
    assert {failure.stage for failure in failures.values()} == {"find"}
    progress = toy.jobs.progress(job_id)
    assert (progress.images, progress.skipped) == (32, 2)
    toy.embed(job_id)
    assert toy.merge(job_id).version == "v0001"


def test_a_folder_and_a_link_whose_names_are_not_utf_8_end_no_rebuild(
    toy: ToyPipeline, tmp_path: Path
) -> None:
    (tmp_path / "out-\udce4").mkdir()
    (toy.root / "link-\udce4").symlink_to(tmp_path / "out-\udce4")
    (toy.root / "caf\udce9.jpg").mkdir()
    job_id = toy.plan()
    assert {failure.path for failure in toy.jobs.failures(job_id)} == {"link-\\xe4", "caf\\xe9.jpg"}
    toy.embed(job_id)
    assert toy.merge(job_id).version == "v0001"


def test_a_path_that_no_index_of_a_database_holds_is_a_failure_of_that_image_alone(
    settings: Settings, tmp_path: Path, database_url: str
) -> None:
    toy = ToyPipeline(settings.model_copy(update={"database_url": database_url}), tmp_path)
    toy.draw("a.png", 1)
    letters = "".join(chr(0x4E00 + number) for number in range(960))  # of three bytes each
    long = "/".join(letters[start : start + 80] for start in range(0, len(letters), 80))
    toy.draw(f"{long}/b.png", 2)
    (toy.root / long / "c.png").symlink_to("nothing")
    assert toy.rebuild() == ("v0001", 1, 0)
    ((job, progress),) = toy.jobs.list_with_progress()
    assert progress.skipped == 2
    failures = {failure.path: failure.reason for failure in toy.jobs.failures(job.id)}
    assert all(long.startswith(path[:300]) for path in failures)
    toy.draw("d.png", 3)
    retry_id = plan_retry(
        job.id, toy.settings, toy.jobs, toy.versions, Feeds(Database(database_url))
    )
    again = {failure.path: failure.reason for failure in toy.jobs.failures(retry_id)}
    assert again == failures


def test_a_folder_of_nothing_but_unusable_names_is_a_job_that_can_end(toy: ToyPipeline) -> None:
    for file in toy.root.rglob("*.png"):
        file.unlink()
    (toy.root / "nowhere.png").symlink_to("nothing.png")
    job_id = toy.plan()
    assert rows(toy, job_id) == []
    assert toy.jobs.ready_to_merge(job_id)


def test_a_file_of_a_time_beyond_64_bits_of_nanoseconds_is_indexed_as_any_other(
    toy: ToyPipeline,
) -> None:
    """A camera's broken clock; no database and no array holds such a time."""
    far = next(toy.root.rglob("*.png"))
    seconds = int(datetime(2300, 1, 1, tzinfo=UTC).timestamp())
    os.utime(far, (seconds, seconds))
    assert toy.rebuild() == ("v0001", 30, 0)
    assert toy.versions.current().has_path(far.relative_to(toy.root).as_posix())
    toy.draw("new.png", 99)
    assert toy.rebuild() == ("v0002", 1, 30)


@pytest.mark.parametrize("error", [WrongUse("The folder x cannot be read."), KeyboardInterrupt()])
def test_a_listing_that_ends_early_ends_its_job_and_is_never_published_as_the_whole(
    toy: ToyPipeline, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Published, a half of the folder would drop the other half's products from the index."""

    def half(root: Path, *more: object) -> Iterator[ImageFile]:
        for number, found in enumerate(find_images(root)):
            if number == 10:
                raise error
            assert isinstance(found, ImageFile)
            yield found

    monkeypatch.setattr(source, "find_images", half)
    with pytest.raises(type(error)):
        toy.plan()
    ((job, _),) = toy.jobs.list_with_progress()
    assert job.state == "failed"
    assert job.error
    assert not toy.jobs.ready_to_merge(job.id)


def test_a_long_listing_renews_its_lease_though_nothing_has_changed(
    toy: ToyPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its job failed after two minutes: the lease was renewed with what was written."""
    toy.rebuild()
    minutes = count(0, 60)
    monkeypatch.setattr(plan, "time", SimpleNamespace(monotonic=lambda: next(minutes)))
    renewals: list[str] = []
    add = toy.jobs.shards.add

    def spy(job_id: str, pieces: list[Any], failures: list[Failure], *lease: Any) -> None:
        add(job_id, pieces, failures, *lease)
        if not pieces and not failures:
            renewals.append(job_id)

    monkeypatch.setattr(toy.jobs.shards, "add", spy)
    job_id = toy.plan()
    assert toy.jobs.progress(job_id).reused == 30
    assert renewals.count(job_id) >= 3  # for each folder, and some images


def test_a_planner_that_reads_one_folder_for_long_keeps_its_lease(
    toy: ToyPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network's file system takes ten seconds for each name, and the folder has one level."""
    for number in range(200):
        (toy.root / f"{number}.txt").touch()
    now, leases = [0.0], list[float]()
    scandir = os.scandir

    @contextmanager
    def slow(folder: str) -> Iterator[Iterator[os.DirEntry[str]]]:
        def entries() -> Iterator[os.DirEntry[str]]:
            for entry in found:
                now[0] += 10
                yield entry

        with scandir(folder) as found:
            yield entries()

    add = toy.jobs.shards.add

    def spy(job_id: str, *more: Any) -> None:
        leases.append(now[0])
        add(job_id, *more)

    monkeypatch.setattr(plan, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(toy.jobs.shards, "add", spy)
    monkeypatch.setattr("pipeline.rebuild.plan.check_source", lambda *_: ImageFolder(toy.root))
    monkeypatch.setattr("pipeline.images.find.os.scandir", slow)
    toy.plan()
    assert now[0] > 2000
    lease_s = plan.PLAN_LEASES * toy.settings.lease_s
    assert max(later - earlier for earlier, later in pairwise(leases)) < lease_s


def test_a_plan_whose_job_was_ended_is_written_no_further(
    toy: ToyPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended_meanwhile(root: Path, *more: Any) -> Iterator[ImageFile | Failure]:
        found = list(find_images(root, *more))
        ((job, _),) = toy.jobs.list_with_progress() or ((None, None),)
        if job is not None:
            toy.jobs.fail(job.id, "cancelled")
        yield from found

    monkeypatch.setattr(source, "find_images", ended_meanwhile)
    with pytest.raises(PlanLost, match="was ended"):
        toy.plan()
    ((job, progress),) = toy.jobs.list_with_progress()
    assert (job.state, job.error, progress.shards) == ("failed", "cancelled", 0)


def failing_scandir(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
    scandir = os.scandir

    def fail(path: str) -> object:
        if str(path).endswith(name):
            raise OSError(number, os.strerror(number), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", fail)


def test_a_folder_on_a_failing_disk_stops_the_listing(
    toy: ToyPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passed over, the products of a whole disk would leave the index."""
    failing_scandir(monkeypatch, "kind1", errno.EIO)
    with pytest.raises(WrongUse, match=r"kind1 cannot be read: Input/output error"):
        list(find_images(toy.root))


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_disk_that_fails_between_the_files_of_a_folder_stops_the_listing(
    toy: ToyPipeline, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    stat = os.stat

    def fail(path: Any, **options: Any) -> os.stat_result:
        if str(path).endswith("05.png"):
            raise OSError(number, os.strerror(number), str(path))
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", fail)
    with pytest.raises(WrongUse, match=rf"\d5\.png cannot be read: {os.strerror(number)}"):
        list(find_images(toy.root))


def test_a_link_to_a_server_that_is_away_stops_the_listing(
    toy: ToyPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may lead to a folder of products, which would leave the index."""

    class Away:
        name, path = "brand", str(toy.root / "kind1" / "brand")

        def is_dir(self) -> bool:
            raise OSError(errno.EHOSTDOWN, "Host is down", self.path)

    scandir = os.scandir

    def with_link(path: str) -> Any:
        entries = [*scandir(path), *([Away()] if path.endswith("kind1") else [])]
        return nullcontext(entries)

    monkeypatch.setattr(os, "scandir", with_link)
    with pytest.raises(WrongUse, match=r"kind1/brand cannot be read: Host is down"):
        list(find_images(toy.root))


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.ENOENT])
def test_a_folder_that_may_not_be_read_is_a_failure_and_the_rest_is_indexed(
    toy: ToyPipeline, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    failing_scandir(monkeypatch, "kind1", number)
    assert toy.rebuild()[:2] == ("v0001", 15)
    ((job, _),) = toy.jobs.list_with_progress()
    (failure,) = toy.jobs.failures(job.id)
    assert (failure.path, failure.stage) == ("kind1", "find")
    assert os.strerror(number) in failure.reason


def test_the_products_folder_itself_that_may_not_be_read_is_refused(
    toy: ToyPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_scandir(monkeypatch, "products", errno.EACCES)
    with pytest.raises(WrongUse, match=r"products cannot be read: Permission denied"):
        toy.plan()
    assert toy.jobs.list_with_progress() == []


def test_what_is_left_out_on_purpose_is_counted_with_the_job(toy: ToyPipeline) -> None:
    toy.draw("drafts/1.png", seed=1)
    for name in (".hidden.jpg", "notes.txt", "list.TXT", "README", "@eaDir/00.png/thumb.jpg"):
        file = toy.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    (toy.root / ".imgrecignore").write_text("# no product yet\ndrafts/\n")
    job_id = toy.plan()
    assert toy.jobs.get(job_id).left_out == {
        "not an image's name (.txt)": 2,
        "excluded by .imgrecignore": 1,
        "hidden": 1,
        "not an image's name (no suffix)": 1,
        "system folder @eaDir": 1,
    }
    progress = toy.jobs.progress(job_id)
    assert (progress.images, progress.skipped, progress.warnings) == (30, 0, 0)


def test_a_warning_of_the_listing_is_no_image(toy: ToyPipeline) -> None:
    (toy.root / "shoe.jpg").mkdir()
    job_id = toy.plan()
    progress = toy.jobs.progress(job_id)
    assert (progress.images, progress.skipped, progress.warnings) == (30, 0, 1)
    ((_, listed),) = toy.jobs.list_with_progress()
    assert listed == progress


def test_a_folder_with_nothing_but_what_is_left_out_says_what_that_was(
    toy: ToyPipeline, tmp_path: Path
) -> None:
    toy.root = tmp_path / "none"
    (toy.root / "__MACOSX").mkdir(parents=True)
    (toy.root / "photo.cr2").write_bytes(b"x")
    with pytest.raises(WrongUse, match=r"contains no images.*\(\.cr2\), 1 system folder __MACOSX"):
        toy.plan()


def test_a_link_to_the_folder_is_the_folder(toy: ToyPipeline, tmp_path: Path) -> None:
    toy.rebuild()
    (tmp_path / "link").symlink_to(toy.root)
    toy.root = tmp_path / "link"
    assert toy.jobs.progress(toy.plan()).reused == 30


@pytest.mark.parametrize("roots", ["{here}", "/elsewhere:{here}", "{here}/..", "{link}"])
def test_a_folder_below_any_allowed_root_is_taken(
    toy: ToyPipeline, tmp_path: Path, roots: str
) -> None:
    (tmp_path / "link").symlink_to(toy.root)
    allowed = roots.format(here=toy.root, link=tmp_path / "link")
    toy.settings = toy.settings.model_copy(update={"image_roots": allowed})
    assert toy.plan()


@pytest.mark.parametrize("trick", ["..", "products/../..", "/etc", "link", "a" * 300, "a\0b"])
def test_no_folder_outside_of_the_roots_is_taken(
    toy: ToyPipeline, tmp_path: Path, trick: str
) -> None:
    (tmp_path / "link").symlink_to("/etc")
    toy.settings = toy.settings.model_copy(update={"image_roots": str(toy.root)})
    toy.root = tmp_path / trick
    with pytest.raises(WrongUse):
        toy.plan()
    assert toy.jobs.list_with_progress() == []


def test_a_folder_with_a_smiling_name_is_a_folder(toy: ToyPipeline, tmp_path: Path) -> None:
    toy.root = toy.root.rename(tmp_path / "👟 Schuhe")
    assert toy.rebuild() == ("v0001", 30, 0)


def test_a_root_s_name_is_no_prefix_of_another(toy: ToyPipeline) -> None:
    allowed = str(toy.root)[:-1]  # /x/product allows nothing in /x/products
    toy.settings = toy.settings.model_copy(update={"image_roots": allowed})
    with pytest.raises(WrongUse, match="outside of IMAGE_ROOTS"):
        toy.plan()
