"""Images that are added and removed over HTTP: found at once, kept by rebuilds, safely named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from live_stack import LiveStack, draw_product, until
from web_stand import Answer, WebServer, start_web

SCOPES = ("search", "feedback", "catalogue", "admin")


@pytest.fixture(scope="module")
def keys(stack: LiveStack) -> dict[str, str]:
    return {
        scope: stack.answer("keys", "create", scope, "--scope", scope)["key"] for scope in SCOPES
    }


@pytest.fixture(scope="module")
def web(stack: LiveStack, keys: dict[str, str]) -> WebServer:
    server = start_web(stack, RATE_LIMIT="0")
    server.key = keys["catalogue"]
    return server


@pytest.fixture
def photo(tmp_path: Path) -> bytes:
    return drawn(tmp_path, 7001)


def drawn(folder: Path, seed: int) -> bytes:
    draw_product(folder / f"{seed}.jpg", seed)
    return (folder / f"{seed}.jpg").read_bytes()


def added(web: WebServer, product: str, photo: bytes, name: str = "photo.jpg") -> list[str]:
    answer = web.upload(f"/v1/products/{product}/images", photo, name)
    assert answer.status == 201, answer.body
    paths: list[str] = answer.json["added"]
    return paths


def found(web: WebServer, photo: bytes) -> dict[str, str]:
    """Return the products that a search finds, by their images."""
    matches = web.search(photo, limit=50).json["matches"]
    return {match["filename"]: match["product_id"] for match in matches}


def delete(web: WebServer, path: str, **options: Any) -> Answer:
    return web.send("DELETE", path, **options)


def test_an_upload_is_found_is_the_products_file_and_outlives_rebuilds(
    web: WebServer, stack: LiveStack, photo: bytes
) -> None:
    (path,) = added(web, "new%2Farrival", photo)
    assert (stack.products / path).read_bytes() == photo
    until(lambda: found(web, photo).get(path) == "new/arrival", "the upload is found", 2)
    assert web.get("/v1/products/new%2Farrival").json["filenames"] == [path]
    assert web.get("/v1/products/new%2Farrival/image").status == 200
    assert added(web, "new/arrival", photo) == [path]  # again: nothing changes
    stack.rebuild()
    assert found(web, photo)[path] == "new/arrival"

    answer = delete(web, "/v1/products/new%2Farrival")
    assert answer.status == 200, answer.body
    assert answer.json["removed"] == [path]
    until(lambda: path not in found(web, photo), "the removed image is gone", 2)
    assert delete(web, "/v1/products/new%2Farrival").status == 404
    stack.rebuild()
    assert path not in found(web, photo)
    assert (stack.products / path).read_bytes() == photo


def test_one_image_of_several_is_removed(web: WebServer, tmp_path: Path) -> None:
    front, back = drawn(tmp_path, 7002), drawn(tmp_path, 7003)
    # Cameras call all their photos alike: neither takes the other's place.
    paths = added(web, "pair", front, "image.jpg") + added(web, "pair", back, "image.jpg")
    assert len(set(paths)) == 2
    # At once, before any worker has seen them.
    answer = delete(web, f"/v1/products/pair/images?filename={paths[0]}")
    assert answer.json["removed"] == [paths[0]]
    until(lambda: paths[1] in found(web, back), "the other image is found", 2)
    # The worker may have looked between the two changes.
    until(lambda: paths[0] not in found(web, front), "the removed image is not found", 2)
    missing = delete(web, "/v1/products/pair/images?filename=nothing.jpg")
    assert "has no image 'nothing.jpg'" in missing.detail
    assert delete(web, "/v1/products/pair/images").status == 422


def test_a_rollback_tells_how_many_changes_it_undoes(
    web: WebServer, stack: LiveStack, keys: dict[str, str], tmp_path: Path
) -> None:
    draw_product(stack.products / "rolled.jpg", 7010)
    stack.rebuild()
    draw_product(stack.products / "rolled.jpg", 7011)
    stack.rebuild()
    admin = {"Authorization": f"Bearer {keys['admin']}"}
    cookie = {"Cookie": f"imgrec_key={keys['admin']}"}
    names = [
        each["version"] for each in web.get("/v1/index/versions", headers=admin).json["versions"]
    ]

    added(web, "undone", drawn(tmp_path, 7012))
    page = web.get("/index", key="", headers=cookie).body.decode()
    assert "This undoes 1 change:" in page
    added(web, "undone", drawn(tmp_path, 7013))
    page = web.get("/index", key="", headers=cookie).body.decode()
    assert "This undoes 2 changes:" in page
    answer = web.post("/v1/index/rollback", json={}, headers=admin)
    assert answer.json == {"from": names[-1], "to": names[-2], "undone": 2}

    added(web, "undone", drawn(tmp_path, 7012))
    token = re.search(r'name="csrf-token" content="(\w+)"', page)
    assert token is not None
    form = urlencode({"version": names[-1], "csrf_token": token[1]})
    headers = {**cookie, "Content-Type": "application/x-www-form-urlencoded"}
    answer = web.post("/index/rollback", body=form, key="", headers=headers)
    assert (answer.status, answer.headers["Location"]) == (303, "/index?undone=1")
    page = web.get("/index?undone=1", key="", headers=cookie).body.decode()
    assert "Undone: 1 change of images" in page


def test_only_the_scope_of_the_catalogue_may_change_it(
    web: WebServer, keys: dict[str, str], photo: bytes
) -> None:
    for scope in ("search", "feedback"):
        headers = {"Authorization": f"Bearer {keys[scope]}"}
        for method, path in (
            ("POST", "/v1/products/lamp/images"),
            ("DELETE", "/v1/products/kind0%2Fproduct-003"),
            ("DELETE", "/v1/products/kind0%2Fproduct-003/images?filename=x"),
        ):
            answer = web.send(method, path, headers=headers, json={})
            assert answer.status == 403, answer.body
            assert "needs 'catalogue'" in answer.detail
    assert web.get("/v1/jobs").status == 403


@pytest.mark.parametrize(
    "product", ["..%2Fout", "%2Fetc", "a%2F..%2F..%2Fb", ".hidden", "@eaDir", "a%5Cb", "x" * 300]
)
def test_a_product_names_no_place_outside_of_the_products_folder(
    web: WebServer, stack: LiveStack, photo: bytes, product: str
) -> None:
    before = sorted(stack.folder.rglob("*.jpg"))
    answer = web.upload(f"/v1/products/{product}/images", photo)
    assert answer.status == 422, answer.body
    assert "No folder can be named after the product" in answer.detail
    assert sorted(stack.folder.rglob("*.jpg")) == before


def test_what_is_no_image_changes_nothing(web: WebServer, stack: LiveStack) -> None:
    assert web.upload("/v1/products/bad/images", b"no image").status == 415
    assert "Name an image" in web.post("/v1/products/bad/images", json={}).detail
    assert "not allowed here" in (
        web.post("/v1/products/bad/images", json={"image_url": "http://127.0.0.1/a.jpg"}).detail
    )
    assert not (stack.products / "bad").exists()
