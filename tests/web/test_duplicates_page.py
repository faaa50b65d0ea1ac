"""The page of duplicates: search, look, and say which are not the same; queries that collapse."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import open_browser, open_page
from live_stack import LiveStack, draw_folder
from PIL import Image
from playwright.sync_api import Page, expect
from web_stand import WebServer, start_web

EVIL = "kind0/<img src=x onerror=window.ran=1>.jpg"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[LiveStack]:
    """A shop with a copy of one product, and a smaller version of another."""
    stack = LiveStack(tmp_path_factory.mktemp("shop"), model)
    stack.start_redis()
    draw_folder(stack.products, 8)
    first, second, *_ = sorted((stack.products / "kind0").glob("*.jpg"))
    (stack.products / EVIL).write_bytes(first.read_bytes())
    with Image.open(second) as image:
        image.resize((image.width // 2, image.height // 2)).save(
            stack.products / "kind0" / "small.jpg"
        )
    stack.workers("embed", "index", "query")
    stack.rebuild()
    yield stack
    stack.close()


@pytest.fixture(scope="module")
def web(stack: LiveStack) -> WebServer:
    return start_web(stack)


@pytest.fixture(scope="module")
def page(web: WebServer) -> Iterator[Page]:
    with open_browser() as browser, open_page(browser, web.url) as page:
        yield page
        assert page.evaluate("window.ran") is None


def screenshot(page: Page, name: str) -> None:
    if folder := os.environ.get("IMGREC_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def test_groups_are_searched_for_shown_and_taken_apart(page: Page, web: WebServer) -> None:
    page.goto("/duplicates")
    page.get_by_role("button", name="Search v0001 for duplicates").click()
    # A search that ends at once is over before its page is shown.
    ended, groups = page.get_by_role("link", name="Show the groups"), page.get_by_text(EVIL)
    expect(ended.or_(groups).first).to_be_visible(timeout=60_000)
    if ended.is_visible():
        ended.click()
    expect(groups.first).to_be_visible()
    group = page.locator("section", has_text=EVIL)
    expect(group.get_by_text("Identical")).to_be_visible()
    shown = group.locator(".tile img").first
    page.wait_for_function("image => image.naturalWidth > 0", arg=shown.element_handle())
    small = page.locator("li", has_text="kind0/small.jpg")
    expect(small).to_have_count(1)
    screenshot(page, "duplicates")

    everything = web.search(text="", products={EVIL.removesuffix(".jpg"): 1.0}, limit=50)
    assert everything.status == 200, everything.body
    collapsed = web.search(
        products={EVIL.removesuffix(".jpg"): 1.0}, limit=50, collapse="duplicates"
    )
    assert len(collapsed.json["matches"]) < len(everything.json["matches"])

    small.get_by_role("button", name="is not the same").click()
    page.wait_for_url("**/duplicates*")
    expect(page.locator("section li", has_text="kind0/small.jpg")).to_have_count(0)
    page.get_by_text("1 pair is not the same").click()
    screenshot(page, "duplicates-decided")
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("section li", has_text="kind0/small.jpg")).to_have_count(1)


def test_a_worker_answers_the_command_line(stack: LiveStack) -> None:
    file = stack.folder / "page.html"
    answer = stack.answer("duplicates", "--threshold", "0.999", "--html", str(file))
    names = [{image["filename"] for image in group["images"]} for group in answer["groups"]]
    assert any(EVIL in group and len(group) == 2 for group in names)
    page = file.read_text()
    assert page.count("data:image/jpeg;base64,") == sum(map(len, names))
    assert "<img src=x" not in page
