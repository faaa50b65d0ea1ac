"""Indexers that die at any line of a publication, and readers who look on meanwhile."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from faults.fault_run import FaultRun
from live_stack import LiveStack, draw_product, until

from pipeline.index.faiss_engine import FaissEngine
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

    def __init__(self, stack: LiveStack) -> None:
        self._folder = stack.data / "faiss_index"
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
        while not self._ended.wait(0.005):
            try:
                store = VersionStore(self._folder)
                version = store.current()
                store.verify(version)
                index = FaissEngine().open(version)
                counts = {index.n_vectors, len(version.paths), version.manifest["images"]}
                if len(counts) != 1:
                    self.wrong.append(f"{version.name}: {counts}")
                self.seen.add(version.name)
            except Exception as error:
                self.wrong.append(f"{type(error).__name__}: {error}")


@pytest.mark.fault(15, "kill -9 of the indexer at {line}, {files}")
@pytest.mark.short("merge.before_commit", "merge.after_pointer")
@pytest.mark.parametrize("files", ["all files written", "large files shared"])
@pytest.mark.parametrize("line", LINES)
def test_an_indexer_killed_at_any_line_publishes_once_and_readers_never_see_a_half(
    fault_run: FaultRun, line: str, files: str
) -> None:
    fault_run.draw()
    stack = fault_run.stack
    shared = files == "large files shared"
    if shared:
        stack.environment["FLAT_MAX_VECTORS"] = "1"  # only inverted lists are gone on with
    stack.worker("embed")
    victim = stack.supervise("index")
    fault_run.publishes(fault_run.enqueue())
    draw_product(stack.products / "kind0" / "new.jpg", seed=900_000 + fault_run.seed)
    fault_run.good = sorted([*fault_run.good, "kind0/new.jpg"])
    victim.more = fault_run.armed(line)
    victim.process.kill()
    until(lambda: victim.restarts == 1, "an armed indexer takes its place")
    with Readers(stack) as readers:
        job_id = fault_run.enqueue()
        fault_run.wait_for_failpoint()
        until(lambda: victim.restarts == 2, "the indexer dies")
        current = (stack.data / "faiss_index" / "CURRENT").read_text().strip()
        assert current == LINES[line]
        fault_run.publishes(job_id)
        until(lambda: "v0002" in readers.seen, "readers see the new version")
    assert readers.wrong == []
    assert readers.seen == {"v0001", "v0002"}
    folder = stack.data / "faiss_index"
    assert sorted(child.name for child in folder.glob("v*")) == ["v0001", "v0002"]
    assert not list(folder.glob(".build-*"))
    assert stack.jobs.get(job_id).index_version == "v0002"
    assert (folder / "v0002" / "base_index.bin").exists() == shared


@pytest.mark.fault(16, "the merge sent three times, to two indexers")
def test_a_merge_sent_three_times_to_two_indexers_publishes_once(fault_run: FaultRun) -> None:
    fault_run.draw()
    stack = fault_run.stack
    stack.worker("embed")
    job_id = fault_run.enqueue()
    until(lambda: stack.jobs.ready_to_merge(job_id), "every shard is done")
    for _ in range(3):
        stack.sender().send_task(
            "imgrec.merge_shards", args=(job_id,), queue="index", ignore_result=True
        )
    fault_run.hit()
    stack.workers("index", "index")
    fault_run.publishes(job_id)
    until(lambda: stack.redis().llen("imgrec:index") == 0, "every message is taken")
    folder = stack.data / "faiss_index"
    assert [child.name for child in folder.glob("v*")] == ["v0001"]


@pytest.mark.fault(19, "a disk that is full while {what} is written")
@pytest.mark.parametrize("what", ["the index", "the manifest", "the pointer"])
def test_a_full_disk_under_a_publication_is_waited_for(fault_run: FaultRun, what: str) -> None:
    lines = {
        "the index": "merge.before_save",
        "the manifest": "rename:manifest.json",
        "the pointer": "rename:CURRENT",
    }
    fault_run.draw()
    stack = fault_run.stack
    stack.worker("embed")
    stack.worker("index", **fault_run.armed(f"{lines[what]}!full"))
    job_id = fault_run.enqueue()
    fault_run.wait_for_failpoint()
    fault_run.publishes(job_id)
    folder = stack.data / "faiss_index"
    assert not list(folder.glob(".build-*"))
    assert [child.name for child in folder.glob("v*")] == ["v0001"]
    assert "No space left on device" in stack.log("index")


@pytest.mark.fault(16, "SIGSTOP of an indexer that holds the lock, SIGCONT while another waits")
def test_an_indexer_that_wakes_late_publishes_no_second_version(fault_run: FaultRun) -> None:
    fault_run.draw()
    stack = fault_run.stack
    stack.worker("embed")
    line = fault_run.rng.choice(["merge.before_commit!stop", "merge.before_pointer!stop"])
    frozen = stack.worker("index", **fault_run.armed(line))
    job_id = fault_run.enqueue()
    fault_run.wait_for_failpoint()
    until(lambda: merge_lease(stack, job_id) < time.time(), "its lease ends")
    stack.worker("index")
    until(lambda: merge_lease(stack, job_id) > time.time(), "another indexer takes the merge")
    os.killpg(frozen.pid, signal.SIGCONT)
    fault_run.publishes(job_id)
    folder = stack.data / "faiss_index"
    assert [child.name for child in folder.glob("v*")] == ["v0001"]


def merge_lease(stack: LiveStack, job_id: str) -> float:
    with stack.jobs._database.transaction() as tx:
        rows = tx.rows("SELECT lease_until FROM jobs WHERE id = ?", (job_id,))
    return float(rows[0]["lease_until"])
