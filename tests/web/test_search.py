"""Searching over HTTP: what the command line answers, and pages of it."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from live_stack import LiveStack
from web_stand import WebServer


@pytest.fixture
def photo(stand: LiveStack) -> Path:
    return stand.products / "kind0" / "product-003.jpg"


def test_an_upload_finds_what_the_command_line_finds(
    web: WebServer, stand: LiveStack, photo: Path
) -> None:
    answer = web.search(photo, limit=4)
    assert answer.status == 200, answer.body
    expected = stand.query(photo, "--top-k", "4")["matches"]
    matches = answer.json["matches"]
    assert [{key: match[key] for key in expected[0]} for match in matches] == expected
    assert matches[0]["product_id"] == "kind0/product-003"
    assert matches[0]["image"] == "/v1/products/kind0%2Fproduct-003/image"


def test_base64_in_json_is_the_same_question(web: WebServer, photo: Path) -> None:
    text = base64.b64encode(photo.read_bytes()).decode()
    answer = web.search(image_base64=text, limit=4)
    assert answer.status == 200, answer.body
    assert answer.json["matches"] == web.search(photo, limit=4).json["matches"]


def test_text_and_products_are_questions_too(web: WebServer) -> None:
    assert web.search(text="a red shoe", limit=3).status == 200
    answer = web.search(products={"kind0/product-003": 1}, limit=3)
    assert answer.status == 200, answer.body
    assert "kind0/product-003" not in [m["product_id"] for m in answer.json["matches"]]


def test_a_products_image_comes_encoded_again_and_is_kept_by_its_etag(web: WebServer) -> None:
    path = "/v1/products/kind0%2Fproduct-003/image"
    answer = web.get(f"{path}?size=64")
    assert answer.status == 200, answer.body
    assert answer.headers["Content-Type"] == "image/jpeg"
    assert answer.body[:3] == b"\xff\xd8\xff"
    again = web.get(f"{path}?size=64", headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status, again.body) == (304, b"")


def test_everything_answers(web: WebServer, stand: LiveStack) -> None:
    for path in ("/v1/jobs", "/v1/index", "/v1/index/versions", "/openapi.json", "/readyz"):
        answer = web.get(path)
        assert answer.status == 200, (path, answer.body, web.log.read_text())
    job = web.get("/v1/jobs").json["jobs"][0]["job_id"]
    for path in (f"/v1/jobs/{job}", f"/v1/jobs/{job}/failures", f"/v1/jobs/{job}/events"):
        answer = web.get(path)
        assert answer.status == 200, (path, answer.body, web.log.read_text())
    again = web.post("/v1/jobs", json={"folder": str(stand.products)})
    assert again.status == 202, again.body
    assert web.get("/v1/jobs/nope").status == 404
    assert web.stop() == 0
