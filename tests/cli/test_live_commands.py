"""`imgrec add` and `imgrec remove`: found at once, kept by rebuilds, undone by rollbacks."""

from __future__ import annotations

import os
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inline_worker import InlineWorker
from PIL import Image

from pipeline.rebuild.retry import plan_retry
from workers import product_images, query
from workers.live_changes import remove_images

Run = Callable[..., Any]


@pytest.fixture
def shop(answers_here: InlineWorker) -> InlineWorker:
    """A published shop whose query worker is this process."""

    answers_here.rebuild()
    return answers_here


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return draw(tmp_path / "photo.png", seed=500)


def draw(file: Path, seed: int) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((16, 16), Image.Resampling.NEAREST).save(file)
    return file


def ask(inline_worker: InlineWorker, file: Path, **options: Any) -> list[tuple[str, str]]:
    """Return (filename, product) of the best matches, as another worker would find them."""
    inline_worker.start_again()
    answer = query.query_image(inline_worker.resources, file.read_bytes(), 3, options)
    return [(match["filename"], match["product_id"]) for match in answer["matches"]]


def test_an_added_photo_is_found_at_once_as_its_product(
    shop: InlineWorker, imgrec: Run, photo: Path
) -> None:
    done = imgrec("add", photo, "--product", "lamp/one", "--json")
    assert done.object == {
        "product_id": "lamp/one",
        "index_version": "v0001",
        "added": ["lamp/one/photo.png"],
    }
    assert ask(shop, photo)[0] == ("lamp/one/photo.png", "lamp/one")
    assert (shop.toy.root / "lamp/one/photo.png").read_bytes() == photo.read_bytes()
    assert list(product_images.thumbnails(shop.resources, "v0001", ["lamp/one/photo.png"]))
    # A version that is asked for by its name is as it was published.
    assert ask(shop, photo, index_version="v0001")[0][0] == ask(shop, photo)[1][0]


def test_a_photo_of_a_decomposed_name_is_found_as_its_product(
    shop: InlineWorker, imgrec: Run
) -> None:
    """As a Mac writes it."""
    folder = shop.toy.root / unicodedata.normalize("NFD", "zubehör")
    folder.mkdir()
    there = draw(folder / unicodedata.normalize("NFD", "é.png"), seed=501)
    assert imgrec("add", there, "--product", "lamp").code == 0
    assert ask(shop, there)[0][1] == "lamp"
    shop.rebuild()
    assert ask(shop, there)[0][1] == "lamp"
    path = there.relative_to(shop.toy.root).as_posix()
    typed = unicodedata.normalize("NFC", path)
    assert typed != path
    assert remove_images(shop.resources, "lamp", (path,), typed)[1] == [path]


@pytest.mark.parametrize(
    "name", [".hidden.png", ".folder/a.png", "@eaDir/a.png", "photo", b"\xff.png"]
)
def test_a_photo_that_no_rebuild_finds_is_not_added(
    shop: InlineWorker, imgrec: Run, photo: Path, name: str | bytes
) -> None:
    there = shop.toy.root / os.fsdecode(name)
    there.parent.mkdir(exist_ok=True)
    there.write_bytes(photo.read_bytes())
    done = imgrec("add", there, "--product", "lamp")
    assert done.code == 2, done.err
    assert "rebuild does not find" in done.err or "is not UTF-8" in done.err


@pytest.mark.parametrize("product", ["", "  ", "a\nb", "\x1b[2J", "\udc80", "p" * 4097])
def test_a_photo_that_is_there_is_not_added_to_a_product_without_a_name(
    shop: InlineWorker, imgrec: Run, product: str
) -> None:
    there = next(shop.toy.root.rglob("*.png"))
    done = imgrec("add", there, "--product", product)
    assert done.code == 2
    assert done.err.startswith("Error: No product can have the id ")
    assert not shop.resources.live_changes.all().images


def test_a_photo_of_another_product_stays_its_own(
    shop: InlineWorker, imgrec: Run, photo: Path
) -> None:
    there = shop.toy.root / "kind0" / "04.png"
    done = imgrec("add", there, "--product", "lamp")
    assert done.code == 2
    assert "kind0/04.png shows product 'kind0/04' in the index" in done.err
    assert imgrec("add", there, "--product", "kind0/04").code == 0
    assert imgrec("add", photo, "--product", "lamp").code == 0
    assert imgrec("add", shop.toy.root / "lamp/photo.png", "--product", "lamp").code == 0
    done = imgrec("add", shop.toy.root / "lamp/photo.png", "--product", "chair")
    assert done.code == 2
    assert "shows product 'lamp'" in done.err
    assert ask(shop, there)[0] == ("kind0/04.png", "kind0/04")


def test_a_running_worker_sees_a_change(shop: InlineWorker, imgrec: Run, photo: Path) -> None:
    data = photo.read_bytes()
    before = query.query_image(shop.resources, data, 1)
    imgrec("add", photo, "--product", "lamp")
    vars(shop.resources._changed_indexes._changes.__self__)["_look_at"] = 0.0  # a second later
    shop.resources.catalogue.get(now=True)
    after = query.query_image(shop.resources, data, 1)
    assert before["matches"][0]["product_id"] != "lamp"
    assert after["matches"][0]["product_id"] == "lamp"


def test_a_rebuild_takes_an_added_photo_in_without_embedding_it_twice(
    shop: InlineWorker, imgrec: Run, photo: Path
) -> None:
    imgrec("add", photo, "--product", "lamp")
    job = shop.rebuild()
    assert shop.job(job).index_version == "v0002"
    assert shop.progress(job).embedded == 0  # its vector came from the cache
    assert ask(shop, photo)[0] == ("lamp/photo.png", "lamp")
    assert shop.resources.live_changes.all().images == ()


def test_a_removed_product_is_gone_at_once_and_after_each_rebuild(
    shop: InlineWorker, imgrec: Run
) -> None:
    file = shop.toy.root / "kind0/04.png"
    assert ask(shop, file)[0][1] == "kind0/04"
    assert imgrec("remove", "kind0/04", "--json").object == {
        "product_id": "kind0/04",
        "index_version": "v0001",
        "removed": ["kind0/04.png"],
    }
    assert "kind0/04" not in [product for _, product in ask(shop, file)]
    assert imgrec("remove", "kind0/04").code == 2
    for full in (False, True):
        job = shop.job(shop.rebuild(full=full))
        assert job.left_out == {"removed with 'imgrec remove'": 1}
        assert "kind0/04.png" not in shop.resources.versions.current().paths
        assert "kind0/04" not in [product for _, product in ask(shop, file)]
    assert file.exists()


def test_another_photo_under_a_removed_path_is_indexed(shop: InlineWorker, imgrec: Run) -> None:
    imgrec("remove", "kind0/04")
    file = draw(shop.toy.root / "kind0/04.png", seed=501)
    os.utime(file, (1, 1))
    shop.rebuild()
    assert ask(shop, file)[0][1] == "kind0/04"


def test_a_removed_product_can_be_added_again(shop: InlineWorker, imgrec: Run) -> None:
    imgrec("remove", "kind0/04")
    file = shop.toy.root / "kind0/04.png"
    assert imgrec("add", file, "--product", "kind0/04").code == 0
    assert ask(shop, file)[0] == ("kind0/04.png", "kind0/04")
    shop.rebuild()
    assert ask(shop, file)[0] == ("kind0/04.png", "kind0/04")


def test_an_added_photo_can_be_removed(shop: InlineWorker, imgrec: Run, photo: Path) -> None:
    imgrec("add", photo, "--product", "lamp")
    shop.start_again()
    assert imgrec("remove", "lamp", "--json").object["removed"] == ["lamp/photo.png"]
    assert "lamp" not in [product for _, product in ask(shop, photo)]
    shop.rebuild()
    assert "lamp" not in [product for _, product in ask(shop, photo)]


def test_one_photo_of_a_product_is_removed(
    shop: InlineWorker, imgrec: Run, photo: Path, tmp_path: Path
) -> None:
    other = draw(tmp_path / "other.png", seed=501)
    imgrec("add", photo, other, "--product", "lamp")
    done = imgrec("remove", "lamp", "--image", "lamp/photo.png", "--json")
    assert done.object["removed"] == ["lamp/photo.png"]
    assert ask(shop, photo)[0][0] != "lamp/photo.png"
    assert ask(shop, other)[0][0] == "lamp/other.png"
    again = imgrec("remove", "lamp", "--image", "lamp/photo.png")
    assert (again.code, "has no image 'lamp/photo.png'" in again.err) == (2, True)


def test_a_retry_keeps_what_was_added_and_removed(
    shop: InlineWorker, imgrec: Run, photo: Path
) -> None:
    bad = shop.toy.root / "bad.png"
    bad.write_bytes(b"no image")
    job = shop.rebuild()
    draw(bad, seed=502)
    imgrec("add", photo, "--product", "lamp")
    imgrec("remove", "kind0/04")
    here = shop.resources
    shop.advance(plan_retry(job, here.settings, here.jobs, here.versions, here.feeds))
    shop.work()
    files = [name for name, _ in ask(shop, photo)]
    assert files[0] == "lamp/photo.png"
    paths = shop.resources.versions.current().paths
    assert {"bad.png", "lamp/photo.png"} <= set(paths)
    assert "kind0/04.png" not in paths
    assert len(paths) == len(set(paths)) == 21


def test_a_rollback_undoes_what_was_changed_since_its_rebuild(
    shop: InlineWorker, imgrec: Run, photo: Path
) -> None:
    file = shop.toy.root / "kind0/04.png"
    imgrec("add", photo, "--product", "lamp")
    imgrec("remove", "kind0/04")
    done = imgrec("index", "rollback", "v0001")
    assert done.code == 0
    assert "Undone: 2 changes" in done.err
    assert "lamp" not in [product for _, product in ask(shop, photo)]
    assert ask(shop, file)[0][1] == "kind0/04"
    shop.rebuild()  # the files are as they are: the photo is in the folder, the product is, too
    assert ask(shop, file)[0][1] == "kind0/04"


def test_a_rollback_from_a_later_rebuild_undoes_them_too(shop: InlineWorker, imgrec: Run) -> None:
    imgrec("remove", "kind0/04")
    shop.rebuild()
    assert imgrec("index", "rollback").code == 0
    assert ask(shop, shop.toy.root / "kind0/04.png")[0][1] == "kind0/04"


def set_back(monkeypatch: pytest.MonkeyPatch, by_s: float) -> None:
    """Set the clock of SQLite back."""
    right = time.clock_gettime
    monkeypatch.setattr(time, "clock_gettime", lambda clock: right(clock) - by_s)


def test_the_order_of_changes_and_rebuilds_counts_not_the_clock(
    shop: InlineWorker, imgrec: Run, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = shop.toy.root / "kind0/04.png"
    with monkeypatch.context() as patch:
        set_back(patch, 7200)  # since the rebuild
        imgrec("add", photo, "--product", "lamp")
        imgrec("remove", "kind0/04")
    assert ask(shop, photo)[0][1] == "lamp"
    assert "kind0/04" not in [product for _, product in ask(shop, file)]
    with monkeypatch.context() as patch:
        set_back(patch, 14_400)
        shop.rebuild()
    draw(shop.toy.root / "lamp/photo.png", seed=503)
    shop.rebuild()
    # The change is in the rebuild: it no longer hides what the file shows now.
    assert ask(shop, photo)[0][1] != "lamp"
    assert imgrec("index", "rollback", "v0001").code == 0
    assert ask(shop, file)[0][1] == "kind0/04"


def test_changes_to_a_version_of_the_last_release_are_found(
    shop: InlineWorker, imgrec: Run, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its manifest does not say which changes its rebuild knew; their times do."""
    monkeypatch.setattr("pipeline.store.refreshing.LOOK_EVERY_S", 0.0)
    monkeypatch.setattr("pipeline.index.live_changes.changes_seen", lambda version: -1)
    monkeypatch.setattr("pipeline.store.live_changes.changes_seen", lambda version: -1)
    before = query.query_image(shop.resources, photo.read_bytes(), 3, {})
    imgrec("add", photo, "--product", "lamp")  # the first one of this database
    after = query.query_image(shop.resources, photo.read_bytes(), 3, {})
    assert "lamp" not in {match["product_id"] for match in before["matches"]}
    assert after["matches"][0]["product_id"] == "lamp"
    imgrec("remove", "lamp")
    gone = query.query_image(shop.resources, photo.read_bytes(), 3, {})
    assert gone["matches"] == before["matches"]
    assert imgrec("index", "rollback", "v0001").code == 0


def test_changes_are_found_after_the_database_was_restored_from_an_older_backup(
    shop: InlineWorker, imgrec: Run, photo: Path
) -> None:
    for seed in (504, 505):
        imgrec("add", draw(photo.with_name(f"{seed}.png"), seed), "--product", "lamp")
    shop.rebuild()
    with shop.resources.database.transaction() as tx:
        tx.rows("DELETE FROM live_changes")
        tx.rows("DELETE FROM revisions WHERE name = 'live changes'")
    imgrec("add", photo, "--product", "lamp")
    imgrec("remove", "kind0/04")
    assert ask(shop, photo)[0] == ("lamp/photo.png", "lamp")
    file = shop.toy.root / "kind0/04.png"
    assert "kind0/04" not in [product for _, product in ask(shop, file)]


@pytest.mark.parametrize("product", ["../lamp", "a/../../b", "/etc", ".hidden/x", ".."])
def test_a_product_names_no_place_outside_of_the_products_folder(
    shop: InlineWorker, imgrec: Run, photo: Path, product: str
) -> None:
    done = imgrec("add", photo, "--product", product)
    assert done.code == 2
    assert "No folder can be named after" in done.err
    assert sorted(each.name for each in shop.toy.root.iterdir()) == ["kind0", "kind1"]


def test_another_photo_of_the_same_name_is_not_overwritten(
    shop: InlineWorker, imgrec: Run, photo: Path
) -> None:
    imgrec("add", photo, "--product", "lamp")
    before = photo.read_bytes()
    draw(photo, seed=502)
    done = imgrec("add", photo, "--product", "lamp")
    assert done.code == 2
    assert "is another photo" in done.err
    assert (shop.toy.root / "lamp/photo.png").read_bytes() == before


def test_a_file_that_is_no_image_changes_nothing(
    shop: InlineWorker, imgrec: Run, photo: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    assert imgrec("add", photo, bad, "--product", "lamp").code == 2
    assert shop.resources.live_changes.all().images == ()
    assert not (shop.toy.root / "lamp").exists()


def test_an_unknown_product_is_named(shop: InlineWorker, imgrec: Run) -> None:
    done = imgrec("remove", "nothing")
    assert done.code == 2
    assert "has no product 'nothing'" in done.err


def test_without_an_index_both_say_what_makes_one(
    inline_worker: InlineWorker, imgrec: Run, photo: Path
) -> None:
    assert imgrec("add", photo, "--product", "lamp").code == 3
    assert imgrec("remove", "lamp").code == 3
