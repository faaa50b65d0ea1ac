"""Hosts of a test's own: network namespaces on one bridge, each with a folder that no other sees.

The program and its model are all that they share. This process is on the bridge, too, as whoever
looks on.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from live_stack import BIN, FAILPOINTS, PATIENCE_S, ROOT

NETWORK = "198.18.77"  # of 198.18.0.0/15, which RFC 2544 sets apart for tests
BRIDGE = "imgrec-br"  # at most 15 characters


class Host:
    """One namespace; its commands and workers see its own folder only."""

    def __init__(self, network: Network, number: int) -> None:
        self.address = f"{NETWORK}.{number}"
        self.namespace = f"imgrec-{os.getpid()}-{number}"
        self.folder = network.folder / f"host{number}"
        self.folder.mkdir()
        self.environment: dict[str, str] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._network = network

    @property
    def launcher(self) -> list[str]:
        """The command that runs another on this host."""
        others = [host.folder for host in self._network.hosts if host is not self]
        # `ip netns exec` gives the command mounts of its own.
        hidden = "".join(f"mount -t tmpfs none '{folder}' && " for folder in others)
        script = f'{hidden}cd "{self.folder}" && exec "$@"'
        return ["ip", "netns", "exec", self.namespace, "bash", "-c", script, self.namespace]

    def imgrec(self, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.launcher, str(BIN / "imgrec"), *args],
            env=self._env(),
            capture_output=True,
            text=True,
            timeout=5 * PATIENCE_S,
        )

    def answer(self, *args: str) -> dict[str, Any]:
        """Run a command with --json that must succeed; return its object."""
        done = self.imgrec(*args, "--json")
        assert done.returncode == 0, f"{args}: {done.stderr}\n{self.logs()[-3000:]}"
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def worker(self, queue: str, **more: str) -> subprocess.Popen[bytes]:
        # From the program's folder, as a user does; its .env names nothing.
        command = [*self.launcher, "bash", "-c", f'cd "{ROOT}" && exec "$@"', "worker"]
        command += [str(BIN / "celery"), "worker", "-Q", queue, "-l", "INFO"]
        with (self.folder / f"{queue}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                env=self._env(**more),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes[queue] = process
        return process

    def kill(self) -> None:
        """End all processes of this host with SIGKILL, as a power cut does."""
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.processes.clear()

    def logs(self) -> str:
        return "\n".join(file.read_text(errors="replace") for file in self.folder.glob("*.log"))

    def _env(self, **more: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if k in {"PATH", "HOME", "LANG"}}
        kept |= {"PATH": f"{BIN}:{kept.get('PATH', '')}", "PYTHONPATH": str(FAILPOINTS)}
        return {**kept, **self.environment, **more}


class Network:
    """A bridge of this process's own namespace, and the hosts on it."""

    def __init__(self, folder: Path, hosts: int) -> None:
        """Make them, or skip the test where this user may not."""
        if os.geteuid() != 0 or shutil.which("ip") is None:
            pytest.skip("network namespaces need root and the command ip")
        folder.mkdir()
        self.folder = folder
        self.hosts: list[Host] = []
        try:
            _run("ip", "link", "add", BRIDGE, "type", "bridge")
        except AssertionError as error:
            pytest.skip(f"no network can be made here: {error}")
        try:
            _run("ip", "address", "add", f"{NETWORK}.254/24", "dev", BRIDGE)
            _run("ip", "link", "set", BRIDGE, "up")
            for number in range(1, hosts + 1):
                self._add(Host(self, number), number)
        except AssertionError as error:
            self.close()
            pytest.skip(f"no network namespace can be made here: {error}")
        except BaseException:
            self.close()
            raise

    def _add(self, host: Host, number: int) -> None:
        name, cable = host.namespace, f"imgrec-v{number}"
        _run("ip", "netns", "add", name)
        self.hosts.append(host)
        _run("ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
        _run("ip", "link", "set", cable, "master", BRIDGE, "up")
        _run("ip", "-n", name, "address", "add", f"{host.address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            _run("ip", "-n", name, "link", "set", device, "up")

    def close(self) -> None:
        for host in self.hosts:
            host.kill()
            subprocess.run(["ip", "netns", "delete", host.namespace], check=False)
        subprocess.run(["ip", "link", "delete", BRIDGE], check=False)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr.strip()
