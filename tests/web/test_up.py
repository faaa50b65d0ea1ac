"""`imgrec up --web` serves beside the workers, and ends with them."""

from __future__ import annotations

import json
import socket
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
    command = ("up", "--detach", "--web", "--port", str(port))
    with socket.create_server(("127.0.0.1", port)):
        refused = stack.imgrec(*command)
    assert refused.returncode == 2
    assert f"Start failed: Cannot listen on 127.0.0.1:{port}" in refused.stderr
    done = stack.imgrec(*command)
    try:
        assert done.returncode == 0, done.stderr
        url = f"http://127.0.0.1:{port}"
        assert get(f"{url}/healthz") == b'{"status":"ok"}'
        assert json.loads(get(f"{url}/readyz"))["missing"] == ["index"]
        for number in range(3):
            address = f"http://127.0.0.1:{metrics + number}/metrics"
            until(lambda a=address: b"imgrec_worker_" in get(a), "a worker serves metrics", 60)
    finally:
        assert stack.imgrec("down").returncode == 0
        stack.close()
    assert get(f"{url}/healthz") == b""
