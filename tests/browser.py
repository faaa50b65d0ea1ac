"""A real browser, and what it must never do: complain, or ask another host."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_MS = 60_000


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    """Start the browser of this machine; without one, skip at home and fail in CI."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        reason = f"no browser: none of {', '.join(NAMES)} is installed"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox"] if root else []
        )
        yield browser
        browser.close()


def new_context(
    browser: Browser, url: str, *, width: int = 1280, phone: bool = False
) -> BrowserContext:
    """Return a browser without cookies.

    Args:
        phone: with a touch screen and without a mouse.
    """
    context = browser.new_context(
        base_url=url,
        viewport={"width": width, "height": 900},
        has_touch=phone,
        is_mobile=phone,
    )
    context.set_default_timeout(PATIENCE_MS)
    return context


@contextlib.contextmanager
def open_page(
    browser: Browser, url: str, *, width: int = 1280, errors: str = "", phone: bool = False
) -> Iterator[Page]:
    """Open a page in a browser without cookies, see `watch`."""
    context = new_context(browser, url, width=width, phone=phone)
    with watch(context, url, errors=errors) as page:
        yield page
    context.close()


@contextlib.contextmanager
def watch(context: BrowserContext, url: str, *, errors: str = "") -> Iterator[Page]:
    """Open a page; fail when a script fails, the console holds an error or another host is asked.

    Args:
        errors: a text that errors on the console may contain, e.g. the status of a refusal.
    """
    page = context.new_page()
    complaints: list[str] = []
    hosts: set[str] = set()
    page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
    page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    yield page
    page.close()
    assert hosts <= {urlsplit(url).netloc, ""}, hosts  # "" is an image of the page's own, a blob
    bad = [each for each in complaints if each.startswith(("error", "warning"))]
    assert [each for each in bad if not errors or errors not in each] == []
