"""The main job on real servers and the bundled model: a folder becomes an index, a query finds its
likes.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
from live_stack import ROOT, LiveStack
from PIL import Image
from preloaded import Process
from sample_images import draw_one, draw_range, kinds_of


def write_broken_files(folder: Path) -> dict[str, str]:
    """Write one file of each broken kind; return what each one's reason must say."""
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("this is no image")
    Image.new("RGB", (1, 1)).save(folder / "one-pixel.png")
    whole = next(folder.glob("*/*.jpg")).read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "bomb.png").write_bytes(_png_header(30_000, 30_000))
    return {
        "empty.jpg": "0 bytes",
        "text.jpg": "not an image",
        "one-pixel.png": "1x1",
        "truncated.jpg": "cut off",
        "bomb.png": "MAX_IMAGE_PIXELS",
    }


def _png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def test_a_folder_becomes_an_index_and_lives_through_every_change(any_database: LiveStack) -> None:
    stack = any_database
    good = draw_range(stack.products, 40)
    broken = write_broken_files(stack.products)
    stack.workers("embed", "index", "query")

    first = stack.rebuild()
    assert first["state"] == "published"
    assert (first["images"], first["embedded"], first["skipped"]) == (45, 40, 5)
    assert stack.indexed() == good  # each once, sorted
    failures = stack.failures(first["job_id"])
    assert failures.keys() == broken.keys()
    for path, words in broken.items():
        assert words in failures[path][1]

    # A mug finds itself, then other mugs; the answer has the contract's shape.
    assert "mug/red.jpg" in good
    answer = stack.query(stack.products / "mug" / "red.jpg", "--top-k", "3")
    assert answer["index_version"] == first["index_version"]
    assert [match["rank"] for match in answer["matches"]] == [1, 2, 3]
    best = answer["matches"][0]
    assert best["filename"] == "mug/red.jpg"
    assert best["product_id"] == "mug/red"
    assert best["score"] > 0.999 > answer["matches"][1]["score"]
    assert kinds_of(answer["matches"]) == ["mug", "mug", "mug"]
    assert abs(best["score"] + best["distance"] - 1) < 1e-6

    # Unchanged: nothing is embedded, and no new version is needed.
    again = stack.rebuild()
    assert (again["embedded"], again["reused"], again["skipped"]) == (0, 40, 5)
    assert again["index_version"] == first["index_version"]

    # One changed, one deleted, one new: two images of work.
    draw_one(stack.products / good[0], "teapot", "red")
    deleted = (stack.products / good[1]).rename(stack.folder / "deleted.jpg")
    draw_one(stack.products / "lamp" / "new.jpg", "lamp", "green")
    third = stack.rebuild()
    assert (third["embedded"], third["reused"]) == (2, 38)
    assert third["index_version"] != first["index_version"]
    assert stack.indexed() == sorted({*good, "lamp/new.jpg"} - {good[1]})
    assert stack.query(stack.products / good[0])["matches"][0]["filename"] == good[0]

    # A touched or moved file has the same content: it is read, not embedded.
    (stack.products / good[2]).touch()
    (stack.products / good[3]).rename(stack.products / "lamp" / "moved.jpg")
    fourth = stack.rebuild()
    assert fourth["embedded"] == 0
    assert "lamp/moved.jpg" in stack.indexed()

    # Roll back: the version before answers at once, without a restart.
    back = stack.answer("index", "rollback", first["index_version"])
    assert back["to"] == first["index_version"]
    answer = stack.query(deleted)
    assert answer["index_version"] == first["index_version"]
    assert answer["matches"][0]["filename"] == good[1]

    # --full embeds everything again.
    assert stack.rebuild("--full")["embedded"] == 40


def test_a_query_without_an_index_says_so_with_exit_code_3(stack: LiveStack) -> None:
    draw_one(stack.folder / "query.jpg", "mug", "red")
    stack.worker("query")
    done = stack.imgrec("query", "query.jpg", "--wait")
    assert done.returncode == 3
    assert "FAISS index not found. Rebuild index first using 'enqueue-rebuild'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_query_needs_no_path_that_the_worker_can_see(stack: LiveStack) -> None:
    names = draw_range(stack.products, 12)
    stack.workers("embed", "index", "query")
    stack.rebuild()
    # Found by the bytes alone: the file is gone before a worker could look for it.
    query = stack.folder / "mine.jpg"
    query.write_bytes((stack.products / names[5]).read_bytes())
    query_id = stack.answer("query", str(query))["query_id"]
    query.unlink()
    answer = stack.answer("result", query_id, "--wait")
    assert answer["query_id"] == query_id
    assert answer["matches"][0]["filename"] == names[5]


def test_a_new_mug_finds_the_mugs_and_a_repeated_query_does_no_work(stack: LiveStack) -> None:
    names = draw_range(stack.products, 12)
    stack.workers("embed", "index", "query")
    stack.rebuild()
    new = draw_one(stack.folder / "new.jpg", "mug", "brown", seed=77)  # no brown one is indexed
    first = stack.query(new)
    mugs = [name for name in names if name.startswith("mug/")]
    assert len(mugs) == 3
    assert sorted(match["filename"] for match in first["matches"][:3]) == mugs
    second = stack.query(new)
    assert first["matches"] == second["matches"]
    lines = [line for line in stack.log("query").splitlines() if " matches" in line]
    assert "from the cache" not in lines[0]
    assert "from the cache" in lines[1]
    keys = list(stack.redis().keys("imgrec:cache:*"))
    assert keys
    assert all(stack.redis().ttl(key) > 0 for key in keys)


def test_the_page_holds_the_pictures_and_asks_nothing_of_the_network(stack: LiveStack) -> None:
    names = draw_range(stack.products, 12)
    stack.workers("embed", "index", "query")
    stack.rebuild()
    page = stack.folder / "page.html"
    done = stack.imgrec("query", str(stack.products / names[0]), "--html", str(page))
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert text.count("data:image/jpeg;base64,") == 6  # the query and five matches
    assert names[0].removesuffix(".jpg") in text
    assert "http" not in text


def test_what_the_model_saw_is_kept_in_a_mirrored_folder(stack: LiveStack) -> None:
    names = draw_range(stack.products, 9)
    stack.workers("embed", "index", "query")
    stack.rebuild()
    stack.rebuild("--save-preprocessed")  # although every vector is known
    for name in names:
        with Image.open(stack.data / "preprocessed" / name) as image:
            assert image.size == (224, 224)


@pytest.mark.slow
def test_missing_weights_are_one_sentence_before_any_shard_runs(stack: LiveStack) -> None:
    draw_range(stack.products, 30)
    nowhere = {
        "USE_BG_REMOVAL": "true",
        "REMBG_MODEL": "u2netp",
        "U2NET_HOME": str(stack.folder / "no-weights"),
        "https_proxy": "http://127.0.0.1:9",  # nobody listens: the download fails at once
    }
    stack.worker("embed", **nowhere)
    stack.worker("index", **nowhere)
    done = stack.imgrec("enqueue-rebuild", str(stack.products), "--wait", **nowhere)
    assert done.returncode == 1
    for way_out in ("U2NET_HOME", "USE_BG_REMOVAL=false", "u2netp.onnx"):
        assert way_out in done.stderr
    job = stack.answer("jobs")["jobs"][0]
    assert (job["embedded"], job["skipped"], job["state"]) == (0, 0, "failed")


def test_celery_finds_the_app_by_name_too(stack: LiveStack) -> None:
    names = draw_range(stack.products, 6)
    command = ["celery", "-A", "workers", "worker", "-l", "INFO"]  # no -Q: all queues
    log = stack.folder / "all.log"
    stack.processes.append(Process(command, cwd=ROOT, env=stack.env(), stdout=log, stderr=log))
    assert stack.rebuild()["embedded"] == 6
    assert stack.query(stack.products / names[0])["matches"][0]["filename"] == names[0]
