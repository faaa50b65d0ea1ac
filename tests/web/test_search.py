"""Searching over HTTP: what the command line answers, and pages of it."""

from __future__ import annotations

import asyncio
import base64
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest
import urllib3
from live_stack import LiveStack, draw_product
from PIL import Image
from web_stand import WebServer

from pipeline.errors import NotFound
from pipeline.store.feedback import FeedbackLog
from web.search import logged_query


@pytest.fixture
def photo(stack: LiveStack) -> Path:
    return stack.products / "kind0" / "product-003.jpg"


def test_an_upload_finds_what_the_command_line_finds(
    web: WebServer, stack: LiveStack, photo: Path
) -> None:
    answer = web.search(photo, limit=4)
    assert answer.status == 200, answer.body
    expected = stack.query(photo, "--top-k", "4")["matches"]
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


def test_every_option_is_the_command_lines(web: WebServer, stack: LiveStack) -> None:
    fields = {"not": "blue", "diverse": 0.5, "min_score": -0.9, "explain": True, "limit": 4}
    answer = web.search(text="shoe", **fields)
    assert answer.status == 200, answer.body
    options = ["--exclude-text", "blue", "--diversity", "0.5", "--min-score=-0.9", "--explain"]
    done = stack.answer("query", "--text", "shoe", *options, "--top-k", "4", "--wait")
    matches = answer.json["matches"]
    assert [{key: match[key] for key in done["matches"][0]} for match in matches] == done["matches"]
    assert answer.json["took_ms"] > 0


def test_a_classification_is_the_command_lines(
    web: WebServer, stack: LiveStack, photo: Path
) -> None:
    answer = web.upload("/v1/classify", photo.read_bytes())
    assert answer.status == 200, answer.body
    assert answer.json == stack.answer("classify", str(photo), "--wait")
    text = base64.b64encode(photo.read_bytes()).decode()
    assert web.post("/v1/classify", json={"image_base64": text}).json == answer.json
    assert "Name an image" in web.post("/v1/classify", json={}).detail


def test_a_blank_image_is_told_beside_the_answer_and_on_the_page(
    web: WebServer, tmp_path: Path
) -> None:
    blank = tmp_path / "blank.png"
    Image.new("RGB", (64, 64), "white").save(blank)
    words = "the image is blank"
    assert words in web.search(blank, limit=3).json["warnings"][0]
    assert words in web.upload("/v1/classify", blank.read_bytes()).json["warnings"][0]
    assert words in web.upload("/results", blank.read_bytes(), csrf_token="local").body.decode()
    assert "warnings" not in web.search(text="a red shoe", limit=3).json


def test_a_products_image_comes_encoded_again_and_is_kept_by_its_etag(web: WebServer) -> None:
    path = "/v1/products/kind0%2Fproduct-003/image"
    answer = web.get(f"{path}?size=64")
    assert answer.status == 200, answer.body
    assert answer.headers["Content-Type"] == "image/jpeg"
    assert answer.body[:3] == b"\xff\xd8\xff"
    assert answer.headers["Cache-Control"] == "private, max-age=300"
    again = web.get(f"{path}?size=64", headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status, again.body) == (304, b"")


def test_pages_are_the_long_list_and_its_version_can_be_asked_for(web: WebServer) -> None:
    whole = web.search(text="shoe", limit=12).json
    assert whole["total"] == 12
    pages = [
        web.search(text="shoe", limit=5, offset=offset, index_version=whole["index_version"]).json
        for offset in (0, 5, 10)
    ]
    assert [match for page in pages for match in page["matches"]] == whole["matches"]
    assert {page["index_version"] for page in pages} == {whole["index_version"]}
    similar = web.get("/v1/products/kind0%2Fproduct-003/similar?limit=3&offset=3").json
    assert [match["rank"] for match in similar["matches"]] == [4, 5, 6]
    assert similar["total"] == 11


def test_facts_sort_filter_and_are_returned_as_asked(
    web: WebServer, stack: LiveStack, tmp_path: Path
) -> None:
    file = tmp_path / "products.csv"
    rows = [f"kind{n % 3}/product-{n:03d},{100 - n},{'red' if n % 2 else 'blue'}" for n in range(9)]
    file.write_text("\n".join(["product_id,price,color", *rows]))
    stack.answer("import-products", str(file))
    answer = web.search(text="shoe", sort="price", where=["color=red"], fields=["price"], limit=9)
    assert answer.status == 200, answer.body
    assert [match["product"] for match in answer.json["matches"]] == [
        {"price": price} for price in (93, 95, 97, 99)
    ]
    assert answer.json["total"] == 4
    unknown = web.search(text="shoe", sort="colour")
    assert unknown.status == 422
    assert unknown.detail.startswith("Unknown column 'colour'. Available columns: color, price")
    columns = web.get("/v1/columns").json["columns"]
    assert columns == [
        {"name": "color", "kind": "text", "min": None, "max": None, "values": ["blue", "red"]},
        {"name": "price", "kind": "number", "min": 92, "max": 100, "values": None},
    ]
    done = stack.answer("query", "--text", "shoe", "--sort=-price", "--offset", "1", "--wait")
    prices = [match["product"]["price"] for match in done["matches"]]
    assert prices == [99, 98, 97, 96, 95]


def test_a_box_is_the_same_as_the_part_cut_out(
    web: WebServer, stack: LiveStack, tmp_path: Path
) -> None:
    left, right = (stack.products / f"kind0/product-00{n}.jpg" for n in (0, 3))
    with Image.open(left) as first, Image.open(right) as second:
        both = Image.new("RGB", (2 * first.width, first.height))
        both.paste(first, (0, 0))
        both.paste(second, (first.width, 0))
    # On its side, as a phone stores it: the box is of the upright picture.
    exif = Image.Exif()
    exif[0x0112] = 6
    both.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "both.png", exif=exif)
    for x, product in ((0.0, "kind0/product-000"), (0.5, "kind0/product-003")):
        answer = web.search(tmp_path / "both.png", box=f"{x},0,0.5,1", limit=1)
        assert answer.status == 200, answer.body
        (match,) = answer.json["matches"]
        assert match["product_id"] == product
        assert match["score"] > 0.99
        found = stack.query(tmp_path / "both.png", "--box", f"{x},0,0.5,1")["matches"][0]
        assert found["product_id"] == product
    tiny = web.search(tmp_path / "both.png", box="0,0,0.01,0.01")
    assert (tiny.status, "the box holds" in tiny.detail) == (422, True)


def test_several_images_of_one_product_are_averaged(web: WebServer, stack: LiveStack) -> None:
    files = [stack.products / f"kind0/product-00{number}.jpg" for number in (3, 6)]
    texts = [base64.b64encode(file.read_bytes()).decode() for file in files]
    answer = web.search(image_base64=texts, limit=9)
    assert answer.status == 200, answer.body
    scores = {match["product_id"]: match["score"] for match in answer.json["matches"]}
    first, second = (scores[f"kind0/product-00{number}"] for number in (3, 6))
    assert first == pytest.approx(second, abs=1e-4)
    parts = [("image", (file.name, file.read_bytes())) for file in files]
    body, content_type = urllib3.encode_multipart_formdata([*parts, ("limit", "9")])
    form = web.post("/v1/search", body=body, headers={"Content-Type": content_type})
    assert form.json["matches"] == answer.json["matches"]
    shown = stack.query(files[0], str(files[1]), "--top-k", "9")["matches"]
    assert [match["score"] for match in shown] == [
        match["score"] for match in answer.json["matches"]
    ]
    assert web.search(image_base64=texts * 5).status == 422
    assert web.search(image_base64=texts, box=[0, 0, 0.5, 1]).status == 422
    off = web.search(files[0], box="auto")
    assert (off.status, "'box' auto needs background removal" in off.detail) == (422, True)
    unknown = web.search(files[0], collapse="duplicates")
    assert (unknown.status, "run 'imgrec duplicates'" in unknown.detail) == (409, True)


def test_feedback_is_recorded_for_the_rank_that_was_shown(web: WebServer) -> None:
    page = web.search(text="boot", limit=2, offset=4).json
    body = {"query_id": page["query_id"], "product_id": page["matches"][1]["product_id"]}
    answer = web.post("/v1/feedback", json={**body, "action": "like", "user": "ann"})
    assert (answer.status, answer.json["rank"]) == (201, 6)
    assert web.post("/v1/feedback", json={**body, "action": "hate"}).status == 422
    for nul in ({"user": "a\0b"}, {"query_id": "a\0b"}):
        refused = web.post("/v1/feedback", json={**body, "action": "like", **nul})
        assert (refused.status, "must not contain a NUL" in refused.detail) == (422, True)
    other = {**body, "product_id": "nothing", "action": "like"}
    assert web.post("/v1/feedback", json=other).status == 422


def test_the_system_says_what_works_where(web: WebServer) -> None:
    system = web.get("/v1/system").json
    assert system["workers"] == {"fetch": 0, "embed": 1, "index": 1, "query": 1}
    assert system["queues"] == {"fetch": 0, "embed": 0, "index": 0, "query": 0}
    assert len(system["heartbeats"]) == 3


def test_two_versions_are_compared(web: WebServer, stack: LiveStack) -> None:
    old = web.get("/v1/index").json["version"]
    (stack.products / "kind0" / "product-000.jpg").unlink()
    draw_product(stack.products / "kind0" / "product-003.jpg", 77)
    draw_product(stack.products / "new.jpg", 78)
    stack.rebuild()
    new = web.get("/v1/index").json["version"]
    changes = web.get(f"/v1/index/changes?from={old}&to={new}").json
    assert changes == {
        "from": old,
        "to": new,
        "added": {"total": 1, "paths": ["new.jpg"]},
        "removed": {"total": 1, "paths": ["kind0/product-000.jpg"]},
        "changed": {"total": 1, "paths": ["kind0/product-003.jpg"]},
    }
    assert web.get(f"/v1/index/changes?from={old}&to=v9999").status == 404


def test_a_stopped_server_ends_well(web: WebServer) -> None:
    assert web.stop() == 0


def test_a_query_that_is_waited_for_holds_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    class Log:
        def query(self, query_id: str) -> None:
            return None

    async def run() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        wait = asyncio.create_task(logged_query(cast(FeedbackLog, Log()), "unknown"))
        for _ in range(5):
            await asyncio.to_thread(time.sleep, 0)
        assert not wait.done()
        with pytest.raises(NotFound, match="no query unknown in the log"):
            await wait

    monkeypatch.setattr("web.search.LOGGED_WITHIN_S", 0.5)
    asyncio.run(run())
