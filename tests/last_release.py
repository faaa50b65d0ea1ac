"""The last release beside this one: its packages from the history, and a shop of both."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from live_stack import ROOT, LiveStack
from preloaded import Process

LAST_RELEASE = "c9b134f"


def build_last_release(folder: Path) -> Path:
    """Return the last release's packages, from a wheel; skip the test where there is no history."""
    archive = folder / "tree.tar"
    git = ["git", "archive", "--output", str(archive), LAST_RELEASE]
    paths = ["cli", "workers", "pipeline", "celeryconfig.py", "pyproject.toml", "README.md"]
    done = subprocess.run([*git, *paths, "LICENSE"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no history here: {done.stderr.strip()[:200]}")
    with tarfile.open(archive) as tar:
        tar.extractall(folder / "tree", filter="data")
    script = "from setuptools.build_meta import build_wheel; build_wheel('.')"
    subprocess.run([sys.executable, "-c", script], cwd=folder / "tree", check=True)
    (wheel,) = (folder / "tree").glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        content.extractall(folder / "site")
    shutil.rmtree(folder / "tree")
    return folder / "site"


class Both:
    """A shop whose workers and commands are of either release."""

    def __init__(self, stack: LiveStack, last_release: Path) -> None:
        self.stack, self.last_release = stack, last_release

    def old_env(self) -> dict[str, str]:
        return {**self.stack.env(), "PYTHONPATH": str(self.last_release)}

    def worker(self, release: str, queue: str) -> Process | subprocess.Popen[bytes]:
        if release == "new":
            return self.stack.worker(queue)
        with (self.stack.folder / f"{queue}-old.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "celery", "worker", "-Q", queue, "-l", "INFO"],
                cwd=self.stack.folder,
                env=self.old_env(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.stack.processes.append(process)
        return process

    def imgrec(self, release: str, *args: object) -> dict[str, object]:
        command = [*map(str, args), "--json"]
        if release == "new":
            return self.stack.answer(*command[:-1])
        done = subprocess.run(
            [sys.executable, "-P", "-m", "cli.main", *command],
            cwd=self.stack.folder,
            env=self.old_env(),
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert done.returncode == 0, done.stderr
        answer: dict[str, object] = json.loads(done.stdout)
        return answer
