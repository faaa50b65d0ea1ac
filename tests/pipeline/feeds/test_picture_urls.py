"""Addresses are parted and written as they are sent; those that are unsafe are refused."""

from __future__ import annotations

import pytest

from pipeline.feeds.picture_urls import canonical_url, split_pictures

CDN = "https://cdn.example.com"


@pytest.mark.parametrize(
    ("cell", "urls"),
    [
        ("//cdn.example.com/a.jpg", [f"{CDN}/a.jpg"]),
        (f"{CDN}/summer sale/a b.jpg", [f"{CDN}/summer%20sale/a%20b.jpg"]),
        (f"{CDN}/a.jpg|{CDN}/b.jpg| {CDN}/c.jpg", [f"{CDN}/{n}.jpg" for n in "abc"]),
        (f"{CDN}/w_600,h_600/a.jpg", [f"{CDN}/w_600,h_600/a.jpg"]),
        (f"{CDN}/a.jpg,{CDN}/b.jpg", [f"{CDN}/a.jpg", f"{CDN}/b.jpg"]),
        (f"{CDN}/a.jpg, {CDN}/b.jpg;", [f"{CDN}/a.jpg", f"{CDN}/b.jpg"]),
        (f"{CDN}/a.jpg; //cdn.example.com/b.jpg", [f"{CDN}/a.jpg", f"{CDN}/b.jpg"]),
        (f"{CDN}/a.jpg\r\n{CDN}/b.jpg", [f"{CDN}/a.jpg", f"{CDN}/b.jpg"]),
        (f"{CDN}/größe.jpg", [f"{CDN}/gr%C3%B6%C3%9Fe.jpg"]),
        (f"{CDN}/gr%C3%B6%C3%9Fe/100%25%20wool.jpg", [f"{CDN}/gr%C3%B6%C3%9Fe/100%25%20wool.jpg"]),
        (f"{CDN}/100% wool.jpg", [f"{CDN}/100%25%20wool.jpg"]),
        (f"{CDN}/a.jpg?w=1&c=ä#top", [f"{CDN}/a.jpg?w=1&c=%C3%A4"]),
        ("https://BÜCHER.example/a", ["https://xn--bcher-kva.example/a"]),
    ],
)
def test_a_cell_is_parted_into_addresses_as_they_are_sent(cell: str, urls: list[str]) -> None:
    assert [canonical_url(part) for part in split_pictures(cell)] == urls


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("n/a", "no address"),
        ("file:///srv/a.jpg", "'file:' is not fetched"),
        ("ftp://x.example/a.jpg", "'ftp:' is not fetched"),
        ("data:image/png;base64,AAAA", "'data:' is not fetched"),
        ("http://localhost/a", "private network"),
        ("http://shop.localhost/a", "private network"),
        ("http://127.0.0.1/a", "private network"),
        ("http://10.0.0.8/a", "private network"),
        ("http://[::1]/a", "private network"),
        ("http://[::ffff:127.0.0.1]/a", "private network"),
        ("http://[64:ff9b::a00:8]/a", "private network"),  # 10.0.0.8 behind NAT64
        ("http://224.0.0.1/a", "private network"),  # multicast: no host's address
        ("http://2130706433/a", "not written as a name"),
        ("http://0x7f.1/a", "not written as a name"),
        ("https://user:word@x.example/a", "user name or a password"),
        ("https://x.example:99999/a", "not a valid address"),
        ("https:///a", "names no host"),
        ("https://x.example/" + "a" * 5000, "more than 2,048 characters"),
    ],
)
def test_an_address_that_must_not_be_fetched_is_refused(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        canonical_url(url)
