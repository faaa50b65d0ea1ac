"""Rebuilds over HTTP: started once, watched, cancelled, tried again; their end is told."""

from __future__ import annotations

import base64
import csv
import hashlib
import hmac
import io
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from feed_server import NETWORK, FeedServer, picture
from live_stack import LiveStack, draw_product, until
from web_stand import WebServer, start_web

from pipeline.images.failure import Failure
from web.jobs import failures_csv
from workers.webhooks import signature

SECRET = "a secret of more than 24 characters"


class Receiver:
    """Receives webhooks; answers the first ones with an error."""

    def __init__(self, failures: int = 0) -> None:
        self.messages: list[tuple[dict[str, str], bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                receiver.messages.append((headers, body))
                self.send_response(500 if len(receiver.messages) <= failures else 204)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[LiveStack]:
    stack = LiveStack(tmp_path_factory.mktemp("shop"), model)
    stack.environment |= {"WEBHOOK_HOSTS": "127.0.0.0/8", "WEBHOOK_SECRET": SECRET}
    stack.environment |= {"RATE_LIMIT": "0", "FETCH_HOSTS": NETWORK}
    stack.start_redis()
    for number in range(6):
        draw_product(stack.products / f"{number}.jpg", number)
    (stack.products / "broken.jpg").write_bytes(b"no image")
    (stack.products / '=cmd,"x".jpg').write_bytes(b"no image")
    stack.workers("embed", "index", "query")
    yield stack
    stack.close()


@pytest.fixture(scope="module")
def web(stack: LiveStack) -> WebServer:
    return start_web(stack)


def start(web: WebServer, **fields: Any) -> str:
    answer = web.post("/v1/jobs", json={"folder": str(web.stack.products), **fields})
    assert answer.status == 202, answer.body
    assert answer.headers["Location"] == f"/v1/jobs/{answer.json['job_id']}"
    return str(answer.json["job_id"])


def end(web: WebServer, job_id: str) -> dict[str, Any]:
    """Follow a job's events; return the object of the last one."""
    answer = web.get(f"/v1/jobs/{job_id}/events")
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    events = [
        dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        for block in answer.body.decode().split("\n\n")
        if block.strip()
    ]
    assert [event["event"] for event in events if "event" in event][-1] == "end"
    job: dict[str, Any] = json.loads(events[-1]["data"])
    assert job == {**web.get(f"/v1/jobs/{job_id}").json, "seconds": job["seconds"]}
    return job


def test_a_rebuild_is_started_watched_and_its_failures_are_listed(web: WebServer) -> None:
    job = end(web, start(web))
    assert (job["state"], job["images"], job["embedded"], job["skipped"]) == ("published", 8, 6, 2)
    address = f"/v1/jobs/{job['job_id']}/failures"
    listed = web.get(address).json
    assert listed["total"] == 2
    assert [row["path"] for row in listed["failures"]] == ['=cmd,"x".jpg', "broken.jpg"]
    assert "not an image" in listed["failures"][1]["reason"]
    second = web.get(f"{address}?offset=1&limit=1").json["failures"]
    assert second == listed["failures"][1:]
    table = web.get(f"{address}?format=csv")
    assert table.headers["Content-Type"].startswith("text/csv")
    assert table.headers["Content-Disposition"].startswith("attachment")
    rows = list(csv.DictReader(io.StringIO(table.body.decode())))
    # No spreadsheet takes the first for a formula.
    assert [row["path"] for row in rows] == ['\'=cmd,"x".jpg', "broken.jpg"]


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\t", "\r"])
def test_no_cell_of_the_failures_is_a_formula(sign: str) -> None:
    row = Failure(f"{sign}a.jpg", "decode", f"{sign}b")
    text = "".join(failures_csv([row]))
    assert list(csv.reader(io.StringIO(text, newline="")))[1:] == [
        [f"'{sign}a.jpg", "decode", f"'{sign}b", "0"]
    ]


def test_the_same_request_creates_one_job(web: WebServer) -> None:
    body = {"folder": str(web.stack.products)}

    def send(key: str, **more: Any) -> Any:
        return web.post("/v1/jobs", json={**body, **more}, headers={"Idempotency-Key": key})

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: send("once"), range(8)))
    assert {answer.status for answer in answers} == {202}
    assert len({answer.json["job_id"] for answer in answers}) == 1
    again = send("once")
    assert (again.status, again.json["job_id"]) == (202, answers[0].json["job_id"])
    assert "was used for another request" in send("once", full=True).detail
    other = send("another")
    assert other.json["job_id"] != again.json["job_id"]
    for job_id in (again.json["job_id"], other.json["job_id"]):
        end(web, job_id)
    assert web.post("/v1/jobs", json=body, headers={"Idempotency-Key": "x" * 201}).status == 422


def test_a_job_may_fetch_the_images_of_a_feed(web: WebServer) -> None:
    stack, server = web.stack, FeedServer()
    assert web.post("/v1/jobs", json={"folder": "feed:hats"}).status == 404
    rows = [f"A{n},Hat {n},{server.put(f'/{n}.png', picture(n))}" for n in range(3)]
    file = stack.folder / "hats.csv"
    file.write_text("\n".join(["product_id,title,image_link", *rows, "B,Cap," + server.url("/x")]))
    assert stack.imgrec("import-catalogue", str(file)).returncode == 0
    answer = web.post("/v1/jobs", json={"folder": "feed:hats"})
    assert (answer.status, answer.json["folder"]) == (202, "feed:hats")
    job_id = answer.json["job_id"]
    until(lambda: web.get(f"/v1/jobs/{job_id}").json["stage"] == "fetching", "it fetches")
    worker = stack.worker("fetch")
    job = end(web, job_id)
    worker.terminate()
    worker.wait()
    server.close()
    assert (job["state"], job["stage"], job["error"]) == ("published", None, None)
    assert (job["images"], job["fetched"], job["skipped"]) == (4, 3, 1)
    listed = web.get(f"/v1/jobs/{job_id}/failures").json["failures"]
    assert [row["reason"].rpartition(": ")[2] for row in listed] == ["status 404"]
    assert stack.indexed() == [f"A{n}/image-1.png" for n in range(3)]
    end(web, start(web))  # the other tests are about the folder


def test_a_retry_tries_only_what_failed(web: WebServer) -> None:
    job = end(web, start(web))
    assert job["skipped"] == 2
    draw_product(web.stack.products / "broken.jpg", 99)
    draw_product(web.stack.products / "new.jpg", 100)  # no failure of that job
    answer = web.post(f"/v1/jobs/{job['job_id']}/retry")
    assert answer.status == 202, answer.body
    retried = end(web, answer.json["job_id"])
    assert retried["state"] == "published", retried
    assert (retried["embedded"], retried["reused"], retried["skipped"]) == (1, 6, 1)
    assert web.stack.indexed() == sorted([*(f"{n}.jpg" for n in range(6)), "broken.jpg"])
    detail = web.post(f"/v1/jobs/{job['job_id']}/retry").detail
    assert "start a rebuild" in detail
    done = end(web, start(web))
    (web.stack.products / '=cmd,"x".jpg').unlink()
    gone = end(web, web.post(f"/v1/jobs/{done['job_id']}/retry").json["job_id"])
    assert (gone["state"], gone["skipped"]) == ("published", 1)
    clean = end(web, start(web))
    answer = web.post(f"/v1/jobs/{clean['job_id']}/retry")
    assert (answer.status, "left out no images" in answer.detail) == (409, True)
    assert web.post("/v1/jobs/nope/retry").status == 404


def test_a_cancelled_job_ends_and_can_be_tried_again(web: WebServer) -> None:
    jobs = web.stack.jobs
    job_id = jobs.create(
        str(web.stack.products),
        full=False,
        save_preprocessed=False,
        fingerprint=None,
        base_version=None,
        lease_s=600,
    )
    assert web.post(f"/v1/jobs/{job_id}/retry").status == 409
    assert web.post(f"/v1/jobs/{job_id}/cancel").json["state"] == "cancelled"
    assert web.post(f"/v1/jobs/{job_id}/cancel").json["state"] == "cancelled"
    retried = web.post(f"/v1/jobs/{job_id}/retry")
    assert retried.status == 202, retried.body
    assert end(web, retried.json["job_id"])["state"] == "published"


def test_a_webhook_hears_of_the_end_signed_and_again_after_an_error(
    web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver = Receiver(failures=1)
    job_id = start(web, webhook_url=receiver.url)
    job = end(web, job_id)
    until(lambda: len(receiver.messages) == 2, "the webhook is sent again", 60)
    for headers, body in receiver.messages:
        message = json.loads(body)
        assert (message["type"], message["data"]["job_id"]) == ("job.published", job_id)
        assert message["data"]["index_version"] == job["index_version"]
        assert headers["webhook-id"] == f"job_{job_id}"
        signed = f"job_{job_id}.{headers['webhook-timestamp']}.".encode() + body
        digest = hmac.new(SECRET.encode(), signed, hashlib.sha256).digest()
        assert headers["webhook-signature"] == f"v1,{base64.b64encode(digest).decode()}"


def test_a_webhook_is_signed_with_the_key_that_libraries_read_in_the_secret() -> None:
    key = bytes(range(32))
    secret = f"whsec_{base64.b64encode(key).decode()}"
    digest = hmac.new(key, b"job_1.5.{}", hashlib.sha256).digest()
    assert signature(secret, "job_1", 5, b"{}") == f"v1,{base64.b64encode(digest).decode()}"


@pytest.mark.parametrize(
    "url",
    ["http://localhost/", "http://169.254.169.254/", "ftp://127.0.0.1/", "http://u:p@127.0.0.1/"],
)
def test_a_webhook_to_elsewhere_is_refused_before_a_job_is_made(web: WebServer, url: str) -> None:
    before = web.get("/v1/jobs?limit=1000").json["jobs"]
    answer = web.post("/v1/jobs", json={"folder": str(web.stack.products), "webhook_url": url})
    assert answer.status == 422
    assert len(web.get("/v1/jobs?limit=1000").json["jobs"]) == len(before)


def test_a_folder_that_cannot_be_used_is_the_command_lines_sentence(
    web: WebServer, tmp_path: Path
) -> None:
    for folder in (tmp_path / "missing", tmp_path):
        answer = web.post("/v1/jobs", json={"folder": str(folder)})
        done = web.stack.imgrec("enqueue-rebuild", str(folder))
        assert (answer.status, f"Error: {answer.detail}\n") == (422, done.stderr)


def test_a_rollback_publishes_the_version_before(web: WebServer) -> None:
    changing = web.stack.products / "changing.jpg"
    for seed in (901, 902):
        draw_product(changing, seed)
        web.stack.rebuild()
    changing.unlink()
    before = web.get("/v1/index/versions").json
    names = [version["version"] for version in before["versions"]]
    assert before["current"] == names[-1]
    answer = web.post("/v1/index/rollback")
    assert (answer.status, answer.json) == (200, {"from": names[-1], "to": names[-2], "undone": 0})
    back = web.post("/v1/index/rollback", json={"version": names[-1]})
    assert back.json == {"from": names[-2], "to": names[-1], "undone": 0}
    assert web.post("/v1/index/rollback", json={}).json["to"] == names[-2]
    assert web.post("/v1/index/rollback", json={"version": names[-1]}).status == 200
    assert web.post("/v1/index/rollback", json={"version": "v9999"}).status == 404
    old = web.search(text="shoe", index_version=names[-2], limit=2)
    assert (old.status, old.json["index_version"]) == (200, names[-2])
    assert web.search(text="shoe", index_version="v9999").status == 404
