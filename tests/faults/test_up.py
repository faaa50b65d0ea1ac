"""`imgrec up` under fire: it starts again what dies, and leaves nothing behind."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path

import pytest
import redis
import urllib3
from live_stack import LiveStack, draw_folder, free_port, free_ports, until

pytestmark = pytest.mark.long


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


def get(url: str) -> bytes:
    try:
        return bytes(urllib3.request("GET", url, retries=False, timeout=10).data)
    except urllib3.exceptions.HTTPError:
        return b""


def test_up_starts_again_what_dies_isolates_a_poisonous_image_and_leaves_nothing_running(
    stack: LiveStack,
) -> None:
    """With --web it serves beside the workers, each of which serves its metrics."""
    good = draw_folder(stack.products, 24)
    poison = good[10]
    stack.kill_redis()  # `up` brings its own, here on a socket
    url = f"unix://{stack.folder}/run/r.sock?db=1"
    stack.environment["REDIS_URL"] = url
    switches = {"IMGREC_FAILPOINT": f"image:{poison}", "SHARD_MAX_ATTEMPTS": "1"}
    port, metrics = free_port(), free_ports(3)
    stack.environment["METRICS_PORT"] = str(metrics)
    command = ("up", "--detach", "--web", "--port", str(port))
    with socket.create_server(("127.0.0.1", port)):
        refused = stack.imgrec(*command)
    assert refused.returncode == 2
    assert f"Start failed: Cannot listen on 127.0.0.1:{port}" in refused.stderr
    assert not processes_below(stack.data)
    try:
        done = stack.imgrec(*command, **switches)
        assert done.returncode == 0, done.stderr
        assert f"The page: http://127.0.0.1:{port}\n" in done.stderr
        assert get(f"http://127.0.0.1:{port}/healthz") == b'{"status":"ok"}'
        assert json.loads(get(f"http://127.0.0.1:{port}/readyz"))["missing"] == ["index"]
        for number in range(3):
            address = f"http://127.0.0.1:{metrics + number}/metrics"
            until(lambda a=address: b"imgrec_worker_" in get(a), "a worker serves metrics", 60)
        second = stack.imgrec("up", "--detach")
        assert second.returncode == 2
        assert "is already running" in second.stderr
        result = stack.rebuild(**switches)
        assert (result["state"], result["skipped"]) == ("published", 1)
        # What had been embedded before the worker died came back from the cache.
        assert result["embedded"] + result["reused"] == 23
        assert stack.indexed() == [name for name in good if name != poison]
        assert stack.failures(str(result["job_id"]))[poison][0] == "crash"
        assert stack.query(stack.products / good[0])["matches"][0]["filename"] == good[0]
        assert "killed by SIGKILL" in (stack.data / "run" / "up.log").read_text()
    finally:
        stopped = stack.imgrec("down")
    assert stopped.returncode == 0, stopped.stderr
    until(lambda: not processes_below(stack.data), "nothing is left running", 10)
    assert get(f"http://127.0.0.1:{port}/healthz") == b""
    with pytest.raises(redis.ConnectionError):
        redis.Redis.from_url(url).ping()


def test_up_killed_with_9_takes_its_children_with_it(stack: LiveStack) -> None:
    stack.kill_redis()
    supervisor = subprocess.Popen(
        ["imgrec", "up"],
        cwd=stack.folder,
        env=stack.env(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    stack.processes.append(supervisor)
    # The server writes its title over its environment: it is known by its answers.
    until(lambda: len(processes_below(stack.data)) == 4, "the supervisor and three workers run")
    until(stack._redis_answers, "Redis runs")
    supervisor.kill()
    until(lambda: not processes_below(stack.data), "the workers have ended")
    until(lambda: not stack._redis_answers(), "Redis has ended")
