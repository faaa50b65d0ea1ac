"""A worker below WORKER_MAX_MEMORY: pictures that want everything, leaks, limits that cannot do.

The limit is the kernel's: what is refused here is refused by it, in a real worker process.
"""

from __future__ import annotations

import pytest
from faults.fault_run import FaultRun
from live_stack import LiveStack, draw_folder, until

from pipeline.errors import ImageOutOfMemory

# The tiny model takes 300 to 600 MiB, by the libraries that the CPU chooses.
LIMIT = {"WORKER_MAX_MEMORY": "1280MiB"}


@pytest.mark.fault(17, "an image that takes all memory, beside good ones")
@pytest.mark.short
def test_an_image_that_takes_all_memory_fails_alone(trial: FaultRun) -> None:
    trial.draw()
    glutton = trial.dice.choice(trial.good)
    stand = trial.stand
    worker = stand.worker("embed", IMGREC_FAILPOINT=f"image:{glutton}!memory", **LIMIT)
    stand.worker("index")
    trial.hit()
    job_id = trial.enqueue()
    trial.publishes(job_id, left_out={glutton: ImageOutOfMemory().reason})
    assert worker.poll() is None


@pytest.mark.fault(17, "an embed worker that leaks, {line}")
@pytest.mark.short("image")
@pytest.mark.parametrize("line", ["image", "embed.after_mark"])
def test_an_embed_worker_that_leaked_is_replaced_and_blames_no_image(
    trial: FaultRun, line: str
) -> None:
    trial.draw()
    at = f"image:{trial.dice.choice(trial.good)}" if line == "image" else line
    leaking = trial.stand.keep("embed", **trial.armed(f"{at}!leak"), **LIMIT)
    trial.stand.worker("index")
    small = {"SHARD_SIZE": "5"}
    job_id = trial.enqueue(**small)
    trial.strikes()
    trial.publishes(job_id)
    until(lambda: leaking.deaths == 1, "the worker that leaked is replaced")
    assert "its limit WORKER_MAX_MEMORY is 1.2 GiB" in trial.stand.log("embed")


def test_a_query_worker_that_leaked_is_replaced(stand: LiveStack) -> None:
    names = draw_folder(stand.products, 8)
    stand.workers("embed", "index")
    stand.rebuild()
    once = stand.folder / "once"
    leaks = {
        "IMGREC_FAILPOINT": "query.before_answer!leak",
        "IMGREC_FAILPOINT_ONCE": str(once),
    }
    leaking = stand.keep("query", **leaks, **LIMIT)
    until(lambda: " ready." in stand.log("query"), "the query worker is there")
    picture = stand.products / names[0]
    # The worker ends around its answer. A query that waits for the next one may give up before it
    # is there, if the machine is busy.
    until(lambda: stand.imgrec("query", str(picture), "--wait").returncode == 0, "an answer")
    assert once.exists()
    until(lambda: leaking.deaths == 1, "the worker that leaked is replaced")
    assert "WORKER_MAX_MEMORY" in stand.log("query")
    assert stand.query(picture)["matches"][0]["filename"] == names[0]


def test_a_limit_below_the_models_is_said_with_the_one_that_would_do(stand: LiveStack) -> None:
    draw_folder(stand.products, 4)
    # It may end before the job does: it uses more than its limit, too.
    stand.keep("embed", preloaded=False, WORKER_MAX_MEMORY="256MiB")
    job_id = stand.answer("enqueue-rebuild", str(stand.products))["job_id"]
    until(lambda: not stand.jobs.get(job_id).open, "the job ends")
    job = stand.jobs.get(job_id)
    assert job.state == "failed"
    assert "WORKER_MAX_MEMORY cannot be 256 MiB: set it to" in str(job.error)


def test_an_index_beyond_the_limit_is_refused_before_it_is_built(stand: LiveStack) -> None:
    names = draw_folder(stand.products, 4)
    stand.worker("embed")
    stand.worker("index", preloaded=False, WORKER_MAX_MEMORY="128MiB")
    job_id = stand.answer("enqueue-rebuild", str(stand.products))["job_id"]
    until(lambda: not stand.jobs.get(job_id).open, "the job ends")
    job = stand.jobs.get(job_id)
    assert job.state == "failed"
    assert "WORKER_MAX_MEMORY is 128 MiB: raise it for the worker on queue 'index'" in str(
        job.error
    )
    assert not (stand.data / "faiss_index" / "CURRENT").exists()
    stand.close()
    stand.start_redis()
    stand.workers("embed", "index")
    assert stand.rebuild()["state"] == "published"
    assert stand.indexed() == names
