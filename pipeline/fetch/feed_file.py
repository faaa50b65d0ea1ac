"""A product feed by its address: to a temporary file, unpacked, and only if it changed."""

from __future__ import annotations

import gzip
import re
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from pipeline.access import writing_temporary
from pipeline.allowed_hosts import AllowedHosts
from pipeline.atomic_files import file_sha256
from pipeline.errors import WrongUse
from pipeline.fetch.image import retry_after_s, validators
from pipeline.outbound import Client, FetchFailed
from pipeline.settings import Settings

GZIP = b"\x1f\x8b"
LAYERS = 2  # a packed file that the server has packed again
PIECE_BYTES = 1 << 20
MAX_REDIRECTS = 5
ADDRESS = re.compile(r"https?://", re.IGNORECASE)
NAME = re.compile(r"[\w.-]{1,100}")
SUFFIXES = (".gz", ".xml", ".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".parquet", ".json")


@dataclass(frozen=True)
class FeedFile:
    """A feed on this disk; the tags and the hash are those of its download."""

    path: Path
    sha256: str = ""
    etag: str = ""
    last_modified: str = ""


def is_feed_address(source: str) -> bool:
    return bool(ADDRESS.match(source))


def fetch_client(settings: Settings, max_bytes: int, timeout_s: float) -> Client:
    """Return what asks the hosts of feeds and their images."""
    hosts = AllowedHosts.parse(settings.fetch_hosts, star=True)
    return Client(hosts, "FETCH_HOSTS", max_bytes, timeout_s, MAX_REDIRECTS)


def default_name(source: str) -> str:
    """Return the name of a feed that was given none: that of its file."""
    path, host = source, ""
    if is_feed_address(source):
        try:
            parts = urlsplit(source)
        except ValueError:  # the download says what is wrong
            return "feed"
        path, host = unquote(parts.path), parts.hostname or ""
    name = path.rstrip("/").rpartition("/")[2]
    while name.lower().endswith(SUFFIXES):
        name = name.rpartition(".")[0]
    name = re.sub(r"[^\w.-]+", "-", name).strip("-.")[:100]
    return name or host or "feed"


def require_name(name: str) -> None:
    """Check the name of a feed.

    Raises:
        WrongUse: it cannot be one.
    """
    if not NAME.fullmatch(name):
        raise WrongUse(
            f"The name {name[:100]!r} cannot be a feed's: up to 100 letters, digits, dots, hyphens "
            "and underscores are allowed."
        )


@contextmanager
def download_feed(
    url: str, settings: Settings, *, etag: str = "", last_modified: str = ""
) -> Iterator[FeedFile | None]:
    """Yield the file of a feed, None where the server says that it has not changed.

    Raises:
        WrongUse: the address may not be asked, or gives no feed in time and within the limits.
    """
    client = fetch_client(settings, int(settings.feed_max_bytes), settings.feed_timeout_s)
    headers = {"Accept-Encoding": "gzip"}
    if etag:
        headers["If-None-Match"] = etag
    if last_modified:
        headers["If-Modified-Since"] = last_modified
    with tempfile.TemporaryDirectory(prefix="imgrec-feed-") as folder:
        # By its suffix, JSON Lines are told from a table. The rest may be no name of a file.
        name = client.check(url).path.rpartition("/")[2].lower()
        suffixes = ""
        while suffix := next((each for each in SUFFIXES if name.endswith(each)), ""):
            name, suffixes = name.removesuffix(suffix), f"{suffix}{suffixes}"
        path = Path(folder) / f"feed{suffixes[-40:]}"
        with writing_temporary("The feed"), path.open("wb") as stream:
            response = client.request(url, headers, _FileBody(stream))
        if response.status == 304 and headers.keys() & {"If-None-Match", "If-Modified-Since"}:
            yield None
            return
        if response.status != 200:
            wait_s = retry_after_s(response.headers)
            later = f" and asks to wait {wait_s:,.0f} s" if wait_s is not None else ""
            raise FetchFailed(f"The feed answers with status {response.status}{later}.")
        digest = file_sha256(path)
        with unpacked(path, int(settings.feed_max_bytes)) as plain:
            yield FeedFile(plain, digest, *validators(response.headers))


@contextmanager
def unpacked(path: Path, max_bytes: int) -> Iterator[Path]:
    """Yield a file, or what it holds where it was packed with gzip.

    Raises:
        WrongUse: it holds more than `max_bytes`, or is damaged.
    """
    with tempfile.TemporaryDirectory(prefix="imgrec-feed-") as folder:
        for layer in range(LAYERS):
            if not _is_packed(path):
                break
            target = Path(folder) / str(layer) / path.name.removesuffix(".gz")
            target.parent.mkdir()
            try:
                with (
                    gzip.open(path) as source,
                    writing_temporary("The unpacked file"),
                    target.open("wb") as stream,
                ):
                    _copy(source, stream, max_bytes)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise WrongUse(f"The packed file '{path.name}' is damaged: {error}.") from error
            path = target
        yield path


def _is_packed(path: Path) -> bool:
    if not path.is_file():
        return False  # a pipe can be read once only
    try:
        with path.open("rb") as stream:
            return stream.read(len(GZIP)) == GZIP
    except OSError:
        return False  # whoever reads it says why


def _copy(source: gzip.GzipFile, target: BinaryIO, max_bytes: int) -> None:
    left = max_bytes
    while piece := source.read(PIECE_BYTES):
        left -= len(piece)
        if left < 0:
            raise WrongUse(
                f"The feed holds more than FEED_MAX_BYTES ({max_bytes:,} bytes) when it is "
                "unpacked."
            )
        target.write(piece)


class _FileBody:
    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def begin(self) -> None:
        self._stream.seek(0)
        self._stream.truncate()

    def write(self, piece: bytes) -> None:
        self._stream.write(piece)
