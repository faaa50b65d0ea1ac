"""One image by its address: what is taken, what is refused, and what is tried again."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler

import numpy as np
import pytest
from feed_server import FeedServer, dripping, endless, picture
from PIL import Image

from pipeline.allowed_hosts import AllowedHosts
from pipeline.fetch.image import Downloaded, ImageRefused, TryAgain, download, retry_after_s
from pipeline.fetch.robots import refused_by
from pipeline.outbound import Client

NOAI = frozenset({"noai", "noimageai"})
LOCAL = AllowedHosts.parse("*,127.0.0.0/8", star=True)


def ask(
    url: str,
    *,
    max_bytes: int = 100_000,
    timeout_s: float = 20.0,
    hosts: AllowedHosts = LOCAL,
    max_pixels: int = 10_000,
    robots: frozenset[str] = NOAI,
    **known: str,
) -> Downloaded:
    client = Client(hosts, "FETCH_HOSTS", max_bytes, timeout_s, 5)
    return download(client, url, max_pixels=max_pixels, robots=robots, **known)


@pytest.mark.parametrize(
    ("form", "suffix"), [("PNG", ".png"), ("JPEG", ".jpg"), ("WEBP", ".webp"), ("GIF", ".gif")]
)
def test_the_content_decides_what_an_image_is_not_the_server(
    server: FeedServer, form: str, suffix: str
) -> None:
    data = picture(1, form)
    url = server.put("/a.txt", data, headers={"Content-Type": "text/html"}, etag='"1"')
    assert ask(url) == Downloaded(data, suffix, '"1"', "")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"<!DOCTYPE html><html>" + b" " * 1000, "an HTML page"),
        (b"<!DOCTYPE html><html>", "an HTML page"),
        (b'<svg xmlns="http://www.w3.org/2000/svg">' + b" " * 1000, "SVG"),
        (b"%PDF-1.7" + b" " * 1000, "a PDF document"),
        (b"PK\x03\x04" + b" " * 1000, "a ZIP archive"),
        (b"\0\0\0\x18ftypisom" + b" " * 1000, "a video"),
        (b"just words", "not an image"),
        (b"", "empty (0 bytes)"),
    ],
)
def test_what_is_no_image_is_refused_by_its_content(
    server: FeedServer, body: bytes, reason: str
) -> None:
    url = server.put("/a.jpg", body, headers={"Content-Type": "image/jpeg"})
    with pytest.raises(ImageRefused, match=reason.replace("(", r"\(").replace(")", r"\)")):
        ask(url)


def test_an_endless_page_is_left_when_its_beginning_shows_what_it_is(server: FeedServer) -> None:
    url = server.put("/a.jpg", answer=endless(b"<html>" + b" " * 1000))
    with pytest.raises(ImageRefused, match="an HTML page"):
        ask(url, max_bytes=10**12)


def test_an_endless_image_is_left_at_the_limit(server: FeedServer) -> None:
    url = server.put("/a.jpg", answer=endless(picture(1, "JPEG")))
    with pytest.raises(ImageRefused, match="has more than 1,000,000 bytes"):
        ask(url, max_bytes=1_000_000)


def test_a_length_above_the_limit_is_refused_before_the_body_comes(server: FeedServer) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100001")
        handler.end_headers()

    with pytest.raises(ImageRefused, match="has more than 100,000 bytes"):
        ask(server.put("/a.jpg", answer=answer))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_too_many_pixels_end_the_request_while_the_image_comes(
    server: FeedServer, form: str
) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    import io

    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, form)
    url = server.put("/a", answer=endless(buffer.getvalue()[:4000]))
    with pytest.raises(ImageRefused, match="300x300 = 90,000 pixels"):
        ask(url, max_bytes=10**12)


def test_a_slow_image_is_tried_again(server: FeedServer) -> None:
    url = server.put("/a.png", answer=dripping(picture(1), 0.2))
    with pytest.raises(TryAgain, match=r"did not answer within 0.5 s") as error:
        ask(url, timeout_s=0.5)
    assert not error.value.answered


def test_an_image_that_is_cut_off_is_tried_again(server: FeedServer) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "5000")
        handler.end_headers()
        handler.wfile.write(picture(1))

    with pytest.raises(TryAgain, match="cannot be reached"):
        ask(server.put("/a.png", answer=answer))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451])
def test_an_image_that_is_gone_is_not_tried_again(server: FeedServer, status: int) -> None:
    with pytest.raises(ImageRefused, match=f"^status {status}$"):
        ask(server.put("/a.png", b"no", status=status))


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_server_that_asks_to_wait_is_tried_again(server: FeedServer, status: int) -> None:
    url = server.put("/a.png", b"later", status=status, headers={"Retry-After": "7"})
    with pytest.raises(TryAgain, match=f"^status {status}$") as error:
        ask(url)
    assert error.value.answered
    assert error.value.after_s == 7


def test_retry_after_is_seconds_or_a_date_and_nothing_else() -> None:
    assert retry_after_s({"retry-after": " 120 "}) == 120
    at = 1_800_000_000.0
    assert retry_after_s({"retry-after": "Fri, 15 Jan 2027 08:00:30 GMT"}, at) == 30
    assert retry_after_s({"retry-after": "Fri, 15 Jan 2021 08:00:30 GMT"}, at) == 0
    for text in (
        "",
        "soon",
        "Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
        "-1",
        "1e9",
        "9" * 400,
        "²",
    ):
        assert retry_after_s({"retry-after": text}) is None


def test_a_tag_that_no_database_stores_is_forgotten(server: FeedServer) -> None:
    url = server.put("/a.png", picture(1), etag='"a\0b"')
    assert ask(url) == Downloaded(picture(1), ".png", "", "")


def test_a_known_image_is_asked_for_with_its_tags(server: FeedServer) -> None:
    when = "Wed, 21 Oct 2015 07:28:00 GMT"
    url = server.put("/a.png", picture(1), etag='"v1"')
    assert ask(url, etag='"v1"') == Downloaded(None, "", '"v1"', "")
    url = server.put("/b.png", picture(1), last_modified=when)
    assert ask(url, last_modified=when) == Downloaded(None, "", "", when)
    server.put("/a.png", picture(2), etag='"v2"')
    assert ask(server.url("/a.png"), etag='"v1"') == Downloaded(picture(2), ".png", '"v2"', "")


def test_a_server_that_says_unchanged_without_being_asked_gives_no_image(
    server: FeedServer,
) -> None:
    with pytest.raises(ImageRefused, match=r"^status 304$"):
        ask(server.put("/a.png", status=304))


def test_redirects_are_followed_anew_and_not_for_ever(server: FeedServer) -> None:
    server.put("/old.png", status=301, headers={"Location": "/new.png"})
    server.put("/new.png", picture(3))
    assert ask(server.url("/old.png")).data == picture(3)
    server.put("/loop", status=302, headers={"Location": "/loop"})
    with pytest.raises(ImageRefused, match="more than 5 redirects"):
        ask(server.url("/loop"))
    assert server.counts()["/loop"] == 6


@pytest.mark.parametrize(
    "target",
    ["http://10.0.0.1/a", "http://[::1]/a", "http://169.254.169.254/latest", "file:///etc/passwd"],
)
def test_a_redirect_into_a_private_network_is_refused(server: FeedServer, target: str) -> None:
    url = server.put("/a.png", status=302, headers={"Location": target})
    with pytest.raises(ImageRefused, match=r"private|must begin with http"):
        ask(url)


def test_private_addresses_are_refused_unless_a_setting_allows_their_network(
    server: FeedServer,
) -> None:
    url = server.put("/a.png", picture(1))
    with pytest.raises(ImageRefused, match="FETCH_HOSTS"):
        ask(url, hosts=AllowedHosts.parse("*", star=True))
    with pytest.raises(ImageRefused, match="not allowed by FETCH_HOSTS"):
        ask(url, hosts=AllowedHosts.parse("cdn.example", star=True))
    assert server.requests == []
    assert ask(url).data == picture(1)


def test_only_fetched_feeds_may_allow_every_host() -> None:
    with pytest.raises(ValueError, match="neither a host"):
        AllowedHosts.parse("*")


def test_a_site_that_refuses_its_images_is_obeyed_unless_told_otherwise(
    server: FeedServer,
) -> None:
    url = server.put("/a.png", picture(1), headers={"X-Robots-Tag": "noindex, noai"})
    with pytest.raises(ImageRefused, match="X-Robots-Tag: noai"):
        ask(url)
    assert ask(url, robots=frozenset()).data == picture(1)


@pytest.mark.parametrize(
    ("values", "directive"),
    [
        (["noai"], "noai"),
        (["NoImageAI"], "noimageai"),
        (["noindex", "all, noai"], "noai"),
        (["imgrec: noai"], "noai"),
        (["*: noai"], "noai"),
        (["otherbot: noai"], ""),
        (["otherbot: noindex, noai"], ""),
        (["otherbot: noindex, imgrec: nofollow, noimageai"], "noimageai"),
        (["max-snippet: 20, noai"], "noai"),
        (["noindex"], ""),
        ([], ""),
    ],
)
def test_directives_are_for_all_programs_or_for_one(values: list[str], directive: str) -> None:
    assert refused_by(values, NOAI) == directive
