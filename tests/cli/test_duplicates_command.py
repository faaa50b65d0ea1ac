"""`imgrec duplicates`: groups as a table, as JSON and as a page; decisions that are remembered."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inline_worker import InlineWorker
from PIL import Image

Run = Callable[..., Any]


@pytest.fixture
def shop(inline_worker: InlineWorker) -> InlineWorker:
    """A shop with a copy of one product, and a smaller version of it."""
    root = inline_worker.toy.root
    rng = np.random.default_rng(5)
    image = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
    image = image.resize((200, 160), Image.Resampling.BICUBIC)
    image.save(root / "bag.png")
    (root / "bag copy.png").write_bytes((root / "bag.png").read_bytes())
    image.resize((100, 80)).save(root / "bag small.jpg", quality=70)
    inline_worker.rebuild()
    inline_worker.inline = True
    return inline_worker


def groups(answer: dict[str, Any]) -> list[set[str]]:
    return [{image["filename"] for image in group["images"]} for group in answer["groups"]]


def test_groups_are_found_and_say_how_their_images_are_the_same(
    shop: InlineWorker, imgrec: Run
) -> None:
    answer = imgrec("duplicates", "--threshold", "0.98", "--json").object
    assert (answer["index_version"], answer["threshold"], answer["images"]) == ("v0001", 0.98, 23)
    (group,) = [each for each in answer["groups"] if each["best"].startswith("bag")]
    kinds = {image["filename"]: image["kind"] for image in group["images"]}
    assert set(kinds) == {"bag.png", "bag copy.png", "bag small.jpg"}
    assert kinds["bag small.jpg"] == "re-encoded"
    assert kinds[group["best"]] is None
    assert "identical" in kinds.values()
    small = group["images"][-1]
    assert (small["width"], small["height"], small["product_id"]) == (100, 80, "bag small")
    assert "remove" not in answer
    assert len(shop.messages) == 0
    shown = imgrec("duplicates", "--threshold", "0.98")
    assert "re-encoded" in shown.out
    assert "200x160" in shown.out


def test_the_second_time_nothing_is_searched(
    shop: InlineWorker, imgrec: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = imgrec("duplicates", "--json").object
    monkeypatch.setattr(shop, "send", lambda *args: 1 / 0)
    assert imgrec("duplicates", "--json").object == first


def test_the_best_image_is_kept_and_the_others_are_proposed_for_removal(
    shop: InlineWorker, imgrec: Run
) -> None:
    args = ("duplicates", "--threshold", "0.98", "--keep", "best")
    answer = imgrec(*args, "--json").object
    (best,) = [group["best"] for group in answer["groups"] if group["best"].startswith("bag")]
    assert {"bag.png", "bag copy.png", "bag small.jpg"} - {best} <= set(answer["remove"])
    assert best not in answer["remove"]
    assert "bag small.jpg" in answer["remove"]
    assert "remove" in imgrec(*args).out
    assert (shop.toy.root / "bag small.jpg").exists()  # it is a proposal


def test_what_is_not_the_same_is_remembered_and_can_be_forgotten(
    shop: InlineWorker, imgrec: Run
) -> None:
    args = ("duplicates", "--threshold", "0.98", "--json")
    before = groups(imgrec(*args).object)
    decision = imgrec("duplicates", "--not-same", "bag small", "bag.png", "--json").object
    assert decision == {"image": "bag small.jpg", "other": "bag.png", "same": False}
    imgrec("duplicates", "--not-same", "bag copy", "bag small.jpg")
    after = groups(imgrec(*args).object)
    assert {"bag.png", "bag copy.png"} in after
    assert not any("bag small.jpg" in group for group in after)
    shop.toy.draw("another.png", seed=99)
    shop.rebuild()
    assert not any("bag small.jpg" in group for group in groups(imgrec(*args).object))
    assert "Forgotten" in imgrec("duplicates", "--same", "bag small", "bag").err
    imgrec("duplicates", "--same", "bag small", "bag copy")
    assert {frozenset(group) for group in before} == {
        frozenset(group) for group in groups(imgrec(*args).object)
    }


def test_an_image_may_be_named_composed_where_the_disk_has_it_decomposed(
    shop: InlineWorker, imgrec: Run
) -> None:
    on_disk = unicodedata.normalize("NFD", "café.png")
    shop.toy.draw(on_disk, seed=900)
    shop.rebuild()
    decision = imgrec("duplicates", "--not-same", "café.png", "bag.png", "--json").object
    assert {decision["image"], decision["other"]} == {on_disk, "bag.png"}


@pytest.mark.parametrize(
    ("args", "code", "sentence"),
    [
        (("--not-same", "bag", "gone"), 2, "no image or product 'gone'"),
        (("--not-same", "bag", "bag.png"), 2, "Name two images"),
        (("--threshold", "2"), 2, "above 0 and at most 1, or auto"),
        (("--threshold", "nan"), 2, "above 0 and at most 1, or auto"),
        (("--not-same", "a", "b", "--same", "a", "b"), 2, "not both"),
    ],
)
def test_what_cannot_work_is_a_sentence(
    shop: InlineWorker, imgrec: Run, args: tuple[str, ...], code: int, sentence: str
) -> None:
    done = imgrec("duplicates", *args)
    assert done.code == code
    assert sentence in done.err


def test_without_an_index_or_a_worker_it_says_so(
    inline_worker: InlineWorker, imgrec: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert imgrec("duplicates").code == 3
    inline_worker.rebuild()
    monkeypatch.setattr(inline_worker, "workers", lambda patience_s=1.0: {"index": 0})
    done = imgrec("duplicates")
    assert done.code == 4
    assert "No worker listens on queue 'index'" in done.err
    monkeypatch.undo()
    done = imgrec("duplicates", "--timeout", "0")
    assert done.code == 1
    assert "again to wait for it" in done.err


def test_the_page_shows_the_groups_with_their_names_escaped(
    shop: InlineWorker, imgrec: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cli import duplicates_report, html_page

    answer = imgrec("duplicates", "--threshold", "0.98", "--json").object
    answer["groups"][0]["images"][0]["filename"] = "<script>.jpg"
    asked = []

    class Pending:
        def __init__(self, wiring: Any, task: str, args: Any, timeout: float, local: bool) -> None:
            asked.append(args)

        def answer(self) -> dict[str, str]:
            return {"<script>.jpg": "AAAA"}

    monkeypatch.setattr(html_page, "PendingQuery", Pending)
    file = tmp_path / "page.html"
    duplicates_report.write_duplicates(None, file, answer, local=False)  # type: ignore[arg-type]
    page = file.read_text()
    assert "<script" not in page
    assert "&lt;script&gt;.jpg" in page
    assert "data:image/jpeg;base64,AAAA" in page
    assert "no image" in page
    assert asked[0][0] == "v0001"
