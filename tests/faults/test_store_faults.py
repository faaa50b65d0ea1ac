"""Photos in an object store that goes away, is slow, or fails now and then."""

from __future__ import annotations

import http.client
import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.fault_run import FaultRun
from live_stack import LiveStack, until
from s3_server import SECRET, S3Server

from pipeline.storage.address import Address
from pipeline.storage.object_store import ObjectStore

pytestmark = pytest.mark.long

SMALL = {"SHARD_SIZE": "20"}


class StoreProxy:
    """Passes requests on to an S3 server; slow, or with HTTP 503 for some of them.

    With `full`, it takes no object any more.
    """

    def __init__(self, target: int) -> None:
        self.every, self.delay_s, self.full = 0, 0.0, False
        self.failed = 0
        proxy, count, turn = self, [0], threading.Lock()

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _pass_on(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(size)
                with turn:
                    count[0] += 1
                    fails = bool(proxy.every) and count[0] % proxy.every == 0
                    proxy.failed += fails
                time.sleep(proxy.delay_s)
                if proxy.full and self.command in ("PUT", "POST"):
                    self._answer(507, [], b"<Error><Code>InsufficientStorage</Code></Error>")
                    return
                if fails:
                    self._answer(503, [], b"<Error><Code>SlowDown</Code></Error>")
                    return
                link = http.client.HTTPConnection("127.0.0.1", target, timeout=60)
                link.request(self.command, self.path, body, dict(self.headers))
                answer = link.getresponse()
                headers = [
                    (name, value)
                    for name, value in answer.getheaders()
                    if name.lower() not in ("transfer-encoding", "connection", "content-length")
                ]
                size = answer.getheader("Content-Length") if self.command == "HEAD" else None
                self._answer(answer.status, headers, answer.read(), size)
                link.close()

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _pass_on  # noqa: N815

            def _answer(
                self,
                status: int,
                headers: list[tuple[str, str]],
                body: bytes,
                size: str | None = None,
            ) -> None:
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", size or str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(stack: LiveStack, tmp_path: Path) -> Iterator[S3Server]:
    """A store of this test's own, which it may stop."""
    server = S3Server(tmp_path / "s3")
    stack.environment |= server.environment
    yield server
    server.close()


@pytest.fixture
def photos(server: S3Server, fault_run: FaultRun, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a store with the images of the run; its folder is gone."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    fault_run.draw(120)
    address = "s3://shop/photos"
    store = ObjectStore(Address.parse(address))
    products = fault_run.stack.products
    for name in [*fault_run.good, *fault_run.bad]:
        store.put(name, (products / name).read_bytes())
    products.rename(products.with_name("elsewhere"))
    return address


def enqueue(fault_run: FaultRun, address: str, **more: str) -> str:
    return str(fault_run.stack.answer("enqueue-rebuild", address, **SMALL, **more)["job_id"])


@pytest.mark.fault(40, "the store of the photos {how}")
@pytest.mark.short("away for 20 s")
@pytest.mark.parametrize("how", ["away for 20 s", "failing every fifth request", "slow"])
def test_a_store_in_trouble_stops_no_rebuild_and_blames_no_image(
    fault_run: FaultRun, photos: str, server: S3Server, how: str
) -> None:
    stack = fault_run.stack
    proxy = StoreProxy(server.port)
    stack.environment["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{proxy.port}"
    if how == "slow":
        proxy.delay_s = 0.3
    if how == "failing every fifth request":
        proxy.every = 5
    stack.workers("embed", "index")
    job_id = enqueue(fault_run, photos)
    fault_run.hit()
    if how == "away for 20 s":
        until(lambda: fault_run.state(job_id) == "running", "a worker has begun")
        server.stop()
        time.sleep(20)
        server.start()
    fault_run.publishes(job_id)
    if proxy.every:
        assert proxy.failed > 5
    assert SECRET not in stack.log("embed") + stack.log("index")
    proxy.close()


@pytest.mark.fault(41, "kill -9 of an embed worker that reads from a store")
@pytest.mark.short
def test_a_worker_killed_in_the_middle_of_a_store_s_images_loses_none(
    fault_run: FaultRun, photos: str
) -> None:
    at = f"image:{fault_run.rng.choice(fault_run.good)}"
    victims = [fault_run.stack.supervise("embed", **fault_run.armed(at)) for _ in range(2)]
    fault_run.stack.worker("index")
    job_id = enqueue(fault_run, photos)
    fault_run.wait_for_failpoint()
    fault_run.publishes(job_id)
    assert sum(victim.restarts for victim in victims) == 1
    assert fault_run.stack.answer("enqueue-rebuild", photos, "--wait")["reused"] == len(
        fault_run.good
    )


@pytest.mark.fault(42, "credentials of the store that are refused while a rebuild runs")
def test_refused_credentials_end_no_job_and_blame_no_image(
    fault_run: FaultRun, photos: str
) -> None:
    stack = fault_run.stack
    wrong = {"AWS_SECRET_ACCESS_KEY": "wrong"}
    stack.worker("embed", **wrong)
    stack.worker("embed")
    stack.worker("index")
    job_id = enqueue(fault_run, photos)
    fault_run.hit()
    fault_run.publishes(job_id)
    done = stack.imgrec("enqueue-rebuild", photos, **wrong)
    assert done.returncode == 4
    assert "refuses access (SignatureDoesNotMatch)" in done.stderr
    assert SECRET not in done.stderr
