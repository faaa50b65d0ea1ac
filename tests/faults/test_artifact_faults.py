"""A store of versions, shards and heads that goes away, is slow, fails or is full; killed workers.

The photos are in a folder here: what is tested is the store that takes the place of DATA_DIR.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.fault_run import FaultRun
from faults.test_store_faults import SMALL, StoreProxy
from live_stack import LiveStack, until
from s3_server import SECRET, S3Server

from pipeline.index.remote_versions import RemoteVersions
from pipeline.storage.address import Address
from pipeline.storage.object_store import ObjectStore

pytestmark = pytest.mark.long

ADDRESS = "s3://shop/imgrec"
AWAY_S = 20


@pytest.fixture
def server(stack: LiveStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A store of this test's own, which holds what DATA_DIR held."""
    server = S3Server(tmp_path / "s3")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)  # this process looks on
    stack.environment |= {**server.environment, **SMALL, "ARTIFACTS_URL": ADDRESS}
    yield server
    server.close()


@pytest.mark.fault(50, "the store of versions and shards {how}")
@pytest.mark.short("away for 20 s")
@pytest.mark.parametrize(
    "how", ["away for 20 s", "failing every fifth request", "slow", "full for a while"]
)
def test_a_store_in_trouble_loses_nothing_of_a_rebuild(
    fault_run: FaultRun, server: S3Server, how: str
) -> None:
    stack = fault_run.stack
    fault_run.draw(120)
    proxy = StoreProxy(server.port)
    stack.environment["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{proxy.port}"
    if how == "slow":
        proxy.delay_s = 0.3
    if how == "failing every fifth request":
        proxy.every = 5
    stack.workers("embed", "index")
    job_id = fault_run.enqueue()
    fault_run.hit()
    until(lambda: fault_run.state(job_id) == "running", "a worker has begun")
    if how == "away for 20 s":
        server.stop()
        time.sleep(AWAY_S)
        server.start()
    if how == "full for a while":
        proxy.full = True
        until(lambda: stack.jobs.get(job_id).error, "the job waits for the store")
        proxy.full = False
    fault_run.publishes(job_id)
    if proxy.every:
        assert proxy.failed > 5
    assert not (stack.data / "jobs").exists()
    assert SECRET not in stack.log("embed") + stack.log("index")
    proxy.close()


@pytest.mark.fault(51, "kill -9 at {line} of a worker that uses a store")
@pytest.mark.short("upload")
@pytest.mark.parametrize(
    "line",
    ["embed.after_write", "upload", "merge.before_pointer", "merge.after_pointer", "prune.named"],
)
def test_a_worker_killed_around_the_store_loses_and_doubles_nothing(
    fault_run: FaultRun, server: S3Server, line: str
) -> None:
    stack = fault_run.stack
    fault_run.draw()
    if line == "prune.named":  # needs versions to prune
        stack.environment["KEEP_VERSIONS"] = "2"
    queue = "embed" if line.startswith("embed") else "index"
    stack.worker("index" if queue == "embed" else "embed")
    victim = stack.supervise(queue, **fault_run.armed(line))
    job_id = fault_run.enqueue()
    if line == "prune.named":
        for _ in range(2):
            fault_run.end(job_id)
            (stack.products / fault_run.good.pop()).unlink()
            job_id = fault_run.enqueue()
        fault_run.end(job_id)
        fault_run.wait_for_failpoint()
        (stack.products / fault_run.good.pop()).unlink()
        job_id = fault_run.enqueue()
    fault_run.wait_for_failpoint()
    fault_run.publishes(job_id)
    assert victim.restarts == 1
    store = ObjectStore(Address.parse(ADDRESS))
    versions = RemoteVersions(store, stack.folder / "looker")

    def leftovers() -> set[str]:
        """Return the builds that no version names."""
        named = {str(each.manifest["build"]) for each in versions.versions()}
        return {each.key.split("/")[1] for each in store.objects("builds/")} - named

    until(lambda: not leftovers(), "what the killed worker left is deleted")


@pytest.mark.fault(52, "kill -9 of a query worker in the middle of a fetch, then the store away")
@pytest.mark.short
def test_a_query_worker_killed_in_a_fetch_goes_on_and_serves_while_the_store_is_away(
    fault_run: FaultRun, server: S3Server
) -> None:
    stack = fault_run.stack
    fault_run.draw()
    stack.workers("embed", "index")
    job_id = fault_run.enqueue()
    fault_run.publishes(job_id)
    # A host of its own: without the copy of the index worker.
    elsewhere = {"DATA_DIR": str(stack.folder / "elsewhere")}
    image = stack.products / fault_run.good[0]
    victim = stack.supervise("query", **fault_run.armed("download"), **elsewhere)
    fault_run.wait_for_failpoint()
    assert stack.query(image)["matches"][0]["filename"] == fault_run.good[0]
    fault_run.recovered()
    assert victim.restarts == 1
    server.stop()
    assert stack.query(stack.products / fault_run.good[1])["index_version"] == "v0001"
