"""The files and the database of the last release go on working.

release-0.1.tar.xz was made by that release's own commands: `data` with an index version, a job
table, products and feedback on SQLite, and a second job that was killed after its first of four
shards; `models` with a trained head; the twelve products, one broken file and the tiny model.
"""

from __future__ import annotations

import json
import os
import sqlite3
import tarfile
from pathlib import Path
from typing import Any

import pytest
from preloaded import run

ARCHIVE = Path(__file__).parent / "release-0.1.tar.xz"
PUBLISHED_JOB, KILLED_JOB = "20261126-155853-ca0d", "20261126-160158-350b"


class Shop:
    """A folder as the last release left it, and the commands of this one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with tarfile.open(ARCHIVE) as archive:
            archive.extractall(folder, filter="data")
        with sqlite3.connect(folder / "data/app.db") as database:  # it was made in another folder
            database.execute("UPDATE jobs SET root = ?", (str(folder / "products"),))

    def imgrec(self, *arguments: object) -> dict[str, Any]:
        """Run a command with --json that must succeed; return its object."""
        environment = {
            **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
            "EMBEDDING_MODEL": "model",
            "USE_BG_REMOVAL": "false",
            "REDIS_URL": "redis://127.0.0.1:1/0",  # nobody listens
            "HF_HUB_OFFLINE": "1",
            "CPU_THREADS": "1",
        }
        command = ["imgrec", *map(str, arguments), "--json"]
        done = run(command, cwd=self.folder, env=environment, timeout_s=200)
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def test_the_last_release_s_index_answers_and_its_open_job_is_finished(shop: Shop) -> None:
    photo = shop.folder / "products/kind0/product-000.jpg"
    answer = shop.imgrec("query", photo, "--local", "--wait", "--where", "price<20")
    assert answer["index_version"] == "v0001"
    assert [match["product_id"] for match in answer["matches"]] == ["mug"]
    assert answer["matches"][0]["score"] == pytest.approx(1.0, abs=1e-5)

    states = {job["job_id"]: job["state"] for job in shop.imgrec("jobs")["jobs"]}
    assert states == {PUBLISHED_JOB: "published", KILLED_JOB: "running"}
    job = shop.imgrec("status", KILLED_JOB, "--local", "--wait")
    assert (job["state"], job["index_version"]) == ("published", "v0002")
    assert (job["embedded"], job["reused"], job["skipped"]) == (6, 12, 1)
    indexed = json.loads((shop.folder / "data/faiss_index/v0002/id_to_filename.json").read_text())
    assert len(set(indexed.values())) == len(indexed) == 18


def test_an_unchanged_folder_is_reused_and_heads_and_feedback_are_read(shop: Shop) -> None:
    shop.imgrec("cancel", KILLED_JOB)
    for file in (shop.folder / "products").glob("new-*.png"):
        file.unlink()
    job = shop.imgrec("enqueue-rebuild", shop.folder / "products", "--local", "--wait")
    assert (job["state"], job["embedded"], job["reused"]) == ("published", 0, 12)
    report = shop.imgrec("feedback", "report")
    assert (report["with_feedback"], report["actions"]["like"]) == (1, 1)
    heads = shop.imgrec("heads")["heads"]
    assert [(head["category"], head["attribute"]) for head in heads] == [("kind", "color")]
