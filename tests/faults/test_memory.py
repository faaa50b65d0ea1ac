"""A worker below WORKER_MAX_MEMORY: pictures that want everything, leaks, limits that cannot do.

The limit is the kernel's: what is refused here is refused by it, in a real worker process.
"""

from __future__ import annotations

import pytest
from faults.fault_run import FaultRun
from live_stack import LiveStack, draw_folder, until

from pipeline.errors import ImageOutOfMemory
from pipeline.store.database import Database

# The tiny model takes 300 to 600 MiB, by the libraries that the CPU chooses.
LIMIT = {"WORKER_MAX_MEMORY": "1280MiB"}


@pytest.mark.fault(17, "an image that takes all memory, beside good ones")
@pytest.mark.short
def test_an_image_that_takes_all_memory_fails_alone(fault_run: FaultRun) -> None:
    fault_run.draw()
    glutton = fault_run.rng.choice(fault_run.good)
    stack = fault_run.stack
    worker = stack.worker("embed", IMGREC_FAILPOINT=f"image:{glutton}!memory", **LIMIT)
    stack.worker("index")
    fault_run.hit()
    job_id = fault_run.enqueue()
    fault_run.publishes(job_id, left_out={glutton: ImageOutOfMemory().reason})
    assert worker.poll() is None


@pytest.mark.fault(17, "an embed worker that leaks, {line}")
@pytest.mark.short("image")
@pytest.mark.parametrize("line", ["image", "embed.after_mark"])
def test_an_embed_worker_that_leaked_is_replaced_and_blames_no_image(
    fault_run: FaultRun, line: str
) -> None:
    fault_run.draw()
    at = f"image:{fault_run.rng.choice(fault_run.good)}" if line == "image" else line
    leaking = fault_run.stack.supervise("embed", **fault_run.armed(f"{at}!leak"), **LIMIT)
    fault_run.stack.worker("index")
    small = {"SHARD_SIZE": "5"}
    job_id = fault_run.enqueue(**small)
    fault_run.wait_for_failpoint()
    fault_run.publishes(job_id)
    until(lambda: leaking.restarts == 1, "the worker that leaked is replaced")
    assert "its limit WORKER_MAX_MEMORY is 1.2 GiB" in fault_run.stack.log("embed")


def test_a_query_worker_that_leaked_is_replaced(stack: LiveStack) -> None:
    names = draw_folder(stack.products, 8)
    stack.workers("embed", "index")
    stack.rebuild()
    once = stack.folder / "once"
    leaks = {
        "IMGREC_FAILPOINT": "query.before_answer!leak",
        "IMGREC_FAILPOINT_ONCE": str(once),
    }
    leaking = stack.supervise("query", **leaks, **LIMIT)
    until(lambda: " ready." in stack.log("query"), "the query worker is there")
    picture = stack.products / names[0]
    # The worker ends around its answer. A query that waits for the next one may give up before it
    # is there, if the machine is busy.
    until(lambda: stack.imgrec("query", str(picture), "--wait").returncode == 0, "an answer")
    assert once.exists()
    until(lambda: leaking.restarts == 1, "the worker that leaked is replaced")
    assert "WORKER_MAX_MEMORY" in stack.log("query")
    assert stack.query(picture)["matches"][0]["filename"] == names[0]


def test_a_limit_below_the_models_is_said_with_the_one_that_would_do(stack: LiveStack) -> None:
    draw_folder(stack.products, 4)
    job_id = stack.answer("enqueue-rebuild", str(stack.products))["job_id"]
    # It may end before the job does: it uses more than its limit, too.
    stack.supervise("embed", WORKER_MAX_MEMORY="256MiB")
    database = Database(stack.environment["DATABASE_URL"])

    def first_refusal_is_old() -> bool:  # workers that may still join are waited for
        with database.transaction() as tx:
            return bool(tx.rows("UPDATE refusals SET first_at = first_at - 60 RETURNING worker"))

    until(first_refusal_is_old, "the worker refuses")
    until(lambda: not stack.jobs.get(job_id).open, "the job ends")
    job = stack.jobs.get(job_id)
    assert job.state == "failed"
    assert "WORKER_MAX_MEMORY cannot be 256 MiB: set it to" in str(job.error)


def test_an_index_beyond_the_limit_is_refused_before_it_is_built(stack: LiveStack) -> None:
    names = draw_folder(stack.products, 4)
    stack.worker("embed")
    stack.worker("index", preloaded=False, WORKER_MAX_MEMORY="128MiB")
    job_id = stack.answer("enqueue-rebuild", str(stack.products))["job_id"]
    until(lambda: not stack.jobs.get(job_id).open, "the job ends")
    job = stack.jobs.get(job_id)
    assert job.state == "failed"
    assert "WORKER_MAX_MEMORY is 128 MiB: raise it for the worker on queue 'index'" in str(
        job.error
    )
    assert not (stack.data / "faiss_index" / "CURRENT").exists()
    stack.close()
    stack.start_redis()
    stack.workers("embed", "index")
    assert stack.rebuild()["state"] == "published"
    assert stack.indexed() == names
