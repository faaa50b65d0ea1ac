"""A whole imgrec with its web server, and a client that speaks HTTP."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import urllib3
from live_stack import ROOT, LiveStack, draw_folder, until
from preloaded import Process, start

from web.context import Web
from web.server import make_server
from workers.resources import Resources

TIMEOUT = urllib3.Timeout(connect=5.0, read=60.0)


@dataclass
class Answer:
    """One response."""

    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def detail(self) -> str:
        """The sentence of a problem, whose form is checked."""
        assert self.headers["Content-Type"] == "application/problem+json", self.body[:500]
        problem = self.json
        assert problem.keys() == {"type", "title", "status", "detail"}
        assert problem["status"] == self.status
        return str(problem["detail"])


@dataclass(kw_only=True)
class HttpClient:
    """Asks a web server on this machine."""

    port: int
    key: str = ""
    pool: urllib3.PoolManager = field(
        default_factory=lambda: urllib3.PoolManager(timeout=TIMEOUT, retries=False, maxsize=64)
    )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def send(self, method: str, path: str, **options: Any) -> Answer:
        """Send a request; `path` goes out as it is, percent signs and dots included."""
        headers = dict(options.pop("headers", {}))
        key = options.pop("key", self.key)
        if key:
            headers.setdefault("Authorization", f"Bearer {key}")
        if "json" in options:
            options["body"] = json.dumps(options.pop("json")).encode()
            headers.setdefault("Content-Type", "application/json")
        pool = self.pool.connection_from_host("127.0.0.1", self.port, "http")
        response = pool.urlopen(method, path, headers=headers, redirect=False, **options)
        return Answer(response.status, response.headers, response.data)

    def get(self, path: str, **options: Any) -> Answer:
        return self.send("GET", path, **options)

    def post(self, path: str, **options: Any) -> Answer:
        return self.send("POST", path, **options)

    def search(self, image: Path | bytes | None = None, **fields: Any) -> Answer:
        """Search with an upload, or without an image by JSON."""
        if image is None:
            return self.post("/v1/search", json=fields)
        data = image if isinstance(image, bytes) else image.read_bytes()
        return self.upload("/v1/search", data, **fields)

    def upload(self, path: str, data: bytes, name: str = "photo.jpg", **fields: Any) -> Answer:
        parts: list[tuple[str, Any]] = [("image", (name, data))]
        for field_name, value in fields.items():
            values = value if isinstance(value, list) else [value]
            parts += [(field_name, str(each)) for each in values]
        body, content_type = urllib3.encode_multipart_formdata(parts)
        return self.post(path, body=body, headers={"Content-Type": content_type})

    def connect(self) -> socket.socket:
        """Open a connection to say anything on."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)


@dataclass(kw_only=True)
class WebServer(HttpClient):
    """`imgrec web` of a stack, and who asks it."""

    stack: LiveStack
    process: Process | subprocess.Popen[bytes]
    log: Path

    def stop(self, patience_s: float = 20.0) -> int:
        self.process.send_signal(signal.SIGTERM)
        return int(self.process.wait(patience_s) or 0)


def start_web(stack: LiveStack, *options: str, **more: str) -> WebServer:
    """Start `imgrec web` on a free port; return when it answers."""
    log = stack.folder / f"web-{len(stack.processes)}.log"
    log.touch()
    command = ["imgrec", "web", "--port", "0", *options]
    process = start(command, cwd=ROOT, env=stack.env(**more), log=log)
    stack.processes.append(process)

    def port() -> int:
        if process.poll() is not None:
            raise AssertionError(log.read_text())
        match = re.search(r"Serving http://127\.0\.0\.1:(\d+)\.", log.read_text())
        return int(match[1]) if match else 0

    listens = until(port, "the web server listens", 60)
    server = WebServer(stack=stack, process=process, port=listens, log=log)

    def lives() -> bool:
        with contextlib.suppress(urllib3.exceptions.HTTPError):
            return server.get("/healthz").status == 200
        return False

    until(lives, "the web server answers", 30)
    return server


@contextlib.contextmanager
def serve_here(resources: Resources) -> Iterator[tuple[HttpClient, Web]]:
    """Serve in a thread of this process, for tests that look into the server or break it."""
    web = Web(resources)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        server = make_server(web)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        until(lambda: server.started, "the web server has started", 30)
        try:
            yield HttpClient(port=listener.getsockname()[1]), web
        finally:
            server.handle_exit(signal.SIGTERM, None)
            thread.join()


def shop(folder: Path, model: Path, count: int = 12) -> Iterator[LiveStack]:
    """A stack with workers and an index of drawn products."""
    stack = LiveStack(folder, model)
    folder.mkdir(exist_ok=True)
    stack.start_redis()
    draw_folder(stack.products, count)
    stack.workers("embed", "index", "query")
    stack.rebuild()
    yield stack
    stack.close()
