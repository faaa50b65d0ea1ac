"""The last release and this one side by side, over one Redis and one database, in both orders."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from index_stand import clustered, publish, store_in
from inline_worker import InlineWorker
from last_release import Both, build_last_release
from live_stack import LiveStack, draw_folder

from pipeline.index.engine import Base
from pipeline.index.faiss_engine import FaissEngine
from pipeline.index.segments import SegmentedVectors
from pipeline.store.database import Database
from pipeline.store.job import FORM as JOB_FORM
from pipeline.store.jobs import Jobs
from workers.embed import embed
from workers.index import merge_shards
from workers.routes import FORM, FORM_HEADER

QUERIES = 4


@pytest.fixture(scope="session")
def last_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_last_release(tmp_path_factory.mktemp("last-release"))


@pytest.fixture
def both(stack: LiveStack, last_release: Path) -> Both:
    return Both(stack, last_release)


def test_what_is_called_the_last_release_is_another_program(last_release: Path) -> None:
    script = "import cli.main, workers.tasks; print(cli.main.__file__, workers.tasks.__file__)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        env={"PYTHONPATH": str(last_release)},
        capture_output=True,
        text=True,
    )
    assert all(Path(file).is_relative_to(last_release) for file in done.stdout.split())


# Of the last release: what it serves before and after a version that shares files is published.
FOLLOW = """
import sys
from pathlib import Path
from pipeline.errors import IndexBroken
from pipeline.index.live_index import PublishedIndex
from pipeline.index.versions import VersionStore
versions = VersionStore(Path(sys.argv[1]))
versions.point_to(versions.open("v0001"))
live = PublishedIndex(versions)
print(live.current().version.name)
versions.point_to(versions.open("v0002"))
print(live.current().version.name)
try:
    PublishedIndex(versions).current()
except IndexBroken as error:
    print(error)
"""


def test_the_last_release_goes_on_with_its_version_beside_one_that_shares_files(
    last_release: Path, tmp_path: Path
) -> None:
    engine, store = FaissEngine(1000), store_in(tmp_path / "index")
    vectors = clustered(2000, 16)
    old = publish(store, engine, vectors)
    new: Any = SegmentedVectors(vectors, vectors[:0], np.arange(1, 2000))
    assert publish(store, engine, new, Base(old, new.places)).is_segmented
    done = subprocess.run(
        [sys.executable, "-P", "-c", FOLLOW, str(store.folder)],
        env={"PYTHONPATH": str(last_release)},
        capture_output=True,
        text=True,
    )
    first, second, sentence = done.stdout.splitlines()
    assert (first, second) == ("v0001", "v0001"), done.stderr
    assert "index.bin cannot be read" in sentence


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [("old", "new"), ("new", "old")])
def test_a_rebuild_and_queries_of_mixed_releases_lose_and_double_nothing(
    both: Both, first: str, second: str
) -> None:
    """Workers of one release run, those of the other join; commands of both ask."""
    stack = both.stack
    stack.environment |= {"SHARD_SIZE": "4", "EMBED_BATCH_SIZE": "4"}
    names = draw_folder(stack.products, 60)
    for queue in ("embed", "index", "query"):
        both.worker(first, queue)
    photo = stack.products / names[0]
    job = both.imgrec(second, "enqueue-rebuild", stack.products, "--wait")
    assert (job["state"], job["embedded"], job["skipped"]) == ("published", 60, 0)
    assert stack.indexed() == names

    both.worker(second, "embed")
    both.worker(second, "query")
    answers: list[object] = []

    def ask(release: str) -> None:
        for _ in range(QUERIES):
            answer = both.imgrec(release, "query", photo, "--wait", "--timeout", "200")
            answers.append(answer["matches"][0]["filename"])  # type: ignore[index]

    askers = [threading.Thread(target=ask, args=(release,)) for release in (first, second)]
    for asker in askers:
        asker.start()
    draw_folder(stack.products, 90)  # the first 60 are as they were
    job = both.imgrec(first, "enqueue-rebuild", stack.products, "--full", "--wait")
    for asker in askers:
        asker.join()
    assert (job["state"], job["embedded"], job["skipped"]) == ("published", 90, 0)
    indexed = stack.indexed()
    assert len(indexed) == len(set(indexed)) == 90
    assert answers == [names[0]] * 2 * QUERIES
    # What the other release has written is read: jobs, index, products, results.
    for release in (first, second):
        assert [job["state"] for job in both.imgrec(release, "jobs")["jobs"]] == ["published"] * 2  # type: ignore[attr-defined]
        assert both.imgrec(release, "index", "info")["images"] == 90


def test_a_message_of_a_newer_form_is_refused_with_a_sentence_and_the_worker_goes_on(
    stack: LiveStack,
) -> None:
    draw_folder(stack.products, 3)
    stack.answer("enqueue-rebuild", str(stack.products), "--local")
    stack.worker("query")
    app = stack.sender()
    sent = app.send_task(
        "imgrec.query_image",
        args=[base64.b64encode(b"x").decode(), 5],
        queue="query",
        headers={FORM_HEADER: FORM + 1},
    )
    with pytest.raises(Exception, match=r"a newer imgrec sent it in form 2.*update imgrec here"):
        sent.get(timeout=120)
    photo = next(stack.products.rglob("*.jpg"))
    assert stack.query(photo)["matches"]


def newer(jobs: Jobs, database: Database, job_id: str) -> None:
    with database.transaction() as tx:
        options = {
            "form": JOB_FORM + 1,
            "full": False,
            "save_preprocessed": False,
            "only_blue": True,
        }
        tx.rows("UPDATE jobs SET options = ? WHERE id = ?", (json.dumps(options), job_id))


def test_a_job_that_a_newer_release_has_planned_is_left_to_its_workers(
    inline_worker: InlineWorker,
) -> None:
    job_id = inline_worker.toy.plan()
    newer(inline_worker.toy.jobs, inline_worker.resources.database, job_id)
    inline_worker.join_s = 1000.0
    inline_worker.advance(job_id)
    inline_worker.messages.clear()
    embed(inline_worker.resources, job_id, 0)
    assert inline_worker.job(job_id).state == "planned"
    assert "A newer imgrec planned job" in str(inline_worker.job(job_id).error)
    with inline_worker.resources.database.transaction() as tx:
        tx.rows("UPDATE jobs SET options = ?", ('{"full": false, "save_preprocessed": false}',))
    inline_worker.messages.clear()
    embed(inline_worker.resources, job_id, 0)
    newer(inline_worker.toy.jobs, inline_worker.resources.database, job_id)
    merge_shards(inline_worker.resources, job_id)
    assert inline_worker.job(job_id).open
    assert "update imgrec on this machine" in str(inline_worker.job(job_id).error)


@pytest.mark.parametrize("table", ["schema_additions", "schema_version"])
def test_a_newer_schema_is_used_only_if_it_does_nothing_but_add(
    database_url: str, table: str
) -> None:
    with Database(database_url).transaction() as tx:
        tx.rows(f"INSERT INTO {table} VALUES (999)")
    jobs = Jobs(Database(database_url))
    if table == "schema_additions":
        assert jobs.list_with_progress() == []
    else:
        with pytest.raises(Exception, match=r"schema version 999; this imgrec supports up to \d+"):
            jobs.list_with_progress()
