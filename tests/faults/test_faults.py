"""Nothing is lost and nothing is doubled, whatever is killed, frozen, wiped or sent twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from stand import Stand, draw_folder, draw_product, until


def job_state(stand: Stand, job_id: str) -> str:
    state: str = stand.answer("status", job_id)["state"]
    return state


def shard_files(stand: Stand, job_id: str) -> list[Path]:
    return sorted((stand.data / "jobs" / job_id).glob("shard-*.npz"))


def enqueue(stand: Stand, **more: str) -> str:
    job_id: str = stand.answer("enqueue-rebuild", str(stand.products), **more)["job_id"]
    return job_id


def finish(stand: Stand, job_id: str) -> dict[str, object]:
    return stand.answer("status", job_id, "--wait", "--timeout", "100")


@pytest.mark.parametrize("line", ["embed.after_claim", "embed.after_write", "embed.after_mark"])
def test_an_embed_worker_killed_at_any_line_loses_no_image(stand: Stand, line: str) -> None:
    good = draw_folder(stand.products, 40)
    once = stand.folder / "once"
    armed = {"IMGREC_FAILPOINT": line, "IMGREC_FAILPOINT_ONCE": str(once)}
    victims = [stand.worker("embed", **armed), stand.worker("embed", **armed)]
    stand.worker("index")
    done = finish(stand, enqueue(stand))
    assert once.exists(), "the line was never reached"
    assert sum(victim.poll() == -signal.SIGKILL for victim in victims) == 1
    assert done["state"] == "published"
    assert stand.indexed() == good


@pytest.mark.parametrize(
    "line", ["merge.before_commit", "merge.before_pointer", "merge.after_pointer"]
)
def test_an_indexer_killed_at_any_line_publishes_once_and_readers_never_see_a_half(
    stand: Stand, line: str
) -> None:
    draw_folder(stand.products, 20)
    stand.worker("embed")
    before = stand.worker("index")
    first = stand.rebuild()
    os.killpg(before.pid, signal.SIGKILL)
    before.wait()
    draw_product(stand.products / "kind0" / "new.jpg", seed=500)
    once = stand.folder / "once"
    victim = stand.worker("index", IMGREC_FAILPOINT=line, IMGREC_FAILPOINT_ONCE=str(once))
    job_id = enqueue(stand)
    until(lambda: victim.poll() is not None, "the indexer dies")
    current = (stand.data / "faiss_index" / "CURRENT").read_text().strip()
    assert current == ("v0002" if line == "merge.after_pointer" else first["index_version"])
    stand.worker("index")
    done = finish(stand, job_id)
    assert (done["state"], done["index_version"]) == ("published", "v0002")
    versions = sorted(child.name for child in (stand.data / "faiss_index").glob("v*"))
    assert versions == ["v0001", "v0002"]
    assert not list((stand.data / "faiss_index").glob(".build-*"))
    assert "kind0/new.jpg" in stand.indexed()


def test_a_redis_that_restarts_empty_stops_no_rebuild(stand: Stand) -> None:
    good = draw_folder(stand.products, 60)
    job_id = enqueue(stand)
    assert stand.redis().llen("imgrec:embed") > 0
    stand.redis().flushall()
    assert stand.redis().llen("imgrec:embed") == 0
    stand.workers("embed", "index")
    assert finish(stand, job_id)["state"] == "published"
    assert stand.indexed() == good


def test_a_redis_killed_within_a_shard_is_outlived_by_its_workers(stand: Stand) -> None:
    good = draw_folder(stand.products, 400)
    workers = [stand.worker("embed", SHARD_SIZE="20"), stand.worker("index")]
    job_id = enqueue(stand, SHARD_SIZE="20")
    until(lambda: shard_files(stand, job_id), "the first shard is written")
    stand.kill_redis()
    assert len(shard_files(stand, job_id)) < 20
    stand.start_redis()
    assert finish(stand, job_id)["state"] == "published"
    assert stand.indexed() == good
    assert [worker.poll() for worker in workers] == [None, None]


def test_a_shard_delivered_three_times_counts_once(stand: Stand) -> None:
    good = draw_folder(stand.products, 30)
    job_id = enqueue(stand)
    queue = stand.redis().lrange("imgrec:embed", 0, -1)
    stand.redis().lpush("imgrec:embed", *queue, *queue)
    stand.workers("embed", "embed", "index")
    done = finish(stand, job_id)
    assert (done["embedded"], done["images"]) == (30, 30)
    assert stand.indexed() == good
    until(lambda: stand.redis().llen("imgrec:embed") == 0, "the copies are taken, too")


def test_a_frozen_worker_loses_its_shard_and_does_no_harm_when_it_wakes(stand: Stand) -> None:
    good = draw_folder(stand.products, 30)
    once = stand.folder / "once"
    frozen = stand.worker(
        "embed", IMGREC_FAILPOINT="embed.after_write:stop", IMGREC_FAILPOINT_ONCE=str(once)
    )
    job_id = enqueue(stand)
    until(once.exists, "the worker freezes with a shard in its hands")
    stand.workers("embed", "index")
    done = finish(stand, job_id)
    assert stand.indexed() == good
    os.killpg(frozen.pid, signal.SIGCONT)
    until(
        lambda: "another worker was first" in stand.log("embed") or frozen.poll() is not None,
        "the late worker sees that it was replaced",
    )
    assert stand.answer("status", job_id) == {**done, "seconds": done["seconds"]}
    assert stand.indexed() == good


def test_a_shard_file_that_rots_is_made_again(stand: Stand) -> None:
    good = draw_folder(stand.products, 30)
    stand.worker("embed")
    job_id = enqueue(stand)
    until(
        lambda: stand.imgrec("status", job_id).stdout and len(shard_files(stand, job_id)) == 2,
        "both shards are written",
    )
    broken = shard_files(stand, job_id)[0]
    data = bytearray(broken.read_bytes())
    data[len(data) // 2] ^= 1
    broken.write_bytes(data)
    stand.worker("index")
    assert finish(stand, job_id)["state"] == "published"
    assert stand.indexed() == good
    assert "doing it again" in stand.log("index")


def test_a_cancelled_rebuild_stops_and_the_next_one_does_only_the_rest(stand: Stand) -> None:
    good = draw_folder(stand.products, 300)
    worker = stand.worker("embed", SHARD_SIZE="20")
    stand.worker("index")
    job_id = enqueue(stand, SHARD_SIZE="20")
    until(lambda: shard_files(stand, job_id), "the first shard is written")
    stand.answer("cancel", job_id)
    assert job_state(stand, job_id) == "cancelled"
    partial = stand.answer("status", job_id)["embedded"]
    assert 0 < partial < 300
    assert not (stand.data / "faiss_index" / "CURRENT").exists()
    assert worker.poll() is None
    rest = stand.rebuild(SHARD_SIZE="20")
    assert rest["reused"] >= partial
    assert rest["embedded"] + rest["reused"] == 300
    assert stand.indexed() == good


def test_a_worker_asked_to_end_gives_its_shard_back_at_once(stand: Stand) -> None:
    good = draw_folder(stand.products, 200)
    # A lease longer than the test's patience: only giving back lets another worker go on.
    patient = {"LEASE_S": "1000", "SHARD_SIZE": "200"}
    leaving = stand.worker("embed", **patient)
    job_id = enqueue(stand, **patient)
    until(
        lambda: "running" in stand.imgrec("status", job_id).stdout, "the worker has taken a shard"
    )
    leaving.send_signal(signal.SIGTERM)
    until(lambda: leaving.poll() is not None, "the worker ends")
    stand.worker("embed", **patient)
    stand.worker("index", **patient)
    assert finish(stand, job_id)["state"] == "published"
    assert stand.indexed() == good


def test_a_query_lost_with_its_worker_is_answered_by_another(stand: Stand) -> None:
    names = draw_folder(stand.products, 12)
    stand.workers("embed", "index")
    stand.rebuild()
    once = stand.folder / "once"
    armed = {"IMGREC_FAILPOINT": "query.start", "IMGREC_FAILPOINT_ONCE": str(once)}
    victims = [stand.worker("query", **armed), stand.worker("query", **armed)]
    answer = stand.query(stand.products / names[3])
    assert answer["matches"][0]["filename"] == names[3]
    assert sum(victim.poll() == -signal.SIGKILL for victim in victims) == 1


def test_no_redis_is_exit_code_4_and_nothing_is_planned(stand: Stand) -> None:
    draw_folder(stand.products, 3)
    stand.kill_redis()
    for command in (["enqueue-rebuild", str(stand.products)], ["query", "products/kind0"]):
        if command[0] == "query":
            command[1] = str(next(stand.products.rglob("*.jpg")))
        done = stand.imgrec(*command, "--wait")
        assert done.returncode == 4
        assert done.stderr.startswith("Error: Redis does not answer at")
        assert "Traceback" not in done.stderr
    assert stand.answer("jobs") == {"jobs": []}


def test_a_pickled_message_is_refused_and_the_worker_lives(stand: Stand) -> None:
    names = draw_folder(stand.products, 6)
    stand.workers("embed", "index")
    query = stand.worker("query")
    stand.rebuild()
    trap = stand.folder / "trap"
    evil = Celery(broker=stand.environment["REDIS_URL"])
    evil.conf.update(
        task_serializer="pickle",
        accept_content=["pickle"],
        broker_transport_options={"global_keyprefix": "imgrec:"},
    )
    evil.send_task("imgrec.query_image", args=(_Trap(str(trap)), 3), queue="query")
    answer = stand.query(stand.products / names[0])
    assert answer["matches"][0]["filename"] == names[0]
    assert query.poll() is None
    assert not trap.exists()
    until(lambda: "Refusing to deserialize" in stand.log("query"), "the refusal is logged", 20)


class _Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, file: str) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.file, "w")


def processes_below(folder: Path) -> list[int]:
    """Return the processes whose environment names this test's folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"DATA_DIR={folder}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_up_starts_again_what_dies_isolates_a_poisonous_image_and_leaves_nothing_running(
    stand: Stand,
) -> None:
    good = draw_folder(stand.products, 24)
    poison = good[10]
    stand.kill_redis()  # `up` brings its own
    switches = {"IMGREC_FAILPOINT": f"image:{poison}", "MAX_ATTEMPTS": "1"}
    try:
        done = stand.imgrec("up", "--detach", **switches)
        assert done.returncode == 0, done.stderr
        second = stand.imgrec("up", "--detach")
        assert second.returncode == 2
        assert "already runs" in second.stderr
        result = stand.rebuild(**switches)
        assert (result["state"], result["skipped"]) == ("published", 1)
        # What had been embedded before the worker died came back from the cache.
        assert result["embedded"] + result["reused"] == 23
        assert stand.indexed() == [name for name in good if name != poison]
        assert stand.failures(str(result["job_id"]))[poison][0] == "crash"
        assert "killed by SIGKILL" in (stand.data / "run" / "up.log").read_text()
    finally:
        stopped = stand.imgrec("down")
    assert stopped.returncode == 0, stopped.stderr
    until(lambda: not processes_below(stand.data), "nothing is left running", 10)
    assert not stand._redis_answers()


def test_up_killed_with_9_takes_its_children_with_it(stand: Stand) -> None:
    stand.kill_redis()
    supervisor = subprocess.Popen(
        ["imgrec", "up"],
        cwd=stand.folder,
        env=stand.env(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    stand.processes.append(supervisor)
    # The server writes its title over its environment: it is known by its answers.
    until(lambda: len(processes_below(stand.data)) == 4, "the supervisor and three workers run")
    until(stand._redis_answers, "Redis runs")
    supervisor.kill()
    until(lambda: not processes_below(stand.data), "the workers have ended")
    until(lambda: not stand._redis_answers(), "Redis has ended")


def test_a_full_redis_says_so_and_the_job_goes_on_when_there_is_room(stand: Stand) -> None:
    good = draw_folder(stand.products, 40)
    stand.workers("embed", "index")
    until(lambda: stand.imgrec("health", "index").returncode == 0, "the index worker runs")
    stand.redis().set("ballast", b"x" * 3_000_000)
    stand.redis().config_set("maxmemory", "2mb")
    done = stand.imgrec("enqueue-rebuild", str(stand.products))
    assert done.returncode == 4
    assert "is full and takes no message" in done.stderr
    assert "Traceback" not in done.stderr
    (job,) = stand.answer("jobs")["jobs"]
    assert job["state"] == "planned"
    stand.redis().config_set("maxmemory", "0")
    # Nobody sends it again by hand: the reconciler of the index worker does.
    until(lambda: job_state(stand, job["job_id"]) == "published", "the job ends by itself")
    assert stand.indexed() == good


def test_a_merge_sent_three_times_to_two_indexers_publishes_once(stand: Stand) -> None:
    good = draw_folder(stand.products, 30)
    stand.worker("embed")
    job_id = enqueue(stand)
    until(lambda: stand.answer("status", job_id)["embedded"] == 30, "every shard is done")
    app = Celery(broker=stand.environment["REDIS_URL"])
    app.conf.update(broker_transport_options={"global_keyprefix": "imgrec:"})
    for _ in range(3):
        app.send_task("imgrec.merge_shards", args=(job_id,), queue="index", ignore_result=True)
    stand.workers("index", "index")
    assert finish(stand, job_id)["index_version"] == "v0001"
    until(lambda: stand.redis().llen("imgrec:index") == 0, "every message is taken")
    assert stand.indexed() == good
    versions = sorted(child.name for child in (stand.data / "faiss_index").glob("v*"))
    assert versions == ["v0001"]


def test_workers_that_start_before_redis_wait_for_it(stand: Stand) -> None:
    good = draw_folder(stand.products, 12)
    stand.kill_redis()
    workers = [stand.worker("embed"), stand.worker("index")]
    until(lambda: "Trying again" in stand.log("embed"), "the worker looks for Redis")
    stand.start_redis()
    assert stand.rebuild()["state"] == "published"
    assert stand.indexed() == good
    assert [worker.poll() for worker in workers] == [None, None]


def test_mutated_messages_are_answered_by_errors_and_no_worker_ends(stand: Stand) -> None:
    names = draw_folder(stand.products, 6)
    workers = [stand.worker(queue) for queue in ("embed", "index", "query")]
    stand.rebuild()
    app = Celery(broker=stand.environment["REDIS_URL"], backend=stand.environment["REDIS_URL"])
    prefix = {"global_keyprefix": "imgrec:"}
    app.conf.update(broker_transport_options=prefix, result_backend_transport_options=prefix)
    dice = random.Random(5)
    junk: list[Any] = [None, True, -1, 10**30, 0.5, "", "x" * 5000, "../../etc/passwd", [], {}]
    junk += [["a"] * 50, {"top_k": 5}, {"where": "a=b"}, {"where": [1]}, {"text": ["x"]}, "\0"]
    junk += [{"weight": "heavy"}, {"unheard": 1}, {"product": "../x"}, {"min_score": "high"}]
    tasks = {
        "imgrec.query_image": "query",
        "imgrec.classify_image": "query",
        "imgrec.pictures": "query",
        "imgrec.embed_shard": "embed",
        "imgrec.merge_shards": "index",
        "imgrec.nobody_knows_this": "query",
    }
    picture = (stand.products / names[0]).read_bytes()
    for number in range(300):
        task = dice.choice(list(tasks))
        args = [dice.choice([*junk, picture]) for _ in range(dice.randrange(4))]
        kwargs = {dice.choice(["data", "x"]): dice.choice(junk)} if dice.random() < 0.2 else {}
        if _unsendable(args, kwargs):
            continue
        kind = "msgpack" if number % 2 or picture in args else "json"
        app.send_task(task, args=args, kwargs=kwargs, queue=tasks[task], serializer=kind)
    answer = stand.query(stand.products / names[3])
    assert answer["matches"][0]["filename"] == names[3]
    draw_product(stand.products / "kind0" / "new.jpg", seed=901)
    assert stand.rebuild()["state"] == "published"
    assert [worker.poll() for worker in workers] == [None, None, None]


def _unsendable(args: list[Any], kwargs: dict[str, Any]) -> bool:
    """Tell what no serializer takes, so that nobody could send it."""
    return any(isinstance(each, int) and each > 2**63 for each in [*args, *kwargs.values()])
