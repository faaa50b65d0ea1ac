"""Who may see the page: keys, the cookie, forged forms, and where a login leads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from http.cookies import SimpleCookie
from pathlib import Path
from urllib.parse import urlencode

import pytest
from browser import open_browser, open_page
from live_stack import LiveStack
from playwright.sync_api import expect
from web_stand import Answer, WebServer, start_web

FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[LiveStack]:
    """A Redis alone: no worker and no index."""
    stack = LiveStack(tmp_path_factory.mktemp("shop"), model)
    stack.start_redis()
    yield stack
    stack.close()


@pytest.fixture(scope="module")
def keys(stack: LiveStack) -> dict[str, str]:
    """A key of each scope, by the scope."""
    return {
        scope: stack.answer("keys", "create", scope, "--scope", scope)["key"]
        for scope in ("search", "admin")
    }


@pytest.fixture(scope="module")
def web(stack: LiveStack, keys: dict[str, str]) -> WebServer:
    return start_web(stack, WEB_TIMEOUT_S="2")


def post(web: WebServer, path: str, cookie: str = "", **fields: str) -> Answer:
    headers = {**FORM, "Cookie": cookie} if cookie else FORM
    return web.post(path, body=urlencode(fields), headers=headers)


def log_in(web: WebServer, key: str) -> str:
    """Return the cookie of a login."""
    answer = post(web, "/login", key=key)
    assert answer.status == 303, answer.body
    cookie = SimpleCookie(answer.headers["Set-Cookie"])["imgrec_key"]
    assert cookie["httponly"]
    assert cookie["samesite"] == "strict"
    return f"imgrec_key={cookie.value}"


def token(web: WebServer, cookie: str) -> str:
    page = web.get("/", headers={"Cookie": cookie}).body.decode()
    match = re.search(r'name="csrf-token" content="(\w+)"', page)
    assert match
    return match[1]


def test_without_a_key_every_page_asks_for_one_and_comes_back(web: WebServer) -> None:
    for path in ("/", "/jobs", "/index", "/duplicates", "/jobs/x", "/?text=a+%26+b"):
        answer = web.get(path)
        assert answer.status == 303
        assert answer.headers["Location"].startswith("/login?next=%2F")
    assert web.get("/?text=a").headers["Location"] == "/login?next=%2F%3Ftext%3Da"
    assert web.get("/index/workers", headers={"X-Fragment": "1"}).status == 401


def test_a_wrong_key_is_told_and_sets_no_cookie(web: WebServer) -> None:
    for key in ("", "nonsense", "imgrec_0123456789ab_" + 43 * "x"):
        answer = post(web, "/login", key=key)
        assert answer.status == 401
        assert "This is not a valid key, or it was revoked." in answer.body.decode()
        assert "Set-Cookie" not in answer.headers


@pytest.mark.parametrize(
    "address",
    [
        *("https://evil.example/", "//evil.example", "/\\evil.example", "\\\\evil", "evil"),
        *(
            "//[",
            "//[::1/",
            "javascript:alert(1)",
            "/\t/evil.example",
            "/%0d%0aSet-Cookie:x\r\nX: 1",
        ),
    ],
)
def test_a_login_never_leads_to_another_site(
    web: WebServer, keys: dict[str, str], address: str
) -> None:
    answer = post(web, "/login", key=keys["search"], next=address)
    assert (answer.status, answer.headers["Location"]) == (303, "/")
    assert post(web, "/login", key=keys["search"], next="/jobs").headers["Location"] == "/jobs"


def test_a_login_form_of_another_site_is_refused(web: WebServer, keys: dict[str, str]) -> None:
    for header in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        body = urlencode({"key": keys["search"]})
        answer = web.post("/login", body=body, headers={**FORM, **header})
        assert answer.status == 403
        assert "Set-Cookie" not in answer.headers


def test_a_form_without_its_token_changes_nothing(web: WebServer, keys: dict[str, str]) -> None:
    cookie = log_in(web, keys["admin"])
    posts = ("/jobs", "/jobs/x/cancel", "/jobs/x/retry", "/index/rollback", "/duplicates/decide")
    for path in (*posts, "/duplicates", "/logout"):
        for fields in ({}, {"csrf_token": "local"}, {"csrf_token": 64 * "0"}):
            answer = post(web, path, cookie, folder="/tmp", **fields)
            assert answer.status == 403, path
            assert "load the page again" in answer.body.decode()
    answer = post(web, "/jobs", cookie, folder="/no", csrf_token=token(web, cookie))
    assert answer.status == 422
    assert "No such file or directory: &#39;/no&#39;." in answer.body.decode()


def test_a_key_sees_the_pages_of_its_scope_only(web: WebServer, keys: dict[str, str]) -> None:
    cookie = {"Cookie": log_in(web, keys["search"])}
    page = web.get("/", headers=cookie).body.decode()
    assert "Log out" in page
    assert 'href="/jobs"' not in page
    pages = ("/jobs", "/index", "/index/workers", "/index/cache", "/jobs/x/image?path=a")
    for path in (*pages, "/duplicates", "/duplicates/progress"):
        assert web.get(path, headers=cookie).status == 403


def test_a_logout_forgets_the_key(web: WebServer, keys: dict[str, str]) -> None:
    cookie = log_in(web, keys["search"])
    answer = post(web, "/logout", cookie, csrf_token=token(web, cookie))
    assert answer.status == 303
    assert 'imgrec_key=""' in answer.headers["Set-Cookie"]


def test_the_styles_and_scripts_are_this_servers(web: WebServer) -> None:
    for name in ("page.css", "page.js", "search.js", "jobs.js", "icon.svg"):
        answer = web.get(f"/static/{name}")
        assert answer.status == 200
        assert b"http" not in answer.body.replace(b"http://www.w3.org/2000/svg", b"")
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/", "/static/none.js"):
        assert web.get(path).status == 404


def test_a_person_logs_in_is_told_what_is_missing_and_logs_out(
    web: WebServer, keys: dict[str, str]
) -> None:
    with (
        open_browser() as browser,
        open_page(browser, web.url, errors="responded with a status of") as page,
    ):
        page.goto("/?text=shoe")
        expect(page.get_by_label("API key")).to_be_focused()
        assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("not a valid key")
        page.get_by_label("API key").fill(keys["admin"])
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("alert")).to_contain_text("FAISS index not found")
        assert page.url.endswith("/?text=shoe")
        page.get_by_role("link", name="Index").click()
        expect(page.get_by_role("heading", name="No index yet")).to_be_visible()
        expect(page.get_by_text("No worker listens").first).to_be_visible()
        page.get_by_role("link", name="Jobs").click()
        expect(page.get_by_role("heading", name="No rebuilds yet")).to_be_visible()
        page.get_by_role("button", name="Log out").click()
        expect(page.get_by_label("API key")).to_be_visible()
        page.goto("/jobs")
        expect(page.get_by_label("API key")).to_be_visible()
