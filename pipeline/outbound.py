"""Requests to addresses that others choose: images of queries, feeds and their images, webhooks.

Whoever names an address could make this machine ask its own network (server-side request forgery).
So only allowed hosts are asked; a name is resolved once, each of its addresses is checked, and the
connection goes to a checked address: the name cannot change its mind in between. Redirects start
anew. Environment variables for proxies are ignored: a proxy would resolve the name again.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import SplitResult, quote, urljoin, urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from pipeline.allowed_hosts import AllowedHosts
from pipeline.errors import WrongUse

# (address, port) pairs of a name; raises OSError.
Resolve = Callable[[str, int], list[str]]

REDIRECTS = (301, 302, 303, 307, 308)
PIECE_BYTES = 65_536
USER_AGENT = "imgrec"


class AddressRefused(WrongUse):
    """An address that is not asked, whatever it would answer."""


class FetchFailed(WrongUse):
    """An allowed address did not answer as it should."""


class _SinkFailed(Exception):
    """Wraps what a sink raised, which says nothing of the network."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class AnswerRefused(FetchFailed):
    """An answer that would be the same at the next attempt: too large, or an endless redirect."""


@dataclass(frozen=True)
class Response:
    """What an address answered; `data` is complete, or empty where a sink took it.

    Attributes:
        headers: the last value of each, by its name in lower case.
        robots: every value of X-Robots-Tag.
    """

    status: int
    headers: Mapping[str, str]
    data: bytes
    url: str
    robots: tuple[str, ...] = ()


class Sink(Protocol):
    """Takes a body of status 200 while it comes; may raise to end the request."""

    def begin(self) -> None:
        """Forget what came before: the connection broke, and another attempt begins."""

    def write(self, piece: bytes) -> None:
        """Take the next piece."""


@dataclass(frozen=True)
class Client:
    """Sends requests within limits.

    Attributes:
        max_bytes: of a body; timeout_s: from the first name to the last byte, redirects included.
        setting: the name of the setting that lists the hosts, for sentences.
    """

    hosts: AllowedHosts
    setting: str
    max_bytes: int
    timeout_s: float = 10.0
    max_redirects: int = 3
    resolve: Resolve = field(default_factory=lambda: resolve)

    def check(self, url: str) -> SplitResult:
        """Return the parts of an address that may be asked, before its name is resolved.

        Raises:
            AddressRefused: it may not.
        """
        shown = _shown(url)
        # urlsplit removes tabs and line breaks, and a browser takes \ for /: what is checked must
        # be what is asked.
        if not url.isprintable() or re.search(r"[\s\\]", url) or len(url) > 2048:
            raise AddressRefused(f"The address {shown} is not a valid URL.")
        try:
            parts = urlsplit(url)
            _ = parts.port
        except ValueError:
            raise AddressRefused(f"The address {shown} is not a valid URL.") from None
        if parts.scheme not in ("http", "https"):
            raise AddressRefused(f"The address {shown} must begin with http:// or https://.")
        if "@" in parts.netloc:
            raise AddressRefused("An address must not contain a user or a password.")
        host = _host(parts)
        if not host:
            raise AddressRefused(f"The address {shown} names no host.")
        if not self.hosts.allow_name(host):
            raise AddressRefused(f"The host '{host[:100]}' is not allowed by {self.setting}.")
        return parts

    def get(self, url: str, headers: Mapping[str, str] | None = None) -> Response:
        """Return what an address answers after redirects.

        Raises:
            AddressRefused: it, or where it leads, may not be asked.
            FetchFailed: no whole answer of status 200 in time.
        """
        response = self.request(url, headers)
        if response.status != 200:
            raise FetchFailed(f"{_shown(url)} answers with status {response.status}.")
        return response

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Response:
        """Send a body; a redirect is an answer like any other.

        Raises:
            AddressRefused, FetchFailed: see `get`; any status is returned.
        """
        return self._once("POST", url, body, headers, time.monotonic() + self.timeout_s)

    def request(
        self, url: str, headers: Mapping[str, str] | None = None, sink: Sink | None = None
    ) -> Response:
        """Return what an address answers after redirects, whatever its status.

        Args:
            sink: takes the body of status 200. Without one, it is in the response.

        Raises:
            AddressRefused, FetchFailed: see `get`; also what the sink raises.
        """
        deadline = time.monotonic() + self.timeout_s
        for _ in range(self.max_redirects + 1):
            response = self._once("GET", url, None, headers or {}, deadline, sink)
            location = response.headers.get("location")
            if response.status not in REDIRECTS or not location:
                return response
            try:
                # Browsers, too, send a blank that a server has left as it is.
                url = urljoin(url, _utf8(location).strip(" ").replace(" ", "%20"))
            except ValueError as error:
                raise AnswerRefused(f"{_shown(url)} redirects to no valid address.") from error
        raise AnswerRefused(f"{_shown(url)}: more than {self.max_redirects} redirects.")

    def _once(
        self,
        method: str,
        url: str,
        body: bytes | None,
        headers: Mapping[str, str],
        deadline: float,
        sink: Sink | None = None,
    ) -> Response:
        parts = self.check(url)
        host = _host(parts)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        last: Exception | None = None
        for address in self._addresses(host, port, deadline):
            try:
                return self._ask(method, parts, host, port, address, body, headers, deadline, sink)
            except _SinkFailed as failed:
                raise failed.error from failed.error.__cause__
            except (
                OSError,
                http.client.HTTPException,  # a connection without a pool lets them through
                urllib3.exceptions.HTTPError,
                ValueError,
            ) as error:
                last = error
                if time.monotonic() >= deadline:
                    break
        if time.monotonic() >= deadline:
            raise FetchFailed(f"{_shown(url)} did not answer within {self.timeout_s:g} s.")
        raise FetchFailed(f"{_shown(url)} cannot be reached ({type(last).__name__}).") from last

    def _addresses(self, host: str, port: int, deadline: float) -> list[str]:
        """Resolve a name; every address must be allowed, not only the one that is used."""
        texts = _within(deadline, lambda: self.resolve(host, port))
        if not texts:
            raise FetchFailed(f"The host '{host[:100]}' cannot be resolved.")
        for text in texts:
            if not self.hosts.allow_address(ipaddress.ip_address(text)):
                raise AddressRefused(
                    f"The host '{host[:100]}' has an address of a private or reserved network; "
                    f"{self.setting} allows a network by its name, e.g. 10.1.0.0/16."
                )
        return texts

    def _ask(
        self,
        method: str,
        parts: SplitResult,
        host: str,
        port: int,
        address: str,
        body: bytes | None,
        headers: Mapping[str, str],
        deadline: float,
        sink: Sink | None,
    ) -> Response:
        kind = _PinnedHTTPS if parts.scheme == "https" else _Pinned
        left = max(0.1, deadline - time.monotonic())
        connection = kind(host, port, timeout=left)
        connection.pinned_address = address
        target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
        if parts.query:
            target += "?" + quote(parts.query, safe="/?%:@!$&'()*+,;=~-._")
        fields = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", **headers}
        # Each piece of an answer restarts the socket's own timeout: a slow drip would never end.
        with contextlib.closing(connection), _cut_off(connection, left):
            connection.request(
                method, target, body, fields, preload_content=False, decode_content=False
            )
            response = connection.getresponse()
            lowered = {name.lower(): value for name, value in response.headers.items()}
            robots = tuple(response.headers.getlist("x-robots-tag"))
            data = bytearray()
            if method == "POST" or response.status == 200:
                body_sink = sink if sink is not None and response.status == 200 else _Memory(data)
                self._receive(connection, response, body_sink, parts.geturl())
            return Response(response.status, lowered, bytes(data), parts.geturl(), robots)

    def _receive(
        self,
        connection: _Pinned | _PinnedHTTPS,
        response: urllib3.response.BaseHTTPResponse,
        sink: Sink,
        url: str,
    ) -> None:
        length = response.headers.get("content-length")
        expected = int(length) if length and length.isdigit() else None
        too_large = f"{_shown(url)} has more than {self.max_bytes:,} bytes."
        if expected is not None and expected > self.max_bytes:
            raise AnswerRefused(too_large)
        _into(sink.begin)
        received = 0
        while piece := response.read1(PIECE_BYTES):
            received += len(piece)
            if received > self.max_bytes:
                raise AnswerRefused(too_large)
            _into(sink.write, piece)
        if connection.is_cut_off:  # it looks like the end of an answer without a length
            raise TimeoutError
        if expected is not None and expected != received:
            raise OSError("the answer is cut off")


def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a name."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found))


def _into(sink: Callable[..., None], *piece: bytes) -> None:
    try:
        sink(*piece)
    except Exception as error:
        raise _SinkFailed(error) from error


class _Memory:
    def __init__(self, data: bytearray) -> None:
        self._data = data

    def begin(self) -> None:
        self._data.clear()

    def write(self, piece: bytes) -> None:
        self._data += piece


class _PinnedMixin:
    """A connection to an address that was checked, under the host's name (also in TLS)."""

    pinned_address = ""
    cut_off: Callable[[], None] | None = None
    is_cut_off = False
    timeout: Any
    port: int

    def _new_conn(self) -> socket.socket:
        sock = socket.create_connection((self.pinned_address, self.port), self.timeout)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A second handle: the first one goes over to TLS.
        handle = sock.dup()

        def cut_off() -> None:
            self.is_cut_off = True
            with contextlib.suppress(OSError):
                handle.shutdown(socket.SHUT_RDWR)

        self.cut_off, self._handle = cut_off, handle
        return sock


class _Pinned(_PinnedMixin, HTTPConnection):
    pass


class _PinnedHTTPS(_PinnedMixin, HTTPSConnection):
    pass


@contextlib.contextmanager
def _cut_off(connection: _Pinned | _PinnedHTTPS, seconds: float) -> Iterator[None]:
    """End a connection after some seconds, whatever it is doing."""

    def end() -> None:
        if connection.cut_off is not None:
            connection.cut_off()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if connection.cut_off is not None:
            connection._handle.close()


def _within(deadline: float, work: Callable[[], list[str]]) -> list[str]:
    """Run work that cannot be interrupted; return nothing if it fails or takes too long."""
    result: list[str] = []

    def run() -> None:
        with contextlib.suppress(OSError, UnicodeError):
            result.extend(work())

    thread = threading.Thread(target=run, name="resolve", daemon=True)
    thread.start()
    thread.join(max(0.0, deadline - time.monotonic()))
    return [] if thread.is_alive() else result


def _utf8(location: str) -> str:
    """Return a header of raw bytes beyond ASCII, read as Latin-1 by http.client, as browsers do."""
    raw = location.encode("latin-1")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "".join(chr(byte) if byte < 128 else f"%{byte:02X}" for byte in raw)


def _host(parts: SplitResult) -> str:
    """Return the host as DNS knows it: lower case, without a dot at its end, in ASCII."""
    host = (parts.hostname or "").rstrip(".").lower()
    if host.isascii():
        return host
    try:
        return host.encode("idna").decode()
    except UnicodeError:
        return ""


def _shown(url: str) -> str:
    """Return an address as a sentence shows it: no query, which may hold a secret."""
    text = re.sub(r"//[^/@]*@", "//", url.partition("?")[0].partition("#")[0])
    return f"'{text[:200]}'"
