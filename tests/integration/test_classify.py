"""A picture is classified by a real worker, before anything was indexed."""

from __future__ import annotations

from live_stack import ROOT, LiveStack


def test_a_picture_is_classified_without_an_index_now_or_later(stack: LiveStack) -> None:
    stack.worker("query")
    image = next(
        file
        for file in sorted((ROOT / "data" / "products" / "shoe").glob("*.jpg"))
        if "red" in file.name
    )
    answer = stack.answer("classify", str(image), "--wait")
    assert set(answer) == {"category", "attributes"}
    assert answer["category"]["label"] == "shoe"
    assert answer["attributes"][0]["label"] == "red"
    done = stack.imgrec("classify", str(image), "--wait")
    assert done.returncode == 0
    assert done.stdout.startswith("Category: shoe (confidence ")
    assert "\nAttributes:\n - color: red (confidence " in done.stdout
    query_id = stack.answer("classify", str(image))["query_id"]
    assert stack.answer("result", query_id, "--wait") == answer
