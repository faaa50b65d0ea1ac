"""Indexers that die at any line of a publication, and readers who look on meanwhile."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from faults.fault_run import FaultRun
from live_stack import LiveStack, draw_product, until

from pipeline.index import faiss_index
from pipeline.index.choose import IndexSpec
from pipeline.index.versions import VersionStore

LINES = {
    "merge.after_read": "v0001",
    "merge.before_save": "v0001",
    "merge.before_commit": "v0001",
    "rename:manifest.json": "v0001",
    "merge.before_pointer": "v0001",
    "rename:CURRENT": "v0001",
    "merge.after_pointer": "v0002",
    "index.before_record": "v0002",
}


class Readers:
    """A thread that opens the published version again and again, as query workers do."""

    def __init__(self, stand: LiveStack) -> None:
        self._folder = stand.data / "faiss_index"
        self.seen: set[str] = set()
        self.wrong: list[str] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Readers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                store = VersionStore(self._folder)
                version = store.current()
                store.verify(version)
                kind = IndexSpec.of(version.manifest["index"])
                faiss = faiss_index.load(version.folder / "index.bin", kind)
                counts = {faiss.ntotal, len(version.paths), version.manifest["images"]}
                if len(counts) != 1:
                    self.wrong.append(f"{version.name}: {counts}")
                self.seen.add(version.name)
            except Exception as error:
                self.wrong.append(f"{type(error).__name__}: {error}")


@pytest.mark.fault(15, "kill -9 of the indexer at {line}")
@pytest.mark.short("merge.before_commit", "merge.after_pointer")
@pytest.mark.parametrize("line", LINES)
def test_an_indexer_killed_at_any_line_publishes_once_and_readers_never_see_a_half(
    trial: FaultRun, line: str
) -> None:
    trial.draw()
    stand = trial.stand
    stand.worker("embed")
    victim = stand.keep("index")
    trial.publishes(trial.enqueue())
    draw_product(stand.products / "kind0" / "new.jpg", seed=900_000 + trial.seed)
    trial.good = sorted([*trial.good, "kind0/new.jpg"])
    victim.more = trial.armed(line)
    victim.process.kill()
    until(lambda: victim.deaths == 1, "an armed indexer takes its place")
    with Readers(stand) as readers:
        job_id = trial.enqueue()
        trial.strikes()
        until(lambda: victim.deaths == 2, "the indexer dies")
        current = (stand.data / "faiss_index" / "CURRENT").read_text().strip()
        assert current == LINES[line]
        trial.publishes(job_id)
        until(lambda: "v0002" in readers.seen, "readers see the new version")
    assert readers.wrong == []
    assert readers.seen == {"v0001", "v0002"}
    folder = stand.data / "faiss_index"
    assert sorted(child.name for child in folder.glob("v*")) == ["v0001", "v0002"]
    assert not list(folder.glob(".build-*"))
    assert stand.jobs.get(job_id).index_version == "v0002"


@pytest.mark.fault(16, "the merge sent three times, to two indexers")
def test_a_merge_sent_three_times_to_two_indexers_publishes_once(trial: FaultRun) -> None:
    trial.draw()
    stand = trial.stand
    stand.worker("embed")
    job_id = trial.enqueue()
    until(lambda: stand.jobs.ready_to_merge(job_id), "every shard is done")
    for _ in range(3):
        stand.sender().send_task(
            "imgrec.merge_shards", args=(job_id,), queue="index", ignore_result=True
        )
    trial.hit()
    stand.workers("index", "index")
    trial.publishes(job_id)
    until(lambda: stand.redis().llen("imgrec:index") == 0, "every message is taken")
    folder = stand.data / "faiss_index"
    assert [child.name for child in folder.glob("v*")] == ["v0001"]


@pytest.mark.fault(19, "a disk that is full while {what} is written")
@pytest.mark.parametrize("what", ["the index", "the manifest", "the pointer"])
def test_a_full_disk_under_a_publication_is_waited_for(trial: FaultRun, what: str) -> None:
    lines = {
        "the index": "merge.before_save",
        "the manifest": "rename:manifest.json",
        "the pointer": "rename:CURRENT",
    }
    trial.draw()
    stand = trial.stand
    stand.worker("embed")
    stand.worker("index", **trial.armed(f"{lines[what]}!full"))
    job_id = trial.enqueue()
    trial.strikes()
    trial.publishes(job_id)
    folder = stand.data / "faiss_index"
    assert not list(folder.glob(".build-*"))
    assert [child.name for child in folder.glob("v*")] == ["v0001"]
    assert "No space left on device" in stand.log("index")


@pytest.mark.fault(16, "SIGSTOP of an indexer that holds the lock, SIGCONT while another waits")
def test_an_indexer_that_wakes_late_publishes_no_second_version(trial: FaultRun) -> None:
    trial.draw()
    stand = trial.stand
    stand.worker("embed")
    line = trial.dice.choice(["merge.before_commit!stop", "merge.before_pointer!stop"])
    frozen = stand.worker("index", **trial.armed(line))
    job_id = trial.enqueue()
    trial.strikes()
    until(lambda: merge_lease(stand, job_id) < time.time(), "its lease ends")
    stand.worker("index")
    until(lambda: merge_lease(stand, job_id) > time.time(), "another indexer takes the merge")
    os.killpg(frozen.pid, signal.SIGCONT)
    trial.publishes(job_id)
    folder = stand.data / "faiss_index"
    assert [child.name for child in folder.glob("v*")] == ["v0001"]


def merge_lease(stand: LiveStack, job_id: str) -> float:
    with stand.jobs._database.transaction() as tx:
        rows = tx.rows("SELECT lease_until FROM jobs WHERE id = ?", (job_id,))
    return float(rows[0]["lease_until"])
