"""The log of `imgrec up --detach` keeps within its bound, and no line is lost on the way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cli.up_log import UpLog

SCRIPT = """
import sys
from pathlib import Path
from cli.up_log import UpLog
log = UpLog(Path(sys.argv[1]), 1000)
for number in range(int(sys.argv[2])):
    log.write(f"line {number:04d} of a worker")
"""

FULL = """
import os, sys
from pathlib import Path
from cli.up_log import UpLog
UpLog(Path(sys.argv[1]), 1000).write("a line")
print("done", file=sys.stderr)
os._exit(0)  # the interpreter would write stdout once more
"""


def write_lines(folder: Path, n_lines: int) -> list[str]:
    file = folder / "up.log"
    with file.open("ab") as stream:
        command = [sys.executable, "-c", SCRIPT, str(file), str(n_lines)]
        subprocess.run(command, stdout=stream, check=True)
    before = file.with_name("up.log.1")
    text = before.read_text() if before.exists() else ""
    assert file.stat().st_size <= 1000
    assert len(text) < 1100
    return (text + file.read_text()).splitlines()


def test_a_log_that_is_full_begins_anew_and_keeps_the_one_before(tmp_path: Path) -> None:
    lines = write_lines(tmp_path, 500)
    assert len(lines) > 40
    assert lines == [f"line {number:04d} of a worker" for number in range(500 - len(lines), 500)]


def test_a_short_log_stays_whole(tmp_path: Path) -> None:
    assert len(write_lines(tmp_path, 10)) == 10
    assert not (tmp_path / "up.log.1").exists()


def test_a_terminal_or_a_pipe_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "up.log").write_text("of an earlier run " * 1000)
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-c", FULL, str(tmp_path / "up.log")]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=True)
    assert done.stderr == b"done\n"


def test_a_name_in_the_log_does_not_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    UpLog(tmp_path / "up.log", 1000).write("embed | No thumbnail of a\x1b[31m\x9b2J.jpg")
    assert capsys.readouterr().out == "embed | No thumbnail of a\\x1b[31m\\x9b2J.jpg\n"
