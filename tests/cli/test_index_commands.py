"""Index versions and signs of life, for people and for programs; how a table looks in a pipe."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from inline_worker import InlineWorker

from cli import output, progress
from pipeline.store.heartbeat import STALE_S

Run = Callable[..., Any]
HOST = socket.gethostname()

VERSION = {
    *("version", "published", "images", "dimension", "index", "nprobe", "recall_at_10"),
    *("rerank", "memory", "reason"),
    *("bytes", "fingerprint", "made_with", "job_id", "root", "created_at"),
}


@pytest.fixture
def two(inline_worker: InlineWorker) -> InlineWorker:
    """A shop that has published v0001 and v0002."""
    inline_worker.rebuild()
    inline_worker.toy.draw("second.png", seed=77)
    inline_worker.rebuild()
    return inline_worker


def test_versions_are_listed_and_the_published_one_is_marked(
    two: InlineWorker, imgrec: Run
) -> None:
    done = imgrec("index", "list")
    marked = [line for line in done.out.splitlines() if "*" in line and "v000" in line]
    assert len(marked) == 1
    assert "v0002" in marked[0]
    found = imgrec("index", "list", "--json").object
    assert found["current"] == "v0002"
    assert [version["version"] for version in found["versions"]] == ["v0001", "v0002"]
    assert [version["images"] for version in found["versions"]] == [20, 21]
    assert all(set(version) == VERSION for version in found["versions"])


def test_versions_are_listed_although_the_pointer_is_broken(two: InlineWorker, imgrec: Run) -> None:
    (two.toy.settings.index_dir / "CURRENT").write_text("nonsense")
    done = imgrec("index", "list")
    assert done.code == 1
    assert "v0001" in done.out
    assert "v0002" in done.out
    assert "run 'imgrec index rollback VERSION'" in done.err
    done = imgrec("index", "list", "--json")
    assert (done.code, done.object["current"]) == (1, None)
    assert len(done.object["versions"]) == 2


def test_without_a_version_the_list_is_empty_and_says_what_makes_one(imgrec: Run) -> None:
    done = imgrec("index", "list")
    assert (done.code, done.out) == (0, "")
    assert "imgrec enqueue-rebuild" in done.err
    assert imgrec("index", "list", "--json").object == {"current": None, "versions": []}


def test_info_reads_every_file_against_its_digest(two: InlineWorker, imgrec: Run) -> None:
    assert set(imgrec("index", "info", "--json").object) == VERSION
    assert imgrec("index", "info", "v0001", "--json").object["published"] is False
    assert "All files match their digests" in imgrec("index", "info").err
    file = two.toy.settings.index_dir / "v0001" / "vectors.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    done = imgrec("index", "info", "v0001")
    assert done.code == 1
    assert "vectors.npy does not match" in done.err


def test_a_rollback_names_both_versions_and_can_mend_a_broken_pointer(
    two: InlineWorker, imgrec: Run
) -> None:
    assert imgrec("index", "rollback", "--json").object == {
        "from": "v0002",
        "to": "v0001",
        "undone": 0,
    }
    assert "Published v0002 in place of v0001" in imgrec("index", "rollback", "v0002").err
    (two.toy.settings.index_dir / "CURRENT").write_text("nonsense")
    done = imgrec("index", "rollback")
    assert done.code == 1
    assert "imgrec index rollback VERSION" in done.err
    assert imgrec("index", "rollback", "v0001", "--json").object == {
        "from": None,
        "to": "v0001",
        "undone": 0,
    }
    assert imgrec("index", "info").code == 0


def test_a_rollback_within_a_publication_is_refused_and_not_half_done(
    two: InlineWorker, imgrec: Run
) -> None:
    with two.toy.versions.lock():
        done = imgrec("index", "rollback")
    assert done.code == 2
    assert "is being published right now" in done.err
    assert two.toy.versions.current_name() == "v0002"


@pytest.fixture
def beat(inline_worker: InlineWorker) -> Callable[[str, float], None]:
    folder = inline_worker.toy.settings.data_dir / "run"
    folder.mkdir(parents=True)

    def write(name: str, age_s: float) -> None:
        file = folder / f"{name}.alive"
        file.touch()
        then = file.stat().st_mtime - age_s
        os.utime(file, (then, then))

    return write


@pytest.mark.parametrize(
    ("worker", "queue"),
    [
        (f"embed@{HOST}", "embed"),
        (f"embed2@{HOST}", "embed"),  # the second of `imgrec up --embed-workers 2`
        (f"embed-4711@{HOST}", "embed"),
        (f"embed-index-query-4711@{HOST}", "index"),
        (f"query@{HOST}", None),
    ],
)
def test_a_fresh_sign_of_life_is_health(
    imgrec: Run, beat: Callable[[str, float], None], worker: str, queue: str | None
) -> None:
    beat(worker, 1)
    args = [] if queue is None else [queue]
    done = imgrec("health", *args, "--json")
    assert done.code == 0
    assert list(done.object["alive"]) == [worker]
    assert worker in imgrec("health", *args).err


def test_a_killed_worker_another_queue_s_or_another_machine_s_is_no_health(
    inline_worker: InlineWorker, imgrec: Run, beat: Callable[[str, float], None]
) -> None:
    beat(f"embed@{HOST}", 1)
    Path(
        inline_worker.toy.settings.data_dir, "run", f"embed@{HOST}.lock"
    ).touch()  # nobody holds it
    beat(f"query@{HOST}", 1)
    beat("embed@another-machine", 1)
    done = imgrec("health", "embed")
    assert done.code == 1
    assert "No worker of queue 'embed' on this machine" in done.err
    done = imgrec("health", "embed", "--json")
    assert (done.code, done.object) == (1, {"alive": {}, "unhealthy": {}, "ill": {}})


def test_one_worker_that_hangs_or_is_ill_is_named_with_the_reason(
    inline_worker: InlineWorker, imgrec: Run, beat: Callable[[str, float], None]
) -> None:
    beat(f"embed@{HOST}", STALE_S + 5)
    beat(f"query@{HOST}", 1)
    done = imgrec("health")
    assert done.code == 1
    assert f"embed@{HOST}: no heartbeat for 40 s" in done.err
    assert f"query@{HOST}: last heartbeat 1 s ago" in done.err
    assert imgrec("health", "query").code == 0
    Path(inline_worker.toy.settings.data_dir, "run", f"query@{HOST}.unhealthy").write_text(
        "the thread is dead"
    )
    done = imgrec("health", "query", "--json")
    reasons = {f"query@{HOST}": "the thread is dead"}
    assert (done.code, done.object) == (
        1,
        {"alive": {}, "unhealthy": reasons, "ill": reasons},
    )


def test_a_table_in_a_pipe_is_wide_and_shows_names_as_they_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = "kind/" + "long" * 30 + "-[bold]name[/bold].jpg"
    output.print_table("Title", ["path", "n"], [[name, 1]], {"n"})
    assert name in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (4.23, "4.2 s"),
        (59.9, "59.9 s"),
        (59.97, "1 min 0 s"),
        (185, "3 min 5 s"),
        (7800, "2 h 10 min"),
    ],
)
def test_durations_are_written_as_people_read_them(seconds: float, text: str) -> None:
    assert output.duration(seconds) == text


def test_each_step_of_a_migration_is_a_line_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    for quiet in (False, True):
        with progress.step_bar(quiet) as report:
            for done in (0, 1000, 2000):
                report("copying", done, 2000)
            report("graph", 0, 2000)
    lines = ["copying: 0 of 2,000 vectors", "graph: 0 of 2,000 vectors"]
    assert capsys.readouterr().err.splitlines() == lines


@pytest.mark.parametrize("options", [("--json",), ()])
def test_a_reader_that_has_seen_enough_gets_no_traceback(
    two: InlineWorker, options: tuple[str, ...]
) -> None:
    """`imgrec index list | head -1`"""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "cli.main", "index", "list", *options]
    environment = {**os.environ, "DATA_DIR": str(two.toy.settings.data_dir)}
    done = subprocess.run(
        command, stdout=writing, stderr=subprocess.PIPE, text=True, env=environment
    )
    os.close(writing)
    assert done.stderr == ""
