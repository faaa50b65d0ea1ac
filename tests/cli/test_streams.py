"""Closed and full standard streams: a sentence and an exit code, never a traceback."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import imgrec

UNWRITABLE = "Error: The output cannot be written: "


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with one key."""
    folder = tmp_path_factory.mktemp("shop")
    assert run("keys create shop", "", folder).returncode == 0
    return folder / "app.db"


@pytest.fixture
def folder(tmp_path: Path, shop: Path) -> Path:
    """A shop with one key: `keys list` prints a table, `heads` a note on stderr only."""
    shutil.copy(shop, tmp_path)
    return tmp_path


def run(arguments: str, streams: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command as a shell does, with the redirections in `streams`."""
    command = f'exec "{sys.executable}" -P "{imgrec.__file__}" {arguments} {streams}'
    return subprocess.run(
        ["sh", "-c", command],
        cwd=folder,
        env={
            **os.environ,
            "NO_COLOR": "1",
            "DATA_DIR": str(folder / "data"),
            "MODELS_DIR": str(folder / "heads"),
            "DATABASE_URL": f"sqlite:///{folder}/app.db",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("arguments", ["--help", "query --help", "keys list", "keys list --json"])
@pytest.mark.parametrize(
    ("streams", "reason"),
    [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")],
)
def test_a_stdout_that_takes_nothing_is_one_sentence_and_a_failure(
    folder: Path, arguments: str, streams: str, reason: str
) -> None:
    done = run(arguments, streams, folder)
    assert (done.returncode, done.stderr) == (1, f"{UNWRITABLE}{reason}.\n")


@pytest.mark.parametrize("streams", ["2>/dev/full", "2>&-", "<&-", "2>&- <&-"])
def test_stderr_and_stdin_are_not_needed(folder: Path, streams: str) -> None:
    assert run("heads", streams, folder).returncode == 0
    done = run("keys list", streams, folder)
    assert done.returncode == 0
    assert "shop" in done.stdout


def test_a_library_that_writes_to_a_full_stderr_ends_no_work(folder: Path) -> None:
    """A progress bar of transformers would be taken for a full disk."""
    script = "import sys; from cli.streams import prepare; prepare(); "
    script += "print('x' * 100_000, file=sys.stderr, flush=True); print('done')"
    command = [sys.executable, "-c", script]
    with open("/dev/full", "wb") as full:
        root = Path(imgrec.__file__).parent
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, cwd=root, check=True)
    assert done.stdout == b"done\n"


def test_a_check_that_nobody_can_read_blames_no_folder(folder: Path) -> None:
    done = run("check --no-model", ">/dev/full", folder)
    assert (done.returncode, done.stderr) == (1, f"{UNWRITABLE}No space left on device.\n")


def test_a_closed_pipe_is_no_error_of_anybody(folder: Path) -> None:
    done = run("--help", "| true", folder)
    assert "Traceback" not in done.stderr


def test_all_streams_closed_print_into_no_file(folder: Path) -> None:
    """The database would get the number of a closed stream."""
    assert run("keys create other", ">&- 2>&- <&-", folder).returncode == 1
    assert (folder / "app.db").read_bytes()[:15] == b"SQLite format 3"
    assert "shop" in run("keys list", "", folder).stdout
