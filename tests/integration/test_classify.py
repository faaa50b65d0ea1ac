"""A picture is classified by a real worker, before anything was indexed."""

from __future__ import annotations

from live_stack import ROOT, LiveStack


def test_a_picture_is_classified_without_an_index_now_or_later(stand: LiveStack) -> None:
    stand.worker("query")
    image = next(
        file
        for file in sorted((ROOT / "data" / "products" / "shoe").glob("*.jpg"))
        if "red" in file.name
    )
    answer = stand.answer("classify", str(image), "--wait")
    assert set(answer) == {"category", "attributes"}
    assert answer["category"]["label"] == "shoe"
    assert answer["attributes"][0]["label"] == "red"
    done = stand.imgrec("classify", str(image), "--wait")
    assert done.returncode == 0
    assert done.stdout.startswith("Category: shoe (confidence ")
    assert "\nAttributes:\n - color: red (confidence " in done.stdout
    query_id = stand.answer("classify", str(image))["query_id"]
    assert stand.answer("result", query_id, "--wait") == answer
