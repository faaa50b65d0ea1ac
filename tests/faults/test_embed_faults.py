"""Workers of shards that die, freeze, run full, or do things twice; and the command that plans."""

from __future__ import annotations

import os
import resource
import signal
import subprocess

import psycopg
import pytest
from faults.fault_run import FaultRun
from live_stack import LiveStack, until

SMALL = {"SHARD_SIZE": "20"}


def shard_files(stand: LiveStack, job_id: str) -> list[str]:
    folder = stand.data / "jobs" / job_id
    return sorted(str(file) for file in folder.glob("shard-*.npz"))


def attempts(stand: LiveStack, job_id: str) -> list[int]:
    with stand.jobs._database.transaction() as tx:
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
def test_an_embed_worker_killed_at_any_line_loses_no_image(trial: FaultRun, line: str) -> None:
    trial.draw()
    at = f"image:{trial.dice.choice(trial.good)}" if line == "image" else line
    victims = [trial.stand.keep("embed", **trial.armed(at)) for _ in range(2)]
    trial.stand.worker("index")
    job_id = trial.enqueue()
    trial.strikes()
    trial.publishes(job_id)
    assert sum(victim.deaths for victim in victims) == 1


@pytest.mark.fault(4, "a message lost between Redis and the worker")
def test_a_lost_message_is_sent_again(trial: FaultRun) -> None:
    trial.draw()
    job_id = trial.enqueue()
    lost = trial.dice.randrange(1, trial.stand.redis().llen("imgrec:embed") + 1)
    for _ in range(lost):
        assert trial.stand.redis().rpop("imgrec:embed")
    trial.hit()
    trial.stand.workers("embed", "index")
    trial.publishes(job_id)


@pytest.mark.fault(5, "every message delivered three times, to two workers at once")
@pytest.mark.short
def test_a_shard_delivered_three_times_counts_once(trial: FaultRun) -> None:
    trial.draw()
    job_id = trial.enqueue(SHARD_SIZE="5")
    queue = trial.stand.redis().lrange("imgrec:embed", 0, -1)
    copies = [*queue, *queue]
    trial.dice.shuffle(copies)
    trial.stand.redis().lpush("imgrec:embed", *copies)
    trial.hit()
    trial.stand.workers("embed", "embed", "index")
    trial.publishes(job_id)
    assert trial.stand.jobs.progress(job_id).embedded == len(trial.good)
    assert set(attempts(trial.stand, job_id)) == {1}
    until(lambda: trial.stand.redis().llen("imgrec:embed") == 0, "the copies are taken, too")


@pytest.mark.fault(6, "a shard that takes four leases, beside an idle worker")
def test_a_long_shard_keeps_its_lease_and_is_started_once(trial: FaultRun) -> None:
    trial.draw()
    slow = f"image:{trial.dice.choice(trial.good)}!sleep8"
    for _ in range(2):
        trial.stand.worker("embed", **trial.armed(slow))
    trial.stand.worker("index")
    job_id = trial.enqueue()
    trial.strikes()
    trial.publishes(job_id)
    assert set(attempts(trial.stand, job_id)) == {1}


@pytest.mark.fault(7, "SIGSTOP of an embed worker, SIGCONT after its shard was done by another")
def test_a_frozen_worker_loses_its_shard_and_does_no_harm_when_it_wakes(trial: FaultRun) -> None:
    trial.draw()
    line = trial.dice.choice(
        ["embed.after_write!stop", f"image:{trial.dice.choice(trial.good)}!stop"]
    )
    stand = trial.stand
    frozen = stand.worker("embed", **trial.armed(line))
    job_id = trial.enqueue()
    trial.strikes()
    stand.workers("embed", "index")
    trial.publishes(job_id)
    done = stand.answer("status", job_id)
    os.killpg(frozen.pid, signal.SIGCONT)
    late = ("another worker was first", "is no longer ours")
    until(
        lambda: any(words in stand.log("embed") for words in late),
        "the late worker sees that it was replaced",
    )
    assert stand.answer("status", job_id) == done
    trial.account(job_id)
    assert frozen.poll() is None


@pytest.mark.fault(17, "an image that ends its worker by {how}")
@pytest.mark.short("kill")
@pytest.mark.parametrize("how", ["kill", "segv"])
def test_a_poisonous_image_is_found_and_the_rest_of_its_shard_is_indexed(
    trial: FaultRun, how: str
) -> None:
    trial.draw()
    poison = trial.dice.choice(trial.good)
    switches = {"IMGREC_FAILPOINT": f"image:{poison}!{how}", "SHARD_MAX_ATTEMPTS": "1"}
    kept = [trial.stand.keep("embed", **switches) for _ in range(2)]
    trial.stand.worker("index")
    trial.hit()
    job_id = trial.enqueue(SHARD_MAX_ATTEMPTS="1")
    trial.publishes(job_id, left_out={poison: "crashed the worker"})
    assert sum(each.deaths for each in kept) >= 2


@pytest.mark.fault(18, "a shard's file that is {how} before the merge")
@pytest.mark.short("another's")
@pytest.mark.parametrize("how", ["changed", "cut off", "deleted", "another's"])
def test_a_shard_file_that_rots_is_made_again(trial: FaultRun, how: str) -> None:
    trial.draw()
    stand = trial.stand
    stand.worker("embed")
    job_id = trial.enqueue(SHARD_SIZE="20")
    until(lambda: stand.jobs.ready_to_merge(job_id), "every shard is done")
    file, other = trial.dice.sample(shard_files(stand, job_id), 2)
    if how == "another's":  # whole, but not what the ledger counted
        os.unlink(file)
        os.link(other, file)
    with open(file, "rb+") as stream:
        size = stream.seek(0, os.SEEK_END)
        place = trial.dice.randrange(size)
        stream.seek(place)
        byte = stream.read(1)[0]
        stream.seek(place)
        if how == "changed":
            stream.write(bytes([byte ^ 1 << trial.dice.randrange(8)]))
        if how == "cut off":
            stream.truncate(place)
    if how == "deleted":
        os.unlink(file)
    trial.hit()
    stand.worker("index")
    trial.publishes(job_id)
    assert "doing it again" in stand.log("index")


@pytest.mark.fault(19, "a disk that is full while a shard is written")
def test_a_full_disk_under_a_shard_is_waited_for(trial: FaultRun) -> None:
    trial.draw()
    stand = trial.stand
    stand.worker("embed", **trial.armed("rename:shard!full"))
    stand.worker("index")
    job_id = trial.enqueue()
    trial.strikes()
    trial.publishes(job_id)
    assert "No space left on device" in stand.log("embed")
    # The shard was given back without blame.
    assert set(attempts(stand, job_id)) == {1}


@pytest.fixture
def server_ledger(stand: LiveStack, postgres: str) -> None:
    """The ledger in a PostgreSQL, where a full disk of the workers does not reach."""
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    stand.environment["DATABASE_URL"] = postgres


@pytest.mark.fault(19, "an embed worker whose disk takes no byte for a while")
def test_a_disk_that_takes_nothing_for_a_while_stops_no_rebuild(
    server_ledger: None, trial: FaultRun
) -> None:
    trial.draw(120)
    stand = trial.stand
    worker = stand.worker("embed", **SMALL, SHARD_MAX_ATTEMPTS="1")
    stand.worker("index")
    job_id = trial.enqueue(**SMALL)
    until(lambda: shard_files(stand, job_id), "the first shard is written")
    before = resource.prlimit(worker.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (1, before[1]))
    until(lambda: "cannot be written" in str(stand.jobs.get(job_id).error), "the ledger tells")
    waits = stand.imgrec("status", job_id)
    assert "Waiting: DATA_DIR" in waits.stderr
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, before)
    trial.hit()
    trial.publishes(job_id)
    assert stand.jobs.get(job_id).error is None
    assert worker.poll() is None


@pytest.mark.fault(19, "a folder of {which} that is another user's for a while")
@pytest.mark.short("shards")
@pytest.mark.parametrize("which", ["shards", "versions"])
def test_a_folder_of_another_user_is_waited_for(trial: FaultRun, which: str) -> None:
    trial.draw(120)
    stand = trial.stand
    for queue in ("embed", "index"):
        stand.bare_worker(queue, **SMALL, SHARD_MAX_ATTEMPTS="1")
    folder = stand.data / {"shards": "jobs", "versions": "faiss_index"}[which]
    folder.mkdir(parents=True)
    folder.chmod(0o555)
    job_id = trial.enqueue(**SMALL)
    until(lambda: "cannot be written" in str(stand.jobs.get(job_id).error), "the job table tells")
    reason = str(stand.jobs.get(job_id).error)
    assert f"(uid {os.geteuid()}) may not write to the folder {folder}" in reason
    assert "Waiting: DATA_DIR" in stand.imgrec("status", job_id).stderr
    folder.chmod(0o755)
    trial.hit()
    trial.publishes(job_id)
    assert stand.jobs.get(job_id).error is None


@pytest.mark.fault(20, "{name} to an embed worker in the middle of a shard")
@pytest.mark.short("SIGTERM")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGQUIT", "SIGINT twice"])
def test_a_worker_asked_to_end_gives_its_shard_back(trial: FaultRun, name: str) -> None:
    trial.draw(200)
    stand = trial.stand
    # A lease longer than the test's patience: after SIGTERM only giving back lets another go on.
    more = {"SHARD_SIZE": "200"} | ({"LEASE_S": "900"} if name == "SIGTERM" else {})
    leaving = stand.worker("embed", **more)
    job_id = trial.enqueue(**more)
    until(lambda: trial.state(job_id) == "running", "the worker has taken a shard")
    for _ in range(2 if name == "SIGINT twice" else 1):
        leaving.send_signal(getattr(signal, name.split()[0]))
    trial.hit()
    until(lambda: leaving.poll() is not None, "the worker ends")
    stand.worker("embed", **more)
    stand.worker("index", **more)
    trial.publishes(job_id)
    assert stand.redis().hlen("imgrec:unacked") == 0


@pytest.mark.fault(21, "a rebuild cancelled in the middle; the next does only the rest")
@pytest.mark.short
def test_a_cancelled_rebuild_stops_and_the_next_one_does_only_the_rest(trial: FaultRun) -> None:
    trial.draw(300)
    stand = trial.stand
    worker = stand.worker("embed", **SMALL, IMGREC_FAILPOINT="embed.after_claim!sleep0.5")
    stand.worker("index")
    job_id = trial.enqueue(**SMALL)
    wanted = trial.dice.randrange(1, 4)
    until(lambda: len(shard_files(stand, job_id)) >= wanted, "some shards are written")
    stand.answer("cancel", job_id)
    assert trial.state(job_id) == "cancelled"
    partial = stand.jobs.progress(job_id).embedded
    assert 0 < partial < 300
    assert not (stand.data / "faiss_index" / "CURRENT").exists()
    assert worker.poll() is None
    trial.hit()
    rest = trial.enqueue(**SMALL)
    trial.publishes(rest)
    progress = stand.jobs.progress(rest)
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
def test_a_command_killed_while_it_plans_leaves_a_job_that_ends(trial: FaultRun, line: str) -> None:
    trial.draw()
    stand = trial.stand
    stand.workers("embed", "index")
    done = stand.imgrec("enqueue-rebuild", str(stand.products), LEASE_S="0.5", **trial.armed(line))
    assert done.returncode == -signal.SIGKILL
    trial.hit()
    ((job, _),) = stand.jobs.list_with_progress()
    if PLAN_LINES[line] == "failed":
        # Half a plan is half a catalogue: it must never be published.
        ended = trial.end(job.id)
        assert (ended.state, ended.index_version) == ("failed", None)
        assert "run it again" in str(ended.error)
        assert not (stand.data / "faiss_index" / "CURRENT").exists()
        trial.publishes(trial.enqueue())
    else:
        trial.publishes(job.id)


@pytest.mark.fault(26, "kill -9 of enqueue-rebuild --wait while it waits")
def test_a_command_killed_while_it_waits_takes_nothing_with_it(trial: FaultRun) -> None:
    trial.draw()
    stand = trial.stand
    stand.workers("embed", "index")
    waiting = subprocess.Popen(
        ["imgrec", "enqueue-rebuild", str(stand.products), "--wait"],
        cwd=stand.folder,
        env=stand.env(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    stand.processes.append(waiting)
    (job,) = until(
        lambda: [job for job in stand.jobs.open_jobs() if job.state == "running"], "the job runs"
    )
    waiting.kill()
    trial.hit()
    trial.publishes(job.id)
