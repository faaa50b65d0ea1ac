"""Running workers see what is added to the index and removed from it, without a rebuild."""

from __future__ import annotations

from pathlib import Path

from live_stack import LiveStack, draw_folder, draw_product, until


def test_workers_find_an_added_photo_and_no_longer_a_removed_one(
    stack: LiveStack, tmp_path: Path
) -> None:
    draw_folder(stack.products, 6)
    stack.workers("embed", "index", "query")
    version = stack.rebuild()["index_version"]
    photo = tmp_path / "new.jpg"
    draw_product(photo, 9000)

    def is_found() -> bool:
        answer = stack.query(photo, "--top-k", "20")
        assert answer["index_version"] == version
        return any(match["product_id"] == "new/arrival" for match in answer["matches"])

    assert not is_found()
    assert stack.imgrec("add", str(photo), "--product", "new/arrival").returncode == 0
    until(is_found, "the added photo is found")
    assert stack.imgrec("remove", "new/arrival").returncode == 0
    until(lambda: not is_found(), "the removed photo is gone")
    assert stack.rebuild()["images"] == 6
    assert not is_found()
