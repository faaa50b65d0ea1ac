"""No address that others choose makes this machine ask its own network."""

from __future__ import annotations

import errno
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from pipeline.allowed_hosts import AllowedHosts, is_public
from pipeline.outbound import AddressRefused, Client, FetchFailed

LOCAL = AllowedHosts.parse("files.example,other.example,*.cdn.example,127.0.0.0/8")
OPEN = AllowedHosts.parse("files.example,*.cdn.example")


class Server:
    """Answers each connection with what `serve` sends on it."""

    def __init__(self, serve: Callable[[socket.socket, str], None], tls: ssl.SSLContext | None):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.requests: list[str] = []
        self._serve, self._tls = serve, tls
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        try:
            with connection:
                if self._tls:
                    connection = self._tls.wrap_socket(connection, server_side=True)
                request = connection.recv(65_536).decode()
                self.requests.append(request)
                self._serve(connection, request)
        except OSError:
            pass

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(
        answer: bytes | Callable[[socket.socket, str], None], tls: ssl.SSLContext | None = None
    ) -> Server:
        work = answer if callable(answer) else lambda connection, _: connection.sendall(answer)
        servers.append(Server(work, tls))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def ok(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (
        len(body),
        body,
    )


def redirect(to: str) -> bytes:
    return f"HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n".encode()


def client(
    hosts: AllowedHosts = LOCAL, addresses: list[str] | None = None, **limits: float
) -> Client:
    """A client whose names all have these addresses."""
    found = ["127.0.0.1"] if addresses is None else addresses
    return Client(
        hosts,
        "IMAGE_URL_HOSTS",
        int(limits.get("max_bytes", 1000)),
        limits.get("timeout_s", 5.0),
        resolve=lambda host, port: list(found),
    )


def test_an_allowed_host_is_asked_under_its_name(serve: Callable[..., Server]) -> None:
    server = serve(ok(b"image"))
    response = client().get(f"http://Files.Example.:{server.port}/a%20b/%2F?q=1&x=ü")
    assert (response.status, response.data) == (200, b"image")
    first, *headers = server.requests[0].split("\r\n")
    assert first == "GET /a%20b/%2F?q=1&x=%C3%BC HTTP/1.1"
    assert f"Host: files.example:{server.port}" in headers


@pytest.mark.parametrize(
    "url",
    [
        "ftp://files.example/a",
        "file:///etc/passwd",
        "gopher://files.example/",
        "//files.example/a",
        "http://",
        "http:///a",
        "http://user@files.example/",
        "http://user:password@files.example/",
        "http://files.example@127.0.0.1/",
        "http://evil.example/",
        "http://files.example.evil.example/",
        "http://evilfiles.example/",
        "http://cdn.example/",  # *.cdn.example is what lies below it
        "http://evil.example#files.example/",
        "http://evil.example\\@files.example/",
        "http://files.example\r\nX: y/",
        "http://files.example/\r\nX: y",
        "http://files.example:99999/",
        "http://127.0.0.1/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[64:ff9b::7f00:1]/",
        f"http://files.example/{'a' * 3000}",
    ],
)
def test_an_address_that_is_not_allowed_is_never_resolved(url: str) -> None:
    def resolve(host: str, port: int) -> list[str]:
        raise AssertionError(f"{host} was resolved")

    with pytest.raises(AddressRefused) as refused:
        Client(OPEN, "IMAGE_URL_HOSTS", 1000, resolve=resolve).get(url)
    assert "password" not in str(refused.value).replace("or a password", "")


PRIVATE = [
    *("127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1"),
    *("169.254.169.254", "100.64.0.1", "192.0.0.1", "198.18.0.1", "224.0.0.1", "240.0.0.1"),
    *("255.255.255.255", "::", "::1", "fe80::1", "fc00::1", "fd00::1", "fec0::1", "ff02::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1"),
    *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::", "2002:a00:1::"),
    *("2001:0:7f00:1::", "2001:db8::1", "192.0.2.1", "203.0.113.9"),
]


@pytest.mark.parametrize("address", PRIVATE)
def test_a_name_with_one_address_of_another_network_is_refused(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))
    for addresses in ([address], ["93.184.216.34", address], [address, "93.184.216.34"]):
        with pytest.raises(AddressRefused, match="private or reserved network"):
            client(OPEN, addresses).get("http://files.example/a")


@pytest.mark.parametrize("address", ["93.184.216.34", "8.8.8.8", "2606:2800:220:1::1"])
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


def test_a_name_that_changes_its_mind_is_asked_at_the_address_that_was_checked(
    serve: Callable[..., Server],
) -> None:
    server = serve(ok(b"the checked one"))
    asked = []

    def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["169.254.169.254"]

    hosts = AllowedHosts.parse("files.example,127.0.0.1/32")
    answer = Client(hosts, "X", 1000, resolve=resolve).get(f"http://files.example:{server.port}/")
    assert (answer.data, asked) == (b"the checked one", ["files.example"])


@pytest.mark.parametrize(
    "target",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://[::1]:6379/",
        "http://evil.example/",
        "file:///etc/passwd",
        "http://user:password@files.example/",
        "//evil.example/",
    ],
)
def test_each_redirect_is_checked_as_the_first_address_is(
    serve: Callable[..., Server], target: str
) -> None:
    server = serve(redirect(target))
    with pytest.raises(AddressRefused):
        client().get(f"http://files.example:{server.port}/")
    assert len(server.requests) == 1


def test_a_redirect_to_a_name_that_resolves_inwards_is_refused(
    serve: Callable[..., Server],
) -> None:
    server = serve(redirect("http://other.example/"))
    where = {"files.example": "127.0.0.1", "other.example": "10.0.0.1"}
    outside = Client(LOCAL, "X", 1000, resolve=lambda host, port: [where[host]])
    with pytest.raises(AddressRefused, match=r"other\.example"):
        outside.get(f"http://files.example:{server.port}/")


def test_redirects_are_followed_a_few_times(serve: Callable[..., Server]) -> None:
    target = serve(ok(b"there"))
    first = serve(redirect(f"http://a.cdn.example:{target.port}/x"))
    assert client().get(f"http://files.example:{first.port}/").data == b"there"
    circle = serve(redirect("/again"))
    with pytest.raises(FetchFailed, match="more than 3 redirects"):
        client().get(f"http://files.example:{circle.port}/")
    assert len(circle.requests) == 4


@pytest.mark.parametrize(
    ("location", "asked"),
    [
        ("/café/é.jpg?ü=1".encode(), "/caf%C3%A9/%C3%A9.jpg?%C3%BC=1"),
        ("/café.jpg".encode("latin-1"), "/caf%E9.jpg"),
        (b"/caf%C3%A9.jpg", "/caf%C3%A9.jpg"),
        (b"/a b.jpg?c d", "/a%20b.jpg?c%20d"),
    ],
)
def test_a_redirect_beyond_ascii_is_followed_as_browsers_do(
    serve: Callable[..., Server], location: bytes, asked: str
) -> None:
    answers = [b"HTTP/1.1 302 Found\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % location]

    def answer(connection: socket.socket, _: str) -> None:
        connection.sendall(answers.pop() if answers else ok(b"there"))

    server = serve(answer)
    assert client().get(f"http://files.example:{server.port}/").data == b"there"
    assert server.requests[1].split()[1] == asked


def test_what_a_sink_raises_is_not_the_networks_fault(serve: Callable[..., Server]) -> None:
    class Full:
        def begin(self) -> None:
            pass

        def write(self, piece: bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    server = serve(ok(b"body"))
    with pytest.raises(OSError, match="No space left"):
        client().request(f"http://files.example:{server.port}/", sink=Full())
    assert len(server.requests) == 1


def endless(connection: socket.socket, _: str) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b"x" * 1000)


def drip(connection: socket.socket, _: str) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while not stop.wait(0.05):
        connection.sendall(b"x")


def drip_headers(connection: socket.socket, _: str) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while not stop.wait(0.05):
        connection.sendall(b"X-A: b\r\n")


def silence(connection: socket.socket, _: str) -> None:
    stop.wait(10)


def cut_off(connection: socket.socket, _: str) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhalf")


stop = threading.Event()


@pytest.mark.parametrize(
    ("behaviour", "sentence"),
    [
        (endless, "more than 1,000 bytes"),
        (drip, "did not answer within 0.5 s|more than 1,000 bytes"),
        (drip_headers, "did not answer within 0.5 s"),
        (silence, "did not answer within 0.5 s"),
        (cut_off, "cannot be reached"),
    ],
)
def test_what_never_ends_ends(
    serve: Callable[..., Server], behaviour: Callable[[socket.socket, str], None], sentence: str
) -> None:
    server = serve(behaviour)
    try:
        with pytest.raises(FetchFailed, match=sentence):
            client(timeout_s=0.5).get(f"http://files.example:{server.port}/")
    finally:
        stop.set()
        stop.clear()


def test_only_a_whole_answer_of_status_200_is_one(serve: Callable[..., Server]) -> None:
    server = serve(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
    with pytest.raises(FetchFailed, match="answers with status 404"):
        client().get(f"http://files.example:{server.port}/a?token=secret")
    with pytest.raises(FetchFailed, match="cannot be resolved") as failed:
        client(addresses=[]).get("http://files.example/a?token=secret")
    assert "secret" not in str(failed.value)


def test_tls_is_verified_by_the_name_and_not_by_the_address(
    serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    for name, good in (("files.example", True), ("other.example", False), ("127.0.0.1", False)):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name).configure_cert(context)
        server = serve(ok(b"safe"), context)
        url = f"https://files.example:{server.port}/"
        if good:
            assert client().get(url).data == b"safe"
        else:
            with pytest.raises(FetchFailed, match="cannot be reached"):
                client().get(url)


@pytest.mark.parametrize(
    "answer",
    [
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 " + b"x" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 101 + b"\r\n",
        redirect("http://[bad"),
    ],
)
def test_an_answer_that_is_no_http_is_a_failure_of_its_address(
    serve: Callable[..., Server], answer: bytes
) -> None:
    """One such host of pictures ended the job of a whole feed."""
    with pytest.raises(FetchFailed):
        client().get(f"http://files.example:{serve(answer).port}/")


def test_a_post_is_sent_once_and_never_redirected(serve: Callable[..., Server]) -> None:
    server = serve(redirect("http://169.254.169.254/"))
    answer = client().post(f"http://files.example:{server.port}/hook", b"{}", {"X-A": "b"})
    assert answer.status == 302
    assert server.requests[0].startswith("POST /hook ")


@pytest.mark.parametrize("setting", ["http://a.example", "a.example:80", "*", "a b", "10.0.0.1/8"])
def test_a_setting_that_names_no_host_is_an_error(setting: str) -> None:
    with pytest.raises(ValueError, match="neither a host"):
        AllowedHosts.parse(setting)
