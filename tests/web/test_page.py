"""The page in a real browser: search, rebuild, look into failures, roll back."""

from __future__ import annotations

import base64
import csv
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import new_context, open_browser, open_page, watch
from live_stack import LiveStack, draw_folder, draw_product, until
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect
from web_stand import WebServer, start_web

from pipeline.store.database import Database
from pipeline.store.feedback import FeedbackLog

SCRIPT = "<script>window.ran=1</script><img src=x onerror=window.ran=1>"
EVIL = "kind0/<img src=x onerror=window.ran=1>.jpg"  # a name that a file can have
N_PRODUCTS = 30  # more than one page
COLORS = ("red", "green", "blue")
BLUE = range(29, 5, -3)  # the blue products but for the one whose title is a script, dearest first


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[LiveStack]:
    stack = LiveStack(tmp_path_factory.mktemp("shop"), model)
    stack.start_redis()
    names = draw_folder(stack.products, N_PRODUCTS)
    draw_product(stack.products / EVIL, 900)
    stack.workers("embed", "index", "query")
    stack.rebuild()
    with (stack.folder / "products.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["product_id", "title", "color", "price"])
        for number, name in enumerate(names):
            title = SCRIPT if number == 5 else f"Product {number}"
            writer.writerow([name.removesuffix(".jpg"), title, COLORS[number % 3], 10 + number])
        writer.writerow([EVIL.removesuffix(".jpg"), SCRIPT, "red", 99])
    stack.answer("import-products", str(stack.folder / "products.csv"))
    yield stack
    stack.close()


@pytest.fixture(scope="module")
def web(stack: LiveStack) -> WebServer:
    return start_web(stack)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def context(browser: Browser, web: WebServer) -> Iterator[BrowserContext]:
    context = new_context(browser, web.url)
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext, web: WebServer) -> Iterator[Page]:
    """A page of a browser that has seen others, without their cookies."""
    context.clear_cookies()
    with watch(context, web.url) as page:
        yield page
        assert page.evaluate("window.ran") is None


def ids(page: Page) -> list[str]:
    """Return the products on the page, in their order."""
    texts: list[str] = page.locator(".card").evaluate_all(
        "cards => cards.map(card => card.dataset.product)"
    )
    return texts


def scores(page: Page) -> list[str]:
    return page.locator(".card .score").all_inner_texts()


def test_an_upload_finds_its_product_and_a_box_searches_for_a_part(
    page: Page, stack: LiveStack
) -> None:
    page.goto("/")
    expect(page.get_by_role("heading", name="Find products that look alike")).to_be_visible()
    page.locator("#image").set_input_files(stack.products / "kind0" / "product-003.jpg")
    expect(page.locator(".card")).to_have_count(24)
    assert ids(page)[0] == "kind0/product-003"
    expect(page.get_by_role("img", name="Your image: product-003.jpg")).to_be_visible()
    whole = scores(page)
    assert whole[0].endswith("1.000")

    area = page.locator("#frame").bounding_box()
    assert area is not None
    x, y, width, height = (area[side] for side in ("x", "y", "width", "height"))
    page.mouse.move(x + 0.25 * width, y + 0.25 * height)
    page.mouse.down()
    page.mouse.move(x + 0.75 * width, y + 0.5 * height, steps=3)
    page.mouse.up()
    expect(page.locator(".card .score").first).not_to_have_text(re.compile("1.000"))
    name = re.compile("left 25 %, from the top 25 %, width 50 %, height 25 %")
    expect(page.locator("#box")).to_have_accessible_name(name)

    page.get_by_role("button", name="Whole image").click()
    expect(page.locator(".card .score").first).to_have_text(re.compile("1.000"))
    assert scores(page) == whole

    page.get_by_role("link", name="Next").click()
    expect(
        page.get_by_role("heading", name=f"{N_PRODUCTS + 1} of {N_PRODUCTS + 1} matches")
    ).to_be_visible()
    expect(page.locator(".card")).to_have_count(N_PRODUCTS + 1 - 24)


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_an_image_can_be_dropped_or_pasted(page: Page, stack: LiveStack, way: str) -> None:
    photo = (stack.products / "kind0" / "product-003.jpg").read_bytes()
    page.goto("/")
    page.evaluate(
        """([way, text]) => {
            const data = new DataTransfer();
            const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
            data.items.add(new File([bytes], "mine.jpg", { type: "image/jpeg" }));
            const Kind = way === "drop" ? DragEvent : ClipboardEvent;
            const options = { bubbles: true, dataTransfer: data, clipboardData: data };
            document.getElementById("drop").dispatchEvent(new Kind(way, options));
        }""",
        [way, base64.b64encode(photo).decode()],
    )
    expect(page.get_by_role("img", name="Your image: mine.jpg")).to_be_visible()
    expect(page.locator(".card")).to_have_count(24)
    assert ids(page)[0] == "kind0/product-003"


def test_a_phone_takes_a_photo(browser: Browser, web: WebServer, stack: LiveStack) -> None:
    with open_page(browser, web.url, width=390, phone=True) as page:
        page.goto("/")
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Take a photo").tap()
        assert chooser.value.element.get_attribute("capture") == "environment"
        chooser.value.set_files(stack.products / "kind0" / "product-003.jpg")
        expect(page.locator(".card")).to_have_count(24)
        assert ids(page)[0] == "kind0/product-003"


def test_a_box_can_be_moved_with_keys(page: Page, stack: LiveStack) -> None:
    page.goto("/")
    page.locator("#image").set_input_files(stack.products / "kind0" / "product-003.jpg")
    expect(page.locator(".card").first).to_be_visible()
    page.get_by_role("button", name="Draw a box").press("Enter")
    box = page.locator("#box")
    expect(box).to_be_focused()
    expect(box).to_have_accessible_name(re.compile("left 20 %, from the top 20 %, width 60 %"))
    for key in ("ArrowRight", "ArrowDown", "Shift+ArrowLeft"):
        box.press(key)
    expect(box).to_have_accessible_name(re.compile("left 22 %, from the top 22 %, width 58 %"))
    with page.expect_request("**/results"):
        box.press("Enter")
    with page.expect_request("**/results"):
        box.press("Delete")
    expect(box).to_be_hidden()


def test_filters_stand_in_the_address_which_can_be_shared(
    page: Page, browser: Browser, web: WebServer
) -> None:
    page.goto("/?text=a+red+shoe")
    expect(page.get_by_role("heading", name=f"24 of {N_PRODUCTS + 1} matches")).to_be_visible()
    page.get_by_text("Filters and order").click()
    page.get_by_label("color", exact=True).select_option("blue")
    page.get_by_label("price, at least").fill("16")
    page.get_by_label("Order").select_option(label="price, high to low")
    page.get_by_label("Explain the ranks").check()
    page.get_by_role("button", name="Apply").click()
    expect(page.get_by_role("list", name="Filters in use").get_by_role("link")).to_have_count(2)
    assert page.locator(".card h3").all_inner_texts() == [f"Product {n}" for n in BLUE]
    explained = page.get_by_label("What the rank is made of").first
    expect(explained).to_contain_text("total")
    assert "min.color" not in page.url
    assert "max.price" not in page.url  # an empty field is no part of the question

    with open_page(browser, web.url) as other:
        other.goto(page.url)
        assert ids(other) == ids(page)

    page.get_by_role("link", name="Remove the filter color: blue").click()
    expect(page.get_by_role("list", name="Filters in use").get_by_role("link")).to_have_count(1)


def test_more_like_this_and_pages_of_it_repeat_nothing(page: Page) -> None:
    page.goto("/?text=shoe")
    first = ids(page)[0]
    page.get_by_role("link", name=re.compile("^More like ")).first.click()
    expect(page.get_by_text(f"More like {first}", exact=True)).to_be_visible()
    seen = ids(page)
    assert first not in seen
    page.get_by_role("link", name="Next").click()
    page.wait_for_url("**offset=24**")
    assert "version=v0001" in page.url
    assert len(set(seen + ids(page))) == N_PRODUCTS
    page.get_by_role("link", name=f"Do not search for more like {first}").click()
    expect(page.get_by_role("heading", name="Find products that look alike")).to_be_visible()


def test_a_like_is_recorded_and_can_be_changed_to_a_dislike(page: Page, stack: LiveStack) -> None:
    page.goto("/?text=shoe")
    product = ids(page)[1]
    card = page.locator(".card").nth(1)
    like = card.get_by_role("button", name=re.compile("^Like "))
    dislike = card.get_by_role("button", name=re.compile("^Dislike "))
    log = FeedbackLog(Database(stack.environment["DATABASE_URL"]))

    def recorded() -> list[tuple[str, str]]:
        return [(e.action, e.user) for e in log.newest() if e.product_id == product]

    like.click()
    expect(like).to_have_attribute("aria-pressed", "true")
    assert recorded() == [("like", "local")]
    dislike.click()
    expect(dislike).to_have_attribute("aria-pressed", "true")
    expect(like).to_have_attribute("aria-pressed", "false")
    assert recorded() == [("dislike", "local")]


def test_the_keyboard_alone_searches_and_goes_on_from_a_match(page: Page) -> None:
    page.goto("/")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.get_by_label("Words").evaluate("field => field === document.activeElement"):
            break
    page.keyboard.type("green shoe")
    page.keyboard.press("Enter")
    page.wait_for_url("**text=green+shoe**")
    for _ in range(60):
        page.keyboard.press("Tab")
        name = page.evaluate("document.activeElement.getAttribute('aria-label')") or ""
        if name.startswith("More like"):
            break
    page.keyboard.press("Enter")
    page.wait_for_url("**like=**")
    expect(page.locator(".card").first).to_be_visible()


def test_no_match_and_wrong_filters_are_explained(browser: Browser, web: WebServer) -> None:
    with open_page(browser, web.url, errors="status of 4") as page:
        page.goto("/?text=shoe&min.price=5000")
        expect(page.get_by_role("heading", name="No matches")).to_be_visible()
        page.goto("/?text=shoe&f.size=9")
        alert = page.get_by_role("alert").filter(has_text="The search did not work")
        expect(alert).to_contain_text(
            "Unknown column 'size'. Available columns: color, price, title"
        )
        page.goto("/")
        page.locator("#image").set_input_files(
            {"name": Path(EVIL).name, "mimeType": "image/jpeg", "buffer": b"not an image"}
        )
        alert = page.get_by_role("alert").filter(has_text="cannot be used")
        expect(alert).to_contain_text(Path(EVIL).name)
        assert page.evaluate("window.ran") is None


def test_titles_and_file_names_stay_text(page: Page) -> None:
    page.goto("/?text=shoe&f.color=red&min.price=99")
    expect(page.get_by_role("heading", name=SCRIPT)).to_be_visible()
    assert ids(page) == [EVIL.removesuffix(".jpg")]
    page.wait_for_load_state("networkidle")
    tile = page.locator(".tile > img")
    assert tile.evaluate("image => image.naturalWidth") > 0  # its address holds < and spaces
    page.get_by_role("link", name=re.compile("^More like ")).click()
    expect(page.locator(".card")).to_have_count(0)  # no other red product costs as much
    expect(
        page.get_by_role("link", name=re.compile("^Do not search for more like"))
    ).to_be_visible()


def test_a_rebuild_is_watched_to_its_end_and_failures_say_why(page: Page, stack: LiveStack) -> None:
    draw_folder(stack.products / "new", 3, first_seed=500)
    (stack.products / "kind1" / "product-001.jpg").unlink()
    draw_product(stack.products / "kind1" / "product-004.jpg", 601)
    broken = "kind1/<svg onload=window.ran=1>.jpg"
    (stack.products / broken).write_bytes(b"not an image")
    whole = (stack.products / "kind0" / "product-000.jpg").read_bytes()
    (stack.products / "kind1" / "cut-off.jpg").write_bytes(whole[: len(whole) // 2])

    page.goto("/jobs")
    page.get_by_label("Folder of product images").fill(str(stack.products))
    page.get_by_role("button", name="Start rebuild").click()
    page.wait_for_url("**/jobs/2*")
    page.evaluate("window.same = true")
    expect(page.locator("[data-part=state]")).to_have_text("Published")
    rows = page.get_by_role("region", name="Failures").get_by_role("row")
    expect(rows).to_have_count(3)
    assert page.evaluate("window.same")  # nothing was loaded anew
    row = rows.filter(has_text=broken)
    expect(row).to_contain_text("decode")
    expect(row).to_contain_text("not an image of a supported format")
    expect(row.locator(".thumb")).to_have_class(re.compile("no-image"))
    cut_off = rows.filter(has_text="cut-off.jpg")
    expect(cut_off).to_contain_text("the image is cut off")
    until(
        lambda: cut_off.locator("img").evaluate("image => image.naturalWidth"),
        "a thumbnail of what there is",
    )
    expect(page.get_by_role("link", name="Download as CSV")).to_be_visible()

    draw_product(stack.products / "kind1" / "cut-off.jpg", 602)
    (stack.products / broken).unlink()
    page.get_by_role("button", name="Try failed images again").click()
    expect(page.get_by_role("heading", name="1 left out")).to_be_visible()
    expect(rows.filter(has_text=broken)).to_contain_text("the file is not there any more")
    expect(page.locator("[data-part=embedded]")).to_have_text("1")

    page.goto("/index?from=v0001&to=v0002")
    expect(page.get_by_role("heading", name="3 added")).to_be_visible()
    expect(page.get_by_role("heading", name="1 removed")).to_be_visible()
    expect(page.get_by_role("heading", name="1 changed")).to_be_visible()
    expect(page.locator(".removed")).to_contain_text("kind1/product-001.jpg")
    for queue in ("embed", "index", "query"):
        expect(page.get_by_role("heading", name=f"{queue} 1")).to_be_visible()
    page.get_by_text("Count what the cache holds").click()
    expect(page.get_by_role("region", name="Cached entries")).to_contain_text("vectors")

    page.get_by_role("button", name="Publish v0001 again").click()
    dialog = page.get_by_role("dialog", name="Publish v0001 again?")
    dialog.get_by_role("button", name="Cancel").click()
    assert stack.answer("index", "list")["current"] == "v0003"
    page.get_by_role("button", name="Publish v0001 again").click()
    dialog.get_by_role("button", name="Publish v0001").click()
    expect(page.get_by_role("row", name="v0001 Published")).to_be_visible()
    assert stack.answer("index", "list")["current"] == "v0001"
    stack.answer("index", "rollback", "v0003")


def test_a_rebuild_that_nobody_works_on_says_so_and_can_be_cancelled(
    page: Page, stack: LiveStack
) -> None:
    embed = stack.processes[0]
    os.killpg(embed.pid, signal.SIGSTOP)
    try:
        page.goto("/jobs")
        page.get_by_label("Embed every image again").check()
        page.get_by_label("Folder of product images").fill(str(stack.products))
        page.get_by_role("button", name="Start rebuild").click()
        page.wait_for_url("**/jobs/2*")
        expect(page.get_by_text("No worker listens on queue 'embed'")).to_be_visible()
        page.get_by_role("button", name="Cancel", exact=True).click()
        page.get_by_role("button", name="Cancel rebuild").click()
        expect(page.locator("[data-part=state]")).to_have_text("Cancelled")
        expect(page.get_by_role("button", name="Try again")).to_be_visible()
    finally:
        os.killpg(embed.pid, signal.SIGCONT)


def test_a_part_of_a_page_that_takes_long_holds_up_no_other(page: Page) -> None:
    waiting: list[Route] = []
    page.route("**/index/workers", lambda route: waiting.append(route))
    page.goto("/index")
    page.get_by_text("Count what the cache holds").click()
    expect(page.get_by_role("region", name="Cached entries")).to_be_visible()
    waiting[0].continue_()
    expect(page.get_by_role("heading", name="embed 1")).to_be_visible()


def test_a_part_that_is_opened_before_the_script_runs_is_loaded(page: Page) -> None:
    waiting: list[Route] = []
    page.route("**/static/page.js", lambda route: waiting.append(route))
    page.goto("/index", wait_until="commit")
    page.get_by_text("Count what the cache holds").click()
    expect(page.get_by_text("Counting; a large cache takes some seconds")).to_be_visible()
    waiting[0].continue_()
    expect(page.get_by_role("region", name="Cached entries")).to_be_visible()


def test_a_folder_that_cannot_be_used_is_explained_beside_its_field(
    browser: Browser, web: WebServer
) -> None:
    with open_page(browser, web.url, errors="status of 422") as page:
        page.goto("/jobs")
        folder = page.get_by_label("Folder of product images")
        folder.fill("/no/such/folder")
        page.get_by_role("button", name="Start rebuild").click()
        expect(folder).to_have_accessible_description(
            re.compile("No such file or directory: '/no/such/folder'.")
        )
        expect(folder).to_have_value("/no/such/folder")


@pytest.mark.parametrize("width", [390, 1280])
def test_every_page_fits_and_every_control_has_a_name(
    browser: Browser, web: WebServer, width: int
) -> None:
    with open_page(browser, web.url, width=width) as page:
        job = web.get("/v1/jobs").json["jobs"][-1]["job_id"]
        for path in ("/?text=shoe&explain=1&min.price=12", "/jobs", f"/jobs/{job}", "/index"):
            page.goto(path)
            page.wait_for_load_state("networkidle")
            for summary in page.locator("details:not([open]) > summary").all():
                summary.click()
            page.wait_for_load_state("networkidle")
            wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
            assert wide <= 0, (path, width)
            controls = page.locator(
                "a, button, input:not([type=hidden], [aria-hidden]), select, summary"
            )
            for control in controls.all():
                if control.is_visible():
                    expect(control).to_have_accessible_name(re.compile(r"\S"))
            assert page.locator("h1").count() == 1
            assert page.locator("html").get_attribute("lang") == "en"
