"""What an attacker sends ends with one sentence, holds nothing up, and tells nothing."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
import select
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_stack import LiveStack, draw_product, until
from PIL import Image
from web_stand import Answer, WebServer, start_web

from pipeline.store.api_keys import SCOPES, ApiKeys
from pipeline.store.database import Database

REFERENCE = Path(__file__).parents[2] / "docs" / "reference.md"


@pytest.fixture(scope="module")
def keys(stack: LiveStack) -> dict[str, str]:
    """One key of each scope, and one that is revoked."""
    created = {
        scope: stack.answer("keys", "create", scope, "--scope", scope)["key"] for scope in SCOPES
    }
    created["revoked"] = stack.answer("keys", "create", "gone", "--scope", "admin")["key"]
    stack.answer("keys", "revoke", "gone")
    return created


@pytest.fixture(scope="module")
def web(stack: LiveStack, keys: dict[str, str]) -> Iterator[WebServer]:
    server = start_web(stack, WEB_MAX_BODY="300KB", MAX_IMAGE_PIXELS="1000000", RATE_LIMIT="0")
    server.key = keys["admin"]
    yield server
    assert server.process.poll() is None
    log = server.log.read_text()
    assert "Traceback" not in log, log[-3000:]
    assert not [text for text in keys.values() if text in log]


@pytest.fixture
def photo(tmp_path: Path) -> bytes:
    draw_product(tmp_path / "photo.jpg", 3)
    return (tmp_path / "photo.jpg").read_bytes()


def requests_of(document: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the method and the path of each request of the OpenAPI document."""
    paths = document["paths"].items()
    return [(method.upper(), path) for path, item in paths for method in item]


def refused(answer: Answer, *statuses: int) -> str:
    """Check that a request was refused, and that the sentence tells nothing of this machine."""
    assert answer.status in statuses, (answer.status, answer.body[:500])
    detail = answer.detail
    assert "Traceback" not in detail
    assert not re.search(r"/(tmp|work|home|root|usr|app)/", detail), detail
    return detail


# -- ids and paths ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/v1/products/..%2F..%2F..%2Fetc%2Fpasswd",
        "/v1/products/..%2F..%2F..%2Fetc%2Fpasswd/image",
        "/v1/products/%2Fetc%2Fpasswd/image",
        "/v1/products/kind0%2F..%2Fkind0%2Fproduct-000/image",
        "/v1/products/%00/image",
        "/v1/products/%ff%fe",
        "/v1/products/%",
        "/v1/products/%zz/image",
        "/v1/products/" + "a" * 3000,
        "/v1/products//etc/passwd/image",
        "/v1/products/....//....//etc/passwd/image",
        "/v1/jobs/..%2F..%2Fetc",
        "/v1/jobs/%00",
        "/v1/jobs/' OR 1=1 --".replace(" ", "%20"),
        "/static/..%2F..%2Fpyproject.toml",
        "/..%2f..%2fetc/passwd",
        "//evil.example/",
        "/\\evil.example/",
    ],
)
def test_no_path_leads_out_of_the_index(web: WebServer, path: str) -> None:
    answer = web.get(path)
    refused(answer, 404, 422)
    assert "Location" not in answer.headers  # no open redirect


# -- who gets in -----------------------------------------------------------------------------------


def test_only_a_valid_key_gets_in(web: WebServer, keys: dict[str, str]) -> None:
    good = keys["admin"]
    key_id, secret = good.split("_", 2)[1:]
    wrong = [
        "",
        "x",
        f"imgrec_{key_id}_{'A' * 43}",
        f"imgrec_{'0' * 12}_{secret}",
        good[:-1],
        f"{good}x",
        good.upper(),
        f"imgrec_{key_id}_' OR '1'='1",
        keys["revoked"],
    ]
    for text in wrong:
        answer = web.get("/v1/jobs", key="", headers={"Authorization": f"Bearer {text}"})
        refused(answer, 401)
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        cookie = web.get("/v1/jobs", key="", headers={"Cookie": f"imgrec_key={text}"})
        refused(cookie, 401)
    refused(web.get("/v1/jobs", key="", headers={"Authorization": f"Basic {good}"}), 401)
    refused(web.get("/v1/jobs", key=""), 401)
    assert web.get("/v1/jobs").status == 200


def documented_scopes() -> dict[tuple[str, str], str]:
    """Return the scope of each request of the reference."""
    rows = re.findall(r"^\| `([A-Z]+) (/\S+)` \| (\w+) \|", REFERENCE.read_text(), re.MULTILINE)
    return {(method, path): scope for method, path, scope in rows}


def test_no_scope_reaches_beyond_itself(web: WebServer, keys: dict[str, str]) -> None:
    document = web.get("/openapi.json").json
    needed = documented_scopes()
    names = {(method, re.sub(r"{\w+}", "{id}", path)) for method, path in requests_of(document)}
    assert needed.keys() == names
    for (method, path), needs in needed.items():
        if needs == "none":
            continue
        for scope in SCOPES:
            # A field that there is not: what is allowed must not do anything.
            body = {"json": {"nonsense": 1}} if method == "POST" else {}
            answer = web.send(method, path.replace("{id}", "x"), key=keys[scope], **body)
            if SCOPES.index(scope) < SCOPES.index(needs):
                assert f"needs '{needs}'" in refused(answer, 403)
            else:
                assert answer.status in (200, 404, 422), (method, path, scope, answer.body)


def test_feedback_needs_its_own_scope(web: WebServer, keys: dict[str, str]) -> None:
    body = {"query_id": "x", "product_id": "y", "action": "like"}
    refused(web.post("/v1/feedback", json=body, key=keys["search"]), 403)
    refused(web.post("/v1/feedback", json=body, key=keys["feedback"]), 404)


def test_every_documented_request_needs_a_key(web: WebServer) -> None:
    public = {"/healthz", "/readyz"}
    document = web.get("/openapi.json", key="").json
    requests = requests_of(document)
    assert len(requests) > 12
    for method, path in requests:
        if path in public:
            continue
        path = re.sub(r"{\w+}", "x", path)
        refused(web.send(method, path, key="", json={}), 401)


def test_a_revoked_key_is_refused_from_then_on(web: WebServer, stack: LiveStack) -> None:
    key = stack.answer("keys", "create", "short-lived")["key"]
    until(lambda: web.get("/v1/index", key=key).status == 200, "the new key is known", 20)
    stack.answer("keys", "revoke", "short-lived")
    until(lambda: web.get("/v1/index", key=key).status == 401, "the key is refused", 20)


def test_the_database_holds_no_secret(stack: LiveStack, keys: dict[str, str]) -> None:
    rows = ApiKeys(Database(stack.environment["DATABASE_URL"])).all()
    data = (stack.data / "app.db").read_bytes()
    assert len(rows) >= 4
    for text in keys.values():
        _, _, secret = text.split("_", 2)  # the secret may hold underscores of its own
        assert len(secret) > 40
        assert secret.encode() not in data
        assert text not in repr(rows)


# -- forged requests -------------------------------------------------------------------------------


def test_another_sites_page_cannot_use_the_cookie(web: WebServer, keys: dict[str, str]) -> None:
    cookie = {"Cookie": f"imgrec_key={keys['admin']}"}
    own = {"Origin": web.url, "Sec-Fetch-Site": "same-origin"}
    for headers in (
        cookie,
        {**cookie, "Origin": "http://evil.example"},
        {**cookie, "Origin": "null"},
        {**cookie, "Sec-Fetch-Site": "cross-site"},
        {**cookie, "Sec-Fetch-Site": "same-site"},
        {**cookie, **own, "X-CSRF-Token": "guess"},
    ):
        refused(web.post("/v1/jobs/x/cancel", key="", headers=headers), 403)
    assert web.get("/v1/jobs", key="", headers=cookie).status == 200


def test_without_keys_only_this_machines_own_pages_are_served(tmp_path: Path, model: Path) -> None:
    stack = LiveStack(tmp_path / "alone", model)
    stack.folder.mkdir()
    stack.start_redis()
    try:
        server = start_web(stack)
        assert server.get("/v1/jobs").status == 200
        assert server.post("/v1/jobs/x/cancel").status == 404  # curl
        for headers in (
            {"Host": "evil.example"},
            {"Host": "127.0.0.1.evil.example"},
            {"Host": "[127.0.0.1"},
            {"X-Forwarded-For": "203.0.113.7"},
            {"X-Forwarded-For": "127.0.0.1"},
            {"X-Forwarded-Host": "shop.example"},
            {"X-Forwarded-Proto": "https"},
            {"X-Real-IP": "203.0.113.7"},
            {"Forwarded": "for=203.0.113.7"},
            {"Via": "1.1 proxy"},
        ):
            refused(server.get("/v1/jobs", headers=headers), 403)
        # nginx with nothing but proxy_pass.
        with server.connect() as connection:
            connection.sendall(b"GET /v1/jobs HTTP/1.0\r\nHost: 127.0.0.1:8000\r\n\r\n")
            assert connection.recv(1000).split()[1] == b"403"
        for headers in (
            {"Origin": "http://evil.example"},
            {"Origin": "http://["},
            {"Sec-Fetch-Site": "cross-site"},
        ):
            refused(server.post("/v1/jobs/x/cancel", headers=headers), 403)
        done = stack.imgrec("web", "--host", "0.0.0.0", "--port", "0")
        assert done.returncode == 2
        assert "imgrec keys create NAME" in done.stderr
        key = stack.answer("keys", "create", "first")["key"]
        until(lambda: server.get("/v1/index/versions").status == 401, "the door closes", 20)
        stack.answer("keys", "revoke", "first")
        time.sleep(1.5)  # the last key is gone; the door must not open again
        assert server.get("/v1/jobs").status == 401
        assert server.get("/v1/jobs", key=key).status == 401
    finally:
        stack.close()


def test_other_origins_read_nothing_unless_they_are_allowed(web: WebServer) -> None:
    headers = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    answer = web.send("OPTIONS", "/v1/search", key="", headers=headers)
    assert answer.status in (401, 403, 405)
    assert "Access-Control-Allow-Origin" not in answer.headers
    answer = web.get("/v1/index", headers={"Origin": "http://evil.example"})
    assert "Access-Control-Allow-Origin" not in answer.headers


def test_every_answer_tells_browsers_to_trust_nothing(web: WebServer) -> None:
    for path in ("/healthz", "/v1/jobs", "/nothing", "/openapi.json"):
        headers = web.get(path).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert "Server" not in headers


# -- bodies ----------------------------------------------------------------------------------------


def test_a_body_over_the_limit_is_refused_in_json(web: WebServer) -> None:
    refused(web.post("/v1/search", json={"text": "x" * 400_000}), 413)
    refused(web.upload("/v1/search", b"x" * 400_000), 413)
    refused(web.post("/v1/jobs", json={"folder": "x" * 400_000}), 413)


def test_a_body_without_end_is_cut_off(web: WebServer) -> None:
    head = (
        "POST /v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {web.key}\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    with web.connect() as connection:
        connection.sendall(head.encode())
        with contextlib.suppress(ConnectionError):  # it may be closed while we send
            while not select.select([connection], [], [], 0)[0]:
                connection.sendall(b"1000\r\n" + b" " * 4096 + b"\r\n")
        assert b" 413 " in connection.recv(65_536).split(b"\r\n")[0]


def test_clients_that_stall_hold_nobody_up_and_are_let_go(web: WebServer, photo: bytes) -> None:
    head = (
        "POST /v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {web.key}\r\nContent-Length: 100\r\n\r\n"
    )
    silent = [web.connect() for _ in range(30)]
    slow = [web.connect() for _ in range(30)]
    half = [web.connect() for _ in range(30)]
    for number, connection in enumerate(slow):
        connection.sendall(f"GET /v1/index HTTP/1.1\r\nX-{number}: ".encode())
    for connection in half:
        connection.sendall(head.encode() + b'{"text"')
    assert web.search(photo).status == 200
    assert web.get("/readyz").status == 200
    for connection in (silent[0], slow[0]):
        assert connection.recv(1000) == b""  # closed by the server
    assert b" 408 " in half[0].recv(1000).split(b"\r\n")[0]
    for connection in (*silent, *slow, *half):
        connection.close()


def test_ten_thousand_headers_are_refused(web: WebServer) -> None:
    for name in ("X-{}", "X"):
        headers = "".join(f"{name.format(number)}: 1\r\n" for number in range(10_000))
        with web.connect() as connection:
            connection.sendall(f"GET /healthz HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode())
            assert connection.recv(1000).split()[1] in (b"400", b"431")
    many = {f"X-{number}": "1" for number in range(150)}
    refused(web.get("/healthz", headers=many), 431)


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"{", "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b"[]", "application/json", 422),
        (b"null", "application/json", 422),
        (b'{"text": 5}', "application/json", 422),
        (b'{"text": "\\u0000", "limit": 3}', "application/json", 422),
        (b'{"text": "a", "limit": 1e400}', "application/json", 422),
        (b'{"text": "a", "min_score": NaN}', "application/json", 422),
        (b'{"text": "a", "nonsense": 1}', "application/json", 422),
        (b'{"text": "a", "box": [0,0,1]}', "application/json", 422),
        (b'{"image_base64": "@@@"}', "application/json", 422),
        (b'{"image_base64": ""}', "application/json", 422),
        (b"<x/>", "application/xml", 415),
        (b"text=a", "application/x-www-form-urlencoded", 415),
        (b"", "", 415),
        (b"--x\r\nnonsense", "multipart/form-data; boundary=x", 422),
        (b"", "multipart/form-data", 400),
    ],
)
def test_a_body_that_makes_no_sense_is_a_sentence(
    web: WebServer, body: bytes, content_type: str, status: int
) -> None:
    answer = web.post("/v1/search", body=body, headers={"Content-Type": content_type})
    refused(answer, status)


SURROGATE = "\ud800"  # half of a character: JSON may name it, UTF-8 cannot write it
REQUIRED = {
    "SearchBody": {"text": "shoe"},
    "FeedbackBody": {"query_id": "x", "product_id": "y", "action": "like"},
    "JobBody": {"folder": "x"},
}


def test_half_a_character_is_refused_wherever_a_text_is_taken(web: WebServer) -> None:
    document = web.get("/openapi.json").json
    models = set()
    for path, item in document["paths"].items():
        content = item.get("post", {}).get("requestBody", {}).get("content", {})
        if "application/json" not in content:
            continue
        text = json.dumps(content["application/json"]["schema"])
        (model,) = re.findall(r"#/components/schemas/(\w+)", text)
        models.add(model)
        required = REQUIRED.get(model, {})
        bodies: list[dict[str, Any]] = [{**required, SURROGATE: 1}]
        for name in document["components"]["schemas"][model]["properties"]:
            for value in (SURROGATE, [SURROGATE], {SURROGATE: 1}, f"price={SURROGATE}"):
                bodies.append({**required, name: value})
        for body in bodies:
            answer = web.post(path.replace("{product_id}", "x"), json=body)
            refused(answer, 404, 422)
    assert models >= {*REQUIRED, "ClassifyBody", "ImageBody", "RollbackBody"}


# -- images ----------------------------------------------------------------------------------------


def png(width: int, height: int, data: bytes) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        crc = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


SVG = b"""<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>"""


@pytest.mark.parametrize(
    ("data", "statuses"),
    [
        pytest.param(SVG, (415,), id="svg"),
        pytest.param(b"<html><script>alert(1)</script>", (415,), id="html"),
        pytest.param(b"PK\x03\x04" + b"\0" * 100, (415,), id="zip"),
        pytest.param(png(60_000, 60_000, zlib.compress(b"\0" * 10_000)), (413,), id="pixel bomb"),
        pytest.param(
            png(900, 900, zlib.compress(b"\0" * 90_000_000, 9)), (200, 422), id="zip bomb"
        ),
        pytest.param(png(1, 1, zlib.compress(b"\0\0")), (422,), id="tracking pixel"),
        pytest.param(b"\xff\xd8\xff" + b"\0" * 50, (415, 422), id="broken jpeg"),
        pytest.param(b"", (422,), id="empty"),
    ],
)
def test_an_image_that_is_none_is_a_sentence(
    web: WebServer, data: bytes, statuses: tuple[int, ...]
) -> None:
    for path in ("/v1/search", "/v1/classify"):
        text = base64.b64encode(data).decode()
        for answer in (web.upload(path, data), web.post(path, json={"image_base64": text})):
            if answer.status != 200 or 200 not in statuses:
                refused(answer, *statuses)


def upload_named(web: WebServer, data: bytes, name: str) -> Answer:
    """Upload a file whose name stands in the form as it is: other clients escape it."""
    disposition = f'form-data; name="image"; filename="{name}"'.encode()
    body = b"--x\r\nContent-Disposition: " + disposition + b"\r\n\r\n" + data + b"\r\n--x--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    return web.post("/v1/search", body=body, headers=headers)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../etc/passwd.jpg", "../../etc/passwd.jpg"),
        ("<script>alert(1)</script>.jpg", "<script>alert(1)</script>.jpg"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("\0.jpg", r"\x00.jpg"),
        ("a\r\nX-Injected: yes.jpg", ""),  # two lines of the form
    ],
)
def test_a_file_name_changes_nothing(web: WebServer, photo: bytes, name: str, shown: str) -> None:
    answer = upload_named(web, photo, name)
    assert answer.status == 200, answer.body
    assert answer.json["matches"] == web.upload("/v1/search", photo).json["matches"]
    broken = upload_named(web, b"no image", name)
    detail = refused(broken, 415)
    assert shown in detail
    assert detail.isprintable()
    assert "X-Injected" not in answer.headers | broken.headers


def test_a_file_name_without_end_is_refused(web: WebServer, photo: bytes) -> None:
    refused(upload_named(web, photo, "a" * 5000 + ".jpg"), 400)


def test_pictures_are_encoded_again(web: WebServer, stack: LiveStack) -> None:
    answer = web.get("/v1/products/kind0%2Fproduct-000/image?size=64")
    assert answer.status == 200
    with Image.open(io.BytesIO(answer.body)) as image:
        assert (image.format, max(image.size)) == ("JPEG", 64)
    assert answer.body != (stack.products / "kind0" / "product-000.jpg").read_bytes()
    for size in ("0", "15", "1025", "-1", "x", "1e9"):
        refused(web.get(f"/v1/products/kind0%2Fproduct-000/image?size={size}"), 422)


# -- addresses -------------------------------------------------------------------------------------


def test_no_image_is_fetched_unless_its_host_is_allowed(web: WebServer, stack: LiveStack) -> None:
    detail = refused(web.search(image_url="http://127.0.0.1/"), 422)
    assert "IMAGE_URL_HOSTS" in detail
    server = start_web(stack, IMAGE_URL_HOSTS="files.example,localhost", RATE_LIMIT="0")
    server.key = web.key
    for url in (
        f"http://127.0.0.1:{stack.port}/",
        f"http://localhost:{stack.port}/",
        "http://[::1]/",
        "http://169.254.169.254/latest/meta-data/",
        "http://[64:ff9b::a9fe:a9fe]/",
        "http://[2002:7f00:1::]/",
        "file:///etc/passwd",
        "http://user:pw@files.example/",
        "http://files.example@127.0.0.1/",
        "http://evil.example/",
    ):
        refused(server.search(image_url=url), 422)
    assert server.stop() == 0


def test_an_allowed_address_is_searched_for(web: WebServer, stack: LiveStack, photo: bytes) -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    class Files(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(photo)))
            self.end_headers()
            self.wfile.write(photo)

        def log_message(self, *args: Any) -> None:
            pass

    files = HTTPServer(("127.0.0.1", 0), Files)
    Thread(target=files.serve_forever, daemon=True).start()
    server = start_web(stack, IMAGE_URL_HOSTS="localhost,127.0.0.0/8,::1/128")
    server.key = web.key
    answer = server.search(image_url=f"http://127.0.0.1:{files.server_port}/a.jpg", limit=3)
    assert answer.status == 200, answer.body
    assert answer.json["matches"] == web.search(photo, limit=3).json["matches"]
    files.shutdown()
    assert server.stop() == 0


# -- load ------------------------------------------------------------------------------------------


def test_a_key_that_asks_too_often_is_told_when_to_come_back(
    web: WebServer, stack: LiveStack, keys: dict[str, str]
) -> None:
    server = start_web(stack, RATE_LIMIT="0.5", RATE_BURST="5")
    answers = [server.get("/v1/index", key=keys["search"]) for _ in range(8)]
    statuses = [answer.status for answer in answers]
    assert statuses[:5] == [200] * 5
    assert statuses[-1] == 429
    assert 1 <= int(answers[-1].headers["Retry-After"]) <= 2
    assert "RATE_LIMIT" in refused(answers[-1], 429)
    assert server.get("/v1/index", key=keys["admin"]).status == 200  # another key's bucket
    assert server.get("/healthz", key="").status == 200
    guesses = [server.get("/v1/index", key="guess").status for _ in range(8)]
    assert guesses[-1] == 429
    assert server.stop() == 0


def test_a_stop_ends_open_event_streams_and_waiting_clients(
    web: WebServer, stack: LiveStack, keys: dict[str, str]
) -> None:
    server = start_web(stack, RATE_LIMIT="0")
    jobs = stack.jobs
    job_id = jobs.create(
        str(stack.products),
        full=False,
        save_preprocessed=False,
        fingerprint=None,
        base_version=None,
        lease_s=600,
    )
    streams = []
    for _ in range(3):
        connection = server.connect()
        connection.sendall(
            f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Authorization: Bearer {keys['admin']}\r\n\r\n".encode()
        )
        data = b""
        while b"event: progress" not in data:
            data += connection.recv(4096)
        streams.append(connection)
    idle = server.connect()
    start = time.monotonic()
    assert server.stop() == 0
    took_s = time.monotonic() - start
    assert took_s < 5, f"{took_s:.1f} s"
    for connection in (*streams, idle):
        while connection.recv(4096):
            pass
        connection.close()
    jobs.cancel(job_id)


def test_ids_round_trip_whatever_they_are_made_of(tmp_path: Path, model: Path) -> None:
    from web_stand import shop

    names = [
        "a b/c%2Fd",
        "ü/漢字",
        "a.b..c",
        "a../b..",
        "x/image",
        "x/similar",
        "50%",
        "q?x=1&y#z",
        "+",
    ]
    stands = shop(tmp_path / "ids", model, count=3)
    stack = next(stands)
    try:
        for number, name in enumerate(names):
            draw_product(stack.products / f"{name}.jpg", 500 + number)
        stack.rebuild()
        server = start_web(stack, RATE_LIMIT="0")
        found = server.search(products={"x/image": 1}, limit=50)
        assert found.status == 200, found.body
        matches = found.json["matches"]
        ids = {match["product_id"]: match["image"] for match in matches}
        for name in names:
            if name == "x/image":
                continue
            address = ids[name].removesuffix("/image")
            answer = server.get(address)
            assert (answer.status, answer.json["product_id"]) == (200, name)
            assert server.get(f"{address}/image?size=16").status == 200
            similar = server.get(f"{address}/similar?limit=50").json["matches"]
            assert len(similar) == len(matches)
            assert name not in [match["product_id"] for match in similar]
        assert server.get("/v1/products/x%2Fimage").json["product_id"] == "x/image"
        assert server.get("/v1/products/a%20b/c%252Fd").json["product_id"] == "a b/c%2Fd"
    finally:
        with pytest.raises(StopIteration):
            next(stands)
