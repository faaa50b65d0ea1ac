"""`imgrec up --web` serves beside the workers, and ends with them."""

from __future__ import annotations

import json
from pathlib import Path

import urllib3
from live_stack import LiveStack, free_port, free_ports, until


def get(url: str) -> bytes:
    try:
        return bytes(urllib3.request("GET", url, retries=False, timeout=10).data)
    except urllib3.exceptions.HTTPError:
        return b""


def test_up_serves_the_api_and_each_workers_metrics(tmp_path: Path, model: Path) -> None:
    stack = LiveStack(tmp_path / "up", model)
    stack.folder.mkdir()
    port, metrics = free_port(), free_ports(3)
    stack.environment["METRICS_PORT"] = str(metrics)
    done = stack.imgrec("up", "--detach", "--web", "--port", str(port))
    try:
        assert done.returncode == 0, done.stderr
        url = f"http://127.0.0.1:{port}"
        until(lambda: get(f"{url}/healthz") == b'{"status":"ok"}', "it serves", 60)
        assert json.loads(get(f"{url}/readyz"))["missing"] == ["index"]
        for number in range(3):
            address = f"http://127.0.0.1:{metrics + number}/metrics"
            until(lambda a=address: b"imgrec_worker_" in get(a), "a worker serves metrics", 60)
    finally:
        assert stack.imgrec("down").returncode == 0
        stack.close()
    assert get(f"{url}/healthz") == b""
