"""A Milvus of a test's own: the server of the wheel `milvus`, which is no dependency.

It listens on all interfaces, so it is started only where loopback is the only one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest
from live_stack import free_port, until

PROGRAM = "IMGREC_TEST_MILVUS_SERVER"  # the path of milvus-server, in an environment of its own
PORTS = ("etcd", "root-coord", "proxy", "proxy-internal", "query-coord", "query-node")
PORTS += ("index-coord", "index-node", "data-coord", "data-node")
START_S = 180  # after a kill, it reads its log first


class Milvus:
    """One server as one process; its data stay for `start` after `kill`."""

    def __init__(self) -> None:
        program = os.environ.get(PROGRAM, "")
        if not program:
            pytest.skip(f"{PROGRAM} names no milvus-server")
        if [name for _, name in socket.if_nameindex() if name != "lo"]:
            pytest.skip("Milvus listens on all interfaces: run this test within unshare --net")
        self._program = program
        self._folder = Path(tempfile.mkdtemp(prefix="imgrec-milvus-"))
        self._ports = {name: free_port() for name in PORTS}
        self.port = self._ports["proxy"]
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        return f"milvus://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [self._program, "--data", str(self._folder / "data")]
        for name, port in self._ports.items():
            command += [f"--{name}-port", str(port)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self._folder, start_new_session=True
            )
        until(self._answers, "Milvus answers", START_S)

    def kill(self) -> None:
        """End the server with SIGKILL, as a power cut does."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _answers(self) -> bool:
        from pipeline.engines.milvus_server import MilvusServer
        from pipeline.errors import ImgrecError

        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "log").read_text()[-2000:]
        try:
            with MilvusServer(self.url, "").client() as client:
                client.list_collections(timeout=5)
        except ImgrecError:
            return False
        return True
