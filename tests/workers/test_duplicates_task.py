"""The search for duplicates as an index worker does it, and queries that show one of each group."""

from __future__ import annotations

import errno
import io
import os
import time
from typing import Any

import numpy as np
import pytest
from inline_worker import InlineWorker
from PIL import Image

from pipeline.duplicates.pairs import Kind
from pipeline.errors import (
    Conflict,
    ImgrecError,
    JobFailed,
    NotFound,
    ServerUnavailable,
    SetupError,
)
from pipeline.images.find import ImageFile
from pipeline.index.live_changes import removed_images
from pipeline.micro_batcher import Batcher
from pipeline.store.duplicates import Search
from workers import duplicates as task
from workers import query
from workers.live_changes import add_image
from workers.routes import FIND_DUPLICATES


def shapes(seed: int) -> Image.Image:
    """Draw an image that a hash can tell from others."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
    return coarse.resize((240, 240), Image.Resampling.BICUBIC)


@pytest.fixture
def shop(inline_worker: InlineWorker) -> InlineWorker:
    """A shop with five products and copies of two."""
    root = inline_worker.toy.root
    for old in [*root.rglob("*.png")]:
        old.unlink()
    for number in range(5):
        shapes(number).save(root / f"{number}.png")
    (root / "0-copy.png").write_bytes((root / "0.png").read_bytes())
    shapes(1).resize((120, 120)).save(root / "1-small.jpg", quality=60)
    inline_worker.resources.batcher = Batcher(
        lambda images: inline_worker.toy.embed_images(list(images)), 8
    )
    inline_worker.rebuild()
    return inline_worker


def search(inline_worker: InlineWorker, threshold: float | None = 0.01) -> Search:
    resources = inline_worker.resources
    planned = resources.duplicates.plan(resources.versions.current().identity, threshold)
    task.find_duplicates(resources, planned.id)
    return resources.duplicates.get(planned.id)


def kinds(inline_worker: InlineWorker) -> dict[tuple[str, str], Kind]:
    return {
        pair.key: pair.kind for pair in inline_worker.resources.duplicates.published().result.pairs
    }


def test_copies_are_found_and_how_they_are_the_same_is_told(shop: InlineWorker) -> None:
    assert search(shop, 0.9).state == "done"
    found = kinds(shop)
    assert found["0-copy.png", "0.png"] == Kind.IDENTICAL
    assert found["1-small.jpg", "1.png"] == Kind.REENCODED
    facts = shop.resources.duplicates.published().result.facts
    assert (facts["1-small.jpg"].width, facts["1.png"].width) == (120, 240)
    assert facts["0.png"] == facts["0-copy.png"]
    assert facts["0.png"].bytes == (shop.toy.root / "0.png").stat().st_size


def test_a_file_that_has_changed_or_gone_is_not_compared(shop: InlineWorker) -> None:
    shapes(77).save(shop.toy.root / "1-small.jpg")
    (shop.toy.root / "2.png").unlink()
    assert search(shop, 0.01).state == "done"
    read = shop.resources.duplicates.published().result.facts
    assert "1-small.jpg" not in read
    assert "2.png" not in read
    assert kinds(shop).get(("1-small.jpg", "1.png"), Kind.SIMILAR) == Kind.SIMILAR
    assert kinds(shop)["0-copy.png", "0.png"] == Kind.IDENTICAL


def test_a_message_that_comes_twice_or_names_nothing_does_nothing(shop: InlineWorker) -> None:
    done = search(shop)
    before = shop.resources.duplicates.revision()
    task.find_duplicates(shop.resources, done.id)
    task.find_duplicates(shop.resources, "nothing")
    assert shop.resources.duplicates.revision() == before


def test_a_worker_that_is_asked_to_end_gives_the_search_back(shop: InlineWorker) -> None:
    shop.resources.stopping.set()
    assert search(shop).state == "planned"
    shop.resources.stopping.clear()
    assert search(shop).state == "done"


def test_a_search_keeps_its_lease_while_one_batch_takes_longer(
    shop: InlineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task, "LEASE_S", 1.0)
    monkeypatch.setattr(task, "RENEW_S", 0.1)
    taken: list[object] = []

    def slow(*_: object) -> object:
        for _ in range(15):
            time.sleep(0.1)
            taken.append(resources.duplicates.claim(planned.id, "another", 60.0))
        raise NotFound("enough")

    resources = shop.resources
    planned = resources.duplicates.plan(resources.versions.current().identity, 0.9)
    monkeypatch.setattr(task, "find_candidates", slow)
    with pytest.raises(NotFound, match="enough"):
        task.find_duplicates(resources, planned.id)
    assert taken == [None] * 15


def test_a_search_on_a_host_that_sees_no_photo_fails_and_the_next_one_finds_what_is_there(
    shop: InlineWorker,
) -> None:
    root = shop.toy.root
    away = root.rename(root.with_name("unmounted"))
    root.mkdir()
    with pytest.raises(SetupError, match="is empty on this host"):
        search(shop, 0.9)
    root.rmdir()
    away.rename(root)
    assert search(shop, 0.9).state == "done"
    assert Kind.REENCODED in kinds(shop).values()


def test_a_search_that_cannot_work_says_why(shop: InlineWorker) -> None:
    resources = shop.resources
    planned = resources.duplicates.plan("v0001/another-job", None)
    with pytest.raises(NotFound, match="v0001 was deleted"):
        task.find_duplicates(resources, planned.id)
    failed = resources.duplicates.get(planned.id)
    assert failed.state == "failed"
    assert "imgrec duplicates" in str(failed.error)


def test_a_search_whose_worker_dies_of_it_each_time_is_given_up(shop: InlineWorker) -> None:
    resources = shop.resources
    planned = resources.duplicates.plan(resources.versions.current().identity, 0.9)
    for _ in range(resources.settings.shard_max_attempts):
        assert resources.duplicates.claim(planned.id, "a worker that dies", -1.0)
        resources.stopping.set()  # to be given back counts no attempt
        task.find_duplicates(resources, planned.id)
        resources.stopping.clear()
        with resources.database.transaction() as tx:
            tx.rows("UPDATE duplicate_searches SET state = 'running'")
    assert resources.duplicates.claim(planned.id, "a worker that dies", -1.0)
    with pytest.raises(JobFailed, match="begun 4 times and never ended"):
        task.find_duplicates(resources, planned.id)
    failed = resources.duplicates.get(planned.id)
    assert failed.state == "failed"
    assert "more memory" in str(failed.error)


def test_a_search_outlives_a_database_that_is_away_for_a_while(
    shop: InlineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.outage.RETRY_S", 0.0)
    for name in ("renew", "finish"):
        fail_at_first(monkeypatch, shop.resources.duplicates, name)
    assert search(shop, 0.9).state == "done"
    assert kinds(shop)


def fail_at_first(monkeypatch: pytest.MonkeyPatch, target: Any, name: str) -> None:
    call, outages = getattr(target, name), [ServerUnavailable("It is away.")] * 2

    def run(*args: object) -> object:
        if outages:
            raise outages.pop()
        return call(*args)

    monkeypatch.setattr(target, name, run)


def test_a_search_of_a_worker_that_died_before_the_clock_was_set_back_is_taken(
    shop: InlineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    duplicates = shop.resources.duplicates
    planned = duplicates.plan(shop.resources.versions.current().identity, 0.9)
    duplicates.claim(planned.id, "a worker that dies", 60.0)
    right = time.clock_gettime
    monkeypatch.setattr(time, "clock_gettime", lambda clock: right(clock) - 86_400)
    assert duplicates.get(planned.id).is_stale
    task.find_duplicates(shop.resources, planned.id)
    assert duplicates.get(planned.id).state == "done"


def test_a_search_without_room_for_its_temporary_file_says_where(
    shop: InlineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.BytesIO):
        def write(self, _: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pipeline.duplicates.looks.tempfile.TemporaryFile", Full)
    with pytest.raises(ImgrecError, match=r"No space left on device.*TMPDIR"):
        search(shop, 0.9)


def test_the_message_reaches_the_task(shop: InlineWorker) -> None:
    resources = shop.resources
    planned = resources.duplicates.plan(resources.versions.current().identity, 0.9)
    shop.send(FIND_DUPLICATES, planned.id)
    shop.work()
    assert resources.duplicates.get(planned.id).state == "done"


# -- queries


def ask(inline_worker: InlineWorker, **options: Any) -> dict[str, Any]:
    data = (inline_worker.toy.root / "0.png").read_bytes()
    return query.query_image(inline_worker.resources, data, 10, options)


def ids(answer: dict[str, Any]) -> list[str]:
    return [match["product_id"] for match in answer["matches"]]


def test_a_query_shows_one_of_each_group(shop: InlineWorker) -> None:
    search(shop, 0.9)
    everything, collapsed = ids(ask(shop)), ids(ask(shop, collapse="duplicates"))
    assert len(everything) == 7
    assert [name for name in everything if name in collapsed] == collapsed
    for one, other in (("0", "0-copy"), ("1", "1-small")):
        assert len({one, other} & set(collapsed)) == 1
    # The better match of the two is the one that is shown.
    assert collapsed[0] == everything[0]


def test_a_decision_and_a_new_search_count_at_once_in_spite_of_the_cache(
    shop: InlineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.store.refreshing.LOOK_EVERY_S", 0.0)
    search(shop, 0.9)
    before = ids(ask(shop, collapse="duplicates"))
    shop.resources.duplicates.decide("0.png", "0-copy.png", same=False)
    after = ids(ask(shop, collapse="duplicates"))
    assert set(after) - set(before) == {"0", "0-copy"} - set(before)
    assert len(after) == len(before) + 1


def test_an_image_that_was_removed_or_added_since_belongs_to_no_group(
    shop: InlineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.store.refreshing.LOOK_EVERY_S", 0.0)
    resources = shop.resources
    search(shop, 0.9)
    version = resources.versions.current()
    resources.live_changes.remove(removed_images(version, ["0.png"], "0"), version)
    answer = ask(shop, collapse="duplicates")
    assert "0-copy" in ids(answer)
    assert "warnings" not in answer  # to search again would find nothing else
    changed = resources.live_changes.all().since(version).paths
    groups = resources.duplicates.published().groups(version, str, changed)
    assert [sorted(group.paths) for group in groups] == [["1-small.jpg", "1.png"]]
    data = query.image_vector(resources, (shop.toy.root / "0.png").read_bytes())
    file = ImageFile("again.png", 1, 1, "0" * 64)
    add_image(resources, "again", file, data)
    (warning,) = ask(shop, collapse="duplicates")["warnings"]
    assert "added since v0001 was built are not collapsed" in warning


def test_without_a_search_the_sentence_says_what_to_do(shop: InlineWorker) -> None:
    with pytest.raises(Conflict, match="run 'imgrec duplicates'"):
        ask(shop, collapse="duplicates")


def test_the_groups_of_an_earlier_index_hold_for_what_has_not_changed_and_it_is_told(
    shop: InlineWorker,
) -> None:
    search(shop, 0.9)
    shapes(1).resize((90, 90)).save(shop.toy.root / "1-small.jpg", quality=90)
    shapes(50).save(shop.toy.root / "new.png")
    shop.rebuild()
    answer = ask(shop, collapse="duplicates")
    (warning,) = answer["warnings"]
    assert "last searched for in index v0001: images that are new in v0002" in warning
    assert len({"0", "0-copy"} & set(ids(answer))) == 1
    assert {"1", "1-small", "new"} <= set(ids(answer))
