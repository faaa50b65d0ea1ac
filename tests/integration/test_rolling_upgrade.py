"""The last release and this one side by side, over one Redis and one database, in both orders."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest
from inline_worker import InlineWorker
from live_stack import ROOT, LiveStack, draw_folder

from pipeline.store.database import Database
from pipeline.store.jobs import Jobs
from workers.embed import embed
from workers.index import merge_shards
from workers.routes import FORM, FORM_HEADER

LAST_RELEASE = "c9b134f"
QUERIES = 4


@pytest.fixture(scope="session")
def last_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last release's packages, from a wheel that is built from the repository's history."""
    folder = tmp_path_factory.mktemp("last-release")
    archive = folder / "tree.tar"
    git = ["git", "archive", "--output", str(archive), LAST_RELEASE]
    paths = ["cli", "workers", "pipeline", "celeryconfig.py", "pyproject.toml", "README.md"]
    done = subprocess.run([*git, *paths, "LICENSE"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no history here: {done.stderr.strip()[:200]}")
    with tarfile.open(archive) as tar:
        tar.extractall(folder / "tree", filter="data")
    script = "from setuptools.build_meta import build_wheel; build_wheel('.')"
    subprocess.run([sys.executable, "-c", script], cwd=folder / "tree", check=True)
    (wheel,) = (folder / "tree").glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        content.extractall(folder / "site")
    shutil.rmtree(folder / "tree")
    return folder / "site"


class Both:
    """A shop whose workers and commands are of either release."""

    def __init__(self, stand: LiveStack, last_release: Path) -> None:
        self.stand, self.last_release = stand, last_release

    def old_env(self) -> dict[str, str]:
        return {**self.stand.env(), "PYTHONPATH": str(self.last_release)}

    def worker(self, release: str, queue: str) -> None:
        if release == "new":
            self.stand.worker(queue)
            return
        with (self.stand.folder / f"{queue}-old.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "celery", "worker", "-Q", queue, "-l", "INFO"],
                cwd=self.stand.folder,
                env=self.old_env(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.stand.processes.append(process)

    def imgrec(self, release: str, *args: object) -> dict[str, object]:
        command = [*map(str, args), "--json"]
        if release == "new":
            return self.stand.answer(*command[:-1])
        done = subprocess.run(
            [sys.executable, "-P", "-m", "cli.main", *command],
            cwd=self.stand.folder,
            env=self.old_env(),
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert done.returncode == 0, done.stderr
        answer: dict[str, object] = json.loads(done.stdout)
        return answer


@pytest.fixture
def both(stand: LiveStack, last_release: Path) -> Both:
    return Both(stand, last_release)


def test_what_is_called_the_last_release_is_another_program(last_release: Path) -> None:
    script = "import cli.main, workers.tasks; print(cli.main.__file__, workers.tasks.__file__)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        env={"PYTHONPATH": str(last_release)},
        capture_output=True,
        text=True,
    )
    assert all(Path(file).is_relative_to(last_release) for file in done.stdout.split())


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [("old", "new"), ("new", "old")])
def test_a_rebuild_and_queries_of_mixed_releases_lose_and_double_nothing(
    both: Both, first: str, second: str
) -> None:
    """Workers of one release run, those of the other join; commands of both ask."""
    stand = both.stand
    stand.environment |= {"SHARD_SIZE": "4", "EMBED_BATCH_SIZE": "4"}
    names = draw_folder(stand.products, 60)
    for queue in ("embed", "index", "query"):
        both.worker(first, queue)
    photo = stand.products / names[0]
    job = both.imgrec(second, "enqueue-rebuild", stand.products, "--wait")
    assert (job["state"], job["embedded"], job["skipped"]) == ("published", 60, 0)
    assert stand.indexed() == names

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
    draw_folder(stand.products, 90)  # the first 60 are as they were
    job = both.imgrec(first, "enqueue-rebuild", stand.products, "--full", "--wait")
    for asker in askers:
        asker.join()
    assert (job["state"], job["embedded"], job["skipped"]) == ("published", 90, 0)
    indexed = stand.indexed()
    assert len(indexed) == len(set(indexed)) == 90
    assert answers == [names[0]] * 2 * QUERIES
    # What the other release has written is read: jobs, index, products, results.
    for release in (first, second):
        assert [job["state"] for job in both.imgrec(release, "jobs")["jobs"]] == ["published"] * 2  # type: ignore[attr-defined]
        assert both.imgrec(release, "index", "info")["images"] == 90


def test_a_message_of_a_newer_form_is_refused_with_a_sentence_and_the_worker_goes_on(
    stand: LiveStack,
) -> None:
    draw_folder(stand.products, 3)
    stand.answer("enqueue-rebuild", str(stand.products), "--local")
    stand.worker("query")
    app = stand.sender()
    sent = app.send_task(
        "imgrec.query_image",
        args=[base64.b64encode(b"x").decode(), 5],
        queue="query",
        headers={FORM_HEADER: FORM + 1},
    )
    with pytest.raises(Exception, match=r"a newer imgrec sent it in form 2.*update imgrec here"):
        sent.get(timeout=120)
    photo = next(stand.products.rglob("*.jpg"))
    assert stand.query(photo)["matches"]


def newer(jobs: Jobs, database: Database, job_id: str) -> None:
    with database.transaction() as tx:
        options = '{"form": 2, "full": false, "save_preprocessed": false, "only_blue": true}'
        tx.rows("UPDATE jobs SET options = ? WHERE id = ?", (options, job_id))


def test_a_job_that_a_newer_release_has_planned_is_left_to_its_workers(
    desk: InlineWorker,
) -> None:
    job_id = desk.shop.plan()
    newer(desk.shop.jobs, desk.resources.database, job_id)
    desk.join_s = 1000.0
    desk.advance(job_id)
    desk.messages.clear()
    embed(desk.resources, job_id, 0)
    assert desk.job(job_id).state == "planned"
    assert "A newer imgrec planned job" in str(desk.job(job_id).error)
    with desk.resources.database.transaction() as tx:
        tx.rows("UPDATE jobs SET options = ?", ('{"full": false, "save_preprocessed": false}',))
    desk.messages.clear()
    embed(desk.resources, job_id, 0)
    newer(desk.shop.jobs, desk.resources.database, job_id)
    merge_shards(desk.resources, job_id)
    assert desk.job(job_id).open
    assert "update imgrec on this machine" in str(desk.job(job_id).error)


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
