"""A feed by its address: streamed, unpacked, limited, and told as unchanged."""

from __future__ import annotations

import errno
import gzip
import tempfile
from pathlib import Path
from urllib.parse import quote

import pytest
from feed_server import NETWORK, FeedServer, dripping, endless

from pipeline.errors import ImgrecError, WrongUse
from pipeline.fetch.feed_file import default_name, download_feed, require_name
from pipeline.settings import Settings

TABLE = b"product_id,title\n1,Hat\n2,Bag\n"
LOCAL = Settings(_env_file=None, fetch_hosts=NETWORK, feed_max_bytes=100_000)


def limited(**changes: object) -> Settings:
    return LOCAL.model_copy(update=changes)


def read(url: str, settings: Settings = LOCAL, **known: str) -> bytes | None:
    with download_feed(url, settings, **known) as feed:
        return None if feed is None else feed.path.read_bytes()


@pytest.mark.parametrize("layers", [0, 1, 2])
@pytest.mark.parametrize("told", [True, False])
def test_a_feed_comes_unpacked_however_often_and_by_whom_it_was_packed(
    server: FeedServer, layers: int, told: bool
) -> None:
    body = TABLE
    for _ in range(layers):
        body = gzip.compress(body)
    headers = {"Content-Encoding": "gzip"} if layers and told else {}
    url = server.put("/feeds/products.csv.gz", body, headers=headers)
    assert read(url) == TABLE
    assert server.requests[0][2]["accept-encoding"] == "gzip"


def test_a_feed_keeps_the_suffix_that_tells_its_format(server: FeedServer) -> None:
    url = server.put("/products.jsonl.gz", gzip.compress(b"{}\n"))
    with download_feed(f"{url}?key=secret", LOCAL) as feed:
        assert feed is not None
        assert feed.path.name == "feed.jsonl"
        folder = feed.path.parent
    assert not folder.exists()


def test_an_unchanged_feed_is_not_downloaded(server: FeedServer) -> None:
    when = "Wed, 21 Oct 2015 07:28:00 GMT"
    url = server.put("/a.csv", TABLE, etag='"1"', last_modified=when)
    with download_feed(url, LOCAL) as feed:
        assert feed is not None
        assert (feed.etag, feed.last_modified) == ('"1"', when)
    assert read(url, etag='"1"') is None
    assert read(url, last_modified=when) is None
    server.put("/a.csv", TABLE + b"3,Cap\n", etag='"2"')
    assert read(url, etag='"1"') == TABLE + b"3,Cap\n"


@pytest.mark.parametrize(
    ("page", "settings", "reason"),
    [
        ({"status": 404}, {}, "answers with status 404"),
        (
            {"status": 429, "headers": {"Retry-After": "60"}},
            {},
            "status 429 and asks to wait 60 s",
        ),
        ({"answer": endless()}, {}, "more than 100,000 bytes"),
        ({"answer": dripping(TABLE, 0.2)}, {"feed_timeout_s": 0.5}, "within 0.5 s"),
        ({"status": 302, "headers": {"Location": "/a.csv"}}, {}, "more than 5 redirects"),
        ({"status": 302, "headers": {"Location": "http://10.0.0.1/"}}, {}, "private"),
        ({"body": gzip.compress(b"\0" * 200_000)}, {}, r"FEED_MAX_BYTES \(100,000 bytes\)"),
        ({"body": gzip.compress(TABLE)[:-9]}, {}, "damaged"),
        ({"body": gzip.compress(TABLE)[:12] + b"\xff" * 30}, {}, "damaged"),
        ({"status": 304}, {}, "status 304"),
        ({"body": TABLE}, {"fetch_hosts": "*"}, "private or reserved network; FETCH_HOSTS"),
    ],
)
def test_what_cannot_be_had_is_one_sentence(
    server: FeedServer, page: dict[str, object], settings: dict[str, object], reason: str
) -> None:
    url = server.put("/a.csv", **page)  # type: ignore[arg-type]
    with pytest.raises(WrongUse, match=reason):
        read(url, limited(**settings))


@pytest.mark.parametrize("packed", [False, True])
def test_a_full_temporary_folder_is_named(
    server: FeedServer, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    url = server.put("/a.csv", gzip.compress(TABLE) if packed else TABLE)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if packed:
        monkeypatch.setattr("pipeline.fetch.feed_file._copy", full)
    else:
        monkeypatch.setattr("pipeline.fetch.feed_file._FileBody.write", full)
    with pytest.raises(ImgrecError, match=f"written to {tempfile.gettempdir()}: No space left"):
        read(url)
    assert len(server.requests) == 1


@pytest.mark.parametrize("path", ["/feeds/..", "/" + "商" * 90, "/" + "a" * 300 + ".jsonl.gz"])
def test_any_address_makes_a_file_name(server: FeedServer, path: str) -> None:
    server.put(quote(path), gzip.compress(b"{}\n"))
    with download_feed(server.url(path), LOCAL) as feed:
        assert feed is not None
        assert feed.path.name == ("feed.jsonl" if ".jsonl" in path else "feed")
        assert feed.path.read_bytes() == b"{}\n"


def test_an_address_that_is_none_is_one_sentence() -> None:
    assert default_name("http://[") == "feed"
    with pytest.raises(WrongUse, match="not a valid URL"):
        read("http://[")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("https://shop.example/export/products.xml.gz?key=1", "products"),
        ("https://shop.example/google_feed", "google_feed"),
        ("https://shop.example/", "shop.example"),
        ("/data/My Shop (new).csv", "My-Shop-new"),
        ("feed.tsv", "feed"),
        (".csv", "feed"),
        ("Größe.jsonl", "Größe"),
    ],
)
def test_a_feed_is_called_like_its_file(source: str, name: str) -> None:
    assert default_name(source) == name
    require_name(name)


@pytest.mark.parametrize("name", ["", "a b", "a/b", "x" * 101, "a\n"])
def test_a_name_that_no_command_line_takes_is_refused(name: str) -> None:
    with pytest.raises(WrongUse, match="cannot be a feed's"):
        require_name(name)


def test_a_file_of_this_disk_is_unpacked_too(tmp_path: Path) -> None:
    from pipeline.fetch.feed_file import unpacked

    packed = tmp_path / "a.csv.gz"
    packed.write_bytes(gzip.compress(TABLE))
    with unpacked(packed, 1000) as plain:
        assert (plain.name, plain.read_bytes()) == ("a.csv", TABLE)
    assert sorted(tmp_path.iterdir()) == [packed]
