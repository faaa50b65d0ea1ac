"""A path that a database's index cannot hold is told, under a name that it can."""

from __future__ import annotations

from pathlib import Path

import pytest
from catalogue_files import import_text

from pipeline.errors import WrongUse
from pipeline.images.failure import Failure
from pipeline.images.find import ImageFile
from pipeline.images.new_images import NewFiles
from pipeline.images.path_length import MAX_PATH_BYTES, without_long_paths
from pipeline.index.live_changes import RemovedImage
from pipeline.index.versions import Version
from pipeline.store.database import Database
from pipeline.store.duplicates import Duplicates
from pipeline.store.jobs import Jobs
from pipeline.store.live_changes import LiveChanges
from pipeline.store.products import Products

# Different letters of three bytes each, which PostgreSQL cannot make smaller.
LONGEST = "".join(chr(0x4E00 + number) for number in range(MAX_PATH_BYTES // 3))


def test_the_longest_path_fits_wherever_a_database_keeps_paths(database: Database) -> None:
    jobs = Jobs(database)
    job_id = jobs.create(
        Path("/p"),
        full=False,
        save_preprocessed=False,
        fingerprint=None,
        base_version=None,
        lease_s=600,
    )
    jobs.shards.add(job_id, [], [Failure(LONGEST, "find", "unreadable")], 600)
    version = Version(Path("/v"), {"changes_seen": 0}, 0)
    LiveChanges(database).remove([RemovedImage(LONGEST, LONGEST, 1, 1)], version)
    import_text(Products(database), f"product_id,image\n{LONGEST},{LONGEST}\n")
    Duplicates(database).decide(LONGEST, LONGEST[::-1], same=False)
    assert [failure.path for failure in jobs.failures(job_id)] == [LONGEST]


def test_paths_that_are_too_long_are_failures_under_short_names_of_their_own() -> None:
    longer = [f"{LONGEST}/{number}.jpg" for number in range(3)]
    broken = Failure(longer[2], "find", "the link leads to nothing")
    fits = [ImageFile(path, 1, 1) for path in ("a.jpg", LONGEST)]
    listing = [*fits, *(ImageFile(path, 1, 1) for path in longer[:2]), broken]
    found = list(without_long_paths(listing))
    assert found[:2] == fits
    failures = [each for each in found[2:] if isinstance(each, Failure)]
    assert len({failure.path for failure in failures}) == 3
    assert all(len(failure.path.encode()) <= MAX_PATH_BYTES for failure in failures)
    assert all(LONGEST.startswith(failure.path[:300]) for failure in failures)
    assert "1,206 bytes" in failures[0].reason
    assert failures[2].reason == broken.reason
    assert list(without_long_paths(listing)) == found  # as the next listing names them


def test_an_image_whose_path_is_too_long_is_not_added(tmp_path: Path) -> None:
    place = Path(*["a" * 200] * 7, "b.jpg")
    with pytest.raises(WrongUse, match=r"1,412 bytes, more than 1,200"):
        NewFiles(tmp_path).path_of(str(tmp_path / place))


def test_an_import_leaves_out_long_paths_and_refuses_long_ids(database: Database) -> None:
    text = f"product_id,title,image\na,A,{LONGEST}.jpg\n{LONGEST}b,B,b.jpg\nc,C,c.jpg\n"
    outcome, feed = import_text(Products(database), text)
    assert (outcome.products, outcome.images) == (2, 1)
    (warned,), (refused,) = feed.problems.warnings, feed.problems.bad
    assert (warned.line, refused.line) == (2, 3)
    assert "1,204 bytes" in warned.reason
    assert "1,201 bytes" in refused.reason
