"""Workers of shards that die, freeze, run full, or do things twice; and the command that plans."""

from __future__ import annotations

import os
import resource
import signal
import subprocess

import pytest
from faults.fault_run import FaultRun
from live_stack import LiveStack, until
from postgres_server import emptied

SMALL = {"SHARD_SIZE": "20"}


def shard_files(stack: LiveStack, job_id: str) -> list[str]:
    folder = stack.data / "jobs" / job_id
    return sorted(str(file) for file in folder.glob("shard-*.npz"))


def attempts(stack: LiveStack, job_id: str) -> list[int]:
    with stack.jobs._database.transaction() as tx:
        rows = tx.rows("SELECT attempts FROM shards WHERE job_id = ? ORDER BY n", (job_id,))
    return [row["attempts"] for row in rows]


EMBED_LINES = {
    "embed.before_claim": "with a message in its hands, before it claims the shard",
    "image": "in the middle of a shard",
    "rename:shard": "with the shard's file written, not yet named",
    "embed.after_write": "after the shard's file, before the ledger",
    "embed.after_mark": "after the ledger, before the next message",
    "flow.before_send": "with shards marked as sent, before they are",
}


@pytest.mark.fault(1, "kill -9 of an embed worker at {line}")
@pytest.mark.short("image", "embed.after_write")
@pytest.mark.parametrize("line", EMBED_LINES)
def test_an_embed_worker_killed_at_any_line_loses_no_image(fault_run: FaultRun, line: str) -> None:
    fault_run.draw()
    at = f"image:{fault_run.rng.choice(fault_run.good)}" if line == "image" else line
    victims = [fault_run.stack.supervise("embed", **fault_run.armed(at)) for _ in range(2)]
    fault_run.stack.worker("index")
    job_id = fault_run.enqueue()
    fault_run.wait_for_failpoint()
    fault_run.publishes(job_id)
    assert sum(victim.restarts for victim in victims) == 1


@pytest.mark.fault(4, "a message lost between Redis and the worker")
def test_a_lost_message_is_sent_again(fault_run: FaultRun) -> None:
    fault_run.draw()
    job_id = fault_run.enqueue()
    lost = fault_run.rng.randrange(1, fault_run.stack.redis().llen("imgrec:embed") + 1)
    for _ in range(lost):
        assert fault_run.stack.redis().rpop("imgrec:embed")
    fault_run.hit()
    fault_run.stack.workers("embed", "index")
    fault_run.publishes(job_id)


@pytest.mark.fault(5, "every message delivered three times, to two workers at once")
@pytest.mark.short
def test_a_shard_delivered_three_times_counts_once(fault_run: FaultRun) -> None:
    fault_run.draw()
    job_id = fault_run.enqueue(SHARD_SIZE="5")
    queue = fault_run.stack.redis().lrange("imgrec:embed", 0, -1)
    copies = [*queue, *queue]
    fault_run.rng.shuffle(copies)
    fault_run.stack.redis().lpush("imgrec:embed", *copies)
    fault_run.hit()
    fault_run.stack.workers("embed", "embed", "index")
    fault_run.publishes(job_id)
    assert fault_run.stack.jobs.progress(job_id).embedded == len(fault_run.good)
    assert set(attempts(fault_run.stack, job_id)) == {1}
    until(lambda: fault_run.stack.redis().llen("imgrec:embed") == 0, "the copies are taken, too")


@pytest.mark.fault(6, "a shard that takes four leases, beside an idle worker")
def test_a_long_shard_keeps_its_lease_and_is_started_once(fault_run: FaultRun) -> None:
    fault_run.draw()
    slow = f"image:{fault_run.rng.choice(fault_run.good)}!sleep8"
    for _ in range(2):
        fault_run.stack.worker("embed", **fault_run.armed(slow))
    fault_run.stack.worker("index")
    job_id = fault_run.enqueue()
    fault_run.wait_for_failpoint()
    fault_run.publishes(job_id)
    assert set(attempts(fault_run.stack, job_id)) == {1}


@pytest.mark.fault(7, "SIGSTOP of an embed worker, SIGCONT after its shard was done by another")
def test_a_frozen_worker_loses_its_shard_and_does_no_harm_when_it_wakes(
    fault_run: FaultRun,
) -> None:
    fault_run.draw()
    line = fault_run.rng.choice(
        ["embed.after_write!stop", f"image:{fault_run.rng.choice(fault_run.good)}!stop"]
    )
    stack = fault_run.stack
    frozen = stack.worker("embed", **fault_run.armed(line))
    job_id = fault_run.enqueue()
    fault_run.wait_for_failpoint()
    stack.workers("embed", "index")
    fault_run.publishes(job_id)
    done = stack.answer("status", job_id)
    os.killpg(frozen.pid, signal.SIGCONT)
    late = ("another worker was first", "is no longer ours")
    until(
        lambda: any(words in stack.log("embed") for words in late),
        "the late worker sees that it was replaced",
    )
    assert stack.answer("status", job_id) == done
    fault_run.account(job_id)
    assert frozen.poll() is None


@pytest.mark.fault(17, "an image that ends its worker by {how}")
@pytest.mark.short("kill")
@pytest.mark.parametrize("how", ["kill", "segv"])
def test_a_poisonous_image_is_found_and_the_rest_of_its_shard_is_indexed(
    fault_run: FaultRun, how: str
) -> None:
    fault_run.draw()
    poison = fault_run.rng.choice(fault_run.good)
    switches = {"IMGREC_FAILPOINT": f"image:{poison}!{how}", "SHARD_MAX_ATTEMPTS": "1"}
    kept = [fault_run.stack.supervise("embed", **switches) for _ in range(2)]
    fault_run.stack.worker("index")
    fault_run.hit()
    job_id = fault_run.enqueue(SHARD_MAX_ATTEMPTS="1")
    fault_run.publishes(job_id, left_out={poison: "crashed the worker"})
    assert sum(each.restarts for each in kept) >= 2


@pytest.mark.fault(18, "a shard's file that is {how} before the merge")
@pytest.mark.short("another's")
@pytest.mark.parametrize("how", ["changed", "cut off", "deleted", "another's"])
def test_a_shard_file_that_rots_is_made_again(fault_run: FaultRun, how: str) -> None:
    fault_run.draw()
    stack = fault_run.stack
    stack.worker("embed")
    job_id = fault_run.enqueue(SHARD_SIZE="20")
    until(lambda: stack.jobs.ready_to_merge(job_id), "every shard is done")
    file, other = fault_run.rng.sample(shard_files(stack, job_id), 2)
    if how == "another's":  # whole, but not what the ledger counted
        os.unlink(file)
        os.link(other, file)
    with open(file, "rb+") as stream:
        size = stream.seek(0, os.SEEK_END)
        place = fault_run.rng.randrange(size)
        stream.seek(place)
        byte = stream.read(1)[0]
        stream.seek(place)
        if how == "changed":
            stream.write(bytes([byte ^ 1 << fault_run.rng.randrange(8)]))
        if how == "cut off":
            stream.truncate(place)
    if how == "deleted":
        os.unlink(file)
    fault_run.hit()
    stack.worker("index")
    fault_run.publishes(job_id)
    assert "doing them again" in stack.log("index")


@pytest.mark.fault(19, "a disk that is full while a shard is written")
def test_a_full_disk_under_a_shard_is_waited_for(fault_run: FaultRun) -> None:
    fault_run.draw()
    stack = fault_run.stack
    stack.worker("embed", **fault_run.armed("rename:shard!full"))
    stack.worker("index")
    job_id = fault_run.enqueue()
    fault_run.wait_for_failpoint()
    fault_run.publishes(job_id)
    assert "No space left on device" in stack.log("embed")
    # The shard was given back without blame.
    assert set(attempts(stack, job_id)) == {1}


@pytest.fixture
def server_ledger(stack: LiveStack, postgres: str) -> None:
    """The ledger in a PostgreSQL, where a full disk of the workers does not reach."""
    stack.environment["DATABASE_URL"] = emptied(postgres)


@pytest.mark.fault(19, "an embed worker whose disk takes no byte for a while")
def test_a_disk_that_takes_nothing_for_a_while_stops_no_rebuild(
    server_ledger: None, fault_run: FaultRun
) -> None:
    fault_run.draw(120)
    stack = fault_run.stack
    worker = stack.worker("embed", **SMALL, SHARD_MAX_ATTEMPTS="1")
    stack.worker("index")
    job_id = fault_run.enqueue(**SMALL)
    until(lambda: shard_files(stack, job_id), "the first shard is written")
    before = resource.prlimit(worker.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (1, before[1]))
    until(lambda: "cannot be written" in str(stack.jobs.get(job_id).error), "the ledger tells")
    waits = stack.imgrec("status", job_id)
    assert "Waiting: DATA_DIR" in waits.stderr
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, before)
    fault_run.hit()
    fault_run.publishes(job_id)
    assert stack.jobs.get(job_id).error is None
    assert worker.poll() is None


@pytest.mark.fault(19, "a folder of {which} that is another user's for a while")
@pytest.mark.short("shards")
@pytest.mark.parametrize("which", ["shards", "versions"])
def test_a_folder_of_another_user_is_waited_for(fault_run: FaultRun, which: str) -> None:
    fault_run.draw(120)
    stack = fault_run.stack
    for queue in ("embed", "index"):
        stack.worker(queue, bare=True, **SMALL, SHARD_MAX_ATTEMPTS="1")
    folder = stack.data / {"shards": "jobs", "versions": "faiss_index"}[which]
    folder.mkdir(parents=True)
    folder.chmod(0o555)
    job_id = fault_run.enqueue(**SMALL)
    until(lambda: "cannot be written" in str(stack.jobs.get(job_id).error), "the job table tells")
    reason = str(stack.jobs.get(job_id).error)
    assert f"(uid {os.geteuid()}) may not write to the folder {folder}" in reason
    assert "Waiting: DATA_DIR" in stack.imgrec("status", job_id).stderr
    folder.chmod(0o755)
    fault_run.hit()
    fault_run.publishes(job_id)
    assert stack.jobs.get(job_id).error is None


@pytest.mark.fault(20, "{name} to an embed worker in the middle of a shard")
@pytest.mark.short("SIGTERM")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGQUIT", "SIGINT twice"])
def test_a_worker_asked_to_end_gives_its_shard_back(fault_run: FaultRun, name: str) -> None:
    fault_run.draw(200)
    stack = fault_run.stack
    # A lease longer than the test's patience: after SIGTERM only giving back lets another go on.
    more = {"SHARD_SIZE": "200"} | ({"LEASE_S": "900"} if name == "SIGTERM" else {})
    leaving = stack.worker("embed", **more)
    job_id = fault_run.enqueue(**more)
    until(lambda: fault_run.state(job_id) == "running", "the worker has taken a shard")
    for _ in range(2 if name == "SIGINT twice" else 1):
        leaving.send_signal(getattr(signal, name.split()[0]))
    fault_run.hit()
    until(lambda: leaving.poll() is not None, "the worker ends")
    stack.worker("embed", **more)
    stack.worker("index", **more)
    fault_run.publishes(job_id)
    assert stack.redis().hlen("imgrec:unacked") == 0


@pytest.mark.fault(21, "a rebuild cancelled in the middle; the next does only the rest")
@pytest.mark.short
def test_a_cancelled_rebuild_stops_and_the_next_one_does_only_the_rest(fault_run: FaultRun) -> None:
    fault_run.draw(300)
    stack = fault_run.stack
    worker = stack.worker("embed", **SMALL, IMGREC_FAILPOINT="embed.after_claim!sleep0.5")
    stack.worker("index")
    job_id = fault_run.enqueue(**SMALL)
    wanted = fault_run.rng.randrange(1, 4)
    until(lambda: len(shard_files(stack, job_id)) >= wanted, "some shards are written")
    stack.answer("cancel", job_id)
    assert fault_run.state(job_id) == "cancelled"
    partial = stack.jobs.progress(job_id).embedded
    assert 0 < partial < 300
    assert not (stack.data / "faiss_index" / "CURRENT").exists()
    assert worker.poll() is None
    fault_run.hit()
    rest = fault_run.enqueue(**SMALL)
    fault_run.publishes(rest)
    progress = stack.jobs.progress(rest)
    assert progress.reused >= partial
    assert progress.embedded + progress.reused == 300


PLAN_LINES = {
    "plan.after_piece": "failed",
    "plan.before_finish": "failed",
    "plan.after_finish": "published",
    "flow.before_send": "published",
}


@pytest.mark.fault(26, "kill -9 of enqueue-rebuild at {line}")
@pytest.mark.short("plan.before_finish")
@pytest.mark.parametrize("line", PLAN_LINES)
def test_a_command_killed_while_it_plans_leaves_a_job_that_ends(
    fault_run: FaultRun, line: str
) -> None:
    fault_run.draw()
    stack = fault_run.stack
    stack.workers("embed", "index")
    done = stack.imgrec(
        "enqueue-rebuild", str(stack.products), LEASE_S="0.5", **fault_run.armed(line)
    )
    assert done.returncode == -signal.SIGKILL
    fault_run.hit()
    ((job, _),) = stack.jobs.list_with_progress()
    if PLAN_LINES[line] == "failed":
        # Half a plan is half a catalogue: it must never be published.
        ended = fault_run.end(job.id)
        assert (ended.state, ended.index_version) == ("failed", None)
        assert "run it again" in str(ended.error)
        assert not (stack.data / "faiss_index" / "CURRENT").exists()
        fault_run.publishes(fault_run.enqueue())
    else:
        fault_run.publishes(job.id)


@pytest.mark.fault(26, "kill -9 of enqueue-rebuild --wait while it waits")
def test_a_command_killed_while_it_waits_takes_nothing_with_it(fault_run: FaultRun) -> None:
    fault_run.draw()
    stack = fault_run.stack
    stack.workers("embed", "index")
    waiting = subprocess.Popen(
        ["imgrec", "enqueue-rebuild", str(stack.products), "--wait"],
        cwd=stack.folder,
        env=stack.env(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    stack.processes.append(waiting)
    (job,) = until(
        lambda: [job for job in stack.jobs.open_jobs() if job.state == "running"], "the job runs"
    )
    waiting.kill()
    fault_run.hit()
    fault_run.publishes(job.id)
