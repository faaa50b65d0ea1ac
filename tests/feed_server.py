"""A web server of the test's own: feeds and images that are slow, gone, refused, endless, ..."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image

Answer = Callable[[BaseHTTPRequestHandler], None]
NETWORK = "*,127.0.0.0/8"  # the FETCH_HOSTS that allows this server


def picture(seed: int, form: str = "PNG") -> bytes:
    """Draw an image that no other seed has."""
    pixels = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((24, 24), Image.Resampling.NEAREST).save(buffer, form)
    return buffer.getvalue()


@dataclass
class Page:
    """What the server answers to a path."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    etag: str = ""
    last_modified: str = ""
    seconds: float = 0.0  # before the answer
    answer: Answer | None = None  # in place of all that


class FeedServer:
    """Serves `pages` by path, and remembers who was asked, when and how many at once."""

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.requests: list[tuple[float, str, dict[str, str]]] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server._enter(self)
                with contextlib.suppress(OSError):  # the client has ended the connection
                    server._answer(self)

            def log_message(self, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self._http.server_port}{path}"

    def put(self, path: str, body: bytes = b"", **page: object) -> str:
        """Serve a page; return its address."""
        self.pages[path] = Page(body, **page)  # type: ignore[arg-type]
        return self.url(path)

    def paths(self) -> list[str]:
        return [path for _, path, _ in self.requests]

    def counts(self) -> Counter[str]:
        return Counter(self.paths())

    def times(self, path: str) -> list[float]:
        return [at for at, asked, _ in self.requests if asked == path]

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _enter(self, handler: BaseHTTPRequestHandler) -> None:
        headers = {name.lower(): value for name, value in handler.headers.items()}
        with self._lock:
            self.requests.append((time.monotonic(), handler.path.partition("?")[0], headers))
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        page = self.pages.get(handler.path.partition("?")[0], Page(b"no such page", 404))
        time.sleep(page.seconds)
        with self._lock:  # a client that has its answer may ask again before this thread goes on
            self._at_once -= 1
        if page.answer is not None:
            page.answer(handler)
            return
        same = page.etag and handler.headers.get("If-None-Match") == page.etag
        same = same or (
            page.last_modified and handler.headers.get("If-Modified-Since") == page.last_modified
        )
        status, body = (304, b"") if same else (page.status, page.body)
        handler.send_response(status)
        tags = {"ETag": page.etag, "Last-Modified": page.last_modified}
        for name, value in ({name: v for name, v in tags.items() if v} | page.headers).items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)


def endless(head: bytes = b"") -> Answer:
    """Return an answer without a length that never ends."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(head)
        while True:
            handler.wfile.write(b"\xff" * 65_536)

    return answer


def dripping(body: bytes, pause_s: float) -> Answer:
    """Return an answer that comes a byte at a time."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        for byte in body:
            handler.wfile.write(bytes([byte]))
            time.sleep(pause_s)

    return answer
