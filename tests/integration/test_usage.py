"""docs/usage.md shows what really happens: its commands are run and their output is compared.

IMGREC_WRITE_USAGE=1 runs them and writes their output into docs/usage.md.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from live_stack import BIN, ROOT, free_port
from preloaded import Process

from cli.main import COMMANDS
from tools.drawing.catalogue import write_training

pytestmark = pytest.mark.long

USAGE = ROOT / "docs" / "usage.md"
# A terminal of this width without colours: tables fold, as they do for a reader.
TERMINAL = {"COLUMNS": "100", "LINES": "40", "TERM": "dumb", "TTY_COMPATIBLE": "1"}
FENCE = re.compile(r"```console\n(.*?)```", re.DOTALL)
# What differs from run to run; everything else must be the same, figures nearly.
VARIES = [
    (re.compile(r"\b\d{8}-\d{6}-(?:[0-9a-f]{4}){1,2}\b"), "JOB"),
    (re.compile(r"\b[0-9a-f]{32}\b"), "ID"),
    (re.compile(r"\bimgrec_[0-9a-f]{12}_[\w-]+"), "KEY"),
    (re.compile(r"│ [0-9a-f]{12} │"), "│ KEY ID │"),
    (re.compile(r"\b\d{4}-\d\d-\d\d( \d\d:\d\d(:\d\d)?)?"), "DATE"),
    (re.compile(r"\b\d+(\.\d+)? (s|ms)\b|\b\d+ min \d+ s\b"), "TIME"),
    (re.compile(r'"seconds": [\d.]+'), '"seconds": N'),
    (re.compile(r'"(read|decode|cut_out|embed|write)": [\d.]+'), '"STAGE": N'),
    (re.compile(r'"stage": "\w+"'), '"stage": "STAGE"'),
    (re.compile(r'"share": [\d.]+'), '"share": N'),
    (re.compile(r"\(process \d+\)"), "(process N)"),
    (re.compile(r"\b(embed|index|query)@[^ :│]+"), "WORKER"),
    (re.compile(r"/[^ ]*/photos"), "/FOLDER/photos"),
    (re.compile(r"\b[\d.]+ GiB"), "N GiB"),
    (re.compile(r"user '.*' \(uid \d+\)|\buid \d+"), "USER"),
    (re.compile(r"in /[^ ,]*, Python [\d.]+"), "in FOLDER, Python N"),
    (re.compile(r"[━─ ]{2,}|[┳┻╇┏┓┡┩└┘┴]"), " "),
]
# A query is sent once more when its worker is slow to load, which these count; so do ages.
COUNTS = re.compile(r"(\d[\d.]*( min \d+)? s\b)|\d[\d.]*%?")
NUMBER = re.compile(r"[-+]?\d+\.\d+")
TOLERANCE = 0.03  # other processors round otherwise
REPORT = "imgrec feedback report --json"
# Of a rebuild that computes next to nothing, a busy disk makes one.
BOTTLENECK = re.compile(r'"bottleneck": (null|\{[^}]*\})')
# A rebuild's progress, on the way (a line) and at its end (a bar).
PROGRESS = re.compile(r"(planned|running|merging): |(published|merging) +[━╸╺]+ ")


@dataclass
class Example:
    """A command with the output that docs/usage.md shows and its actual output."""

    command: str
    expected: list[str] = field(default_factory=list)
    actual: list[str] = field(default_factory=list)


def usage() -> str:
    return USAGE.read_text(encoding="utf-8")


def examples(text: str) -> list[Example]:
    session: list[Example] = []
    for block in FENCE.findall(text):
        for line in block.splitlines():
            if line.startswith("$ "):
                session.append(Example(line[2:]))
            else:
                session[-1].expected.append(line)
    return session


def normalize(line: str) -> tuple[str, list[float]]:
    """Return a line with placeholders for all that varies, and its figures."""
    for pattern, name in VARIES:
        line = pattern.sub(name, line)
    figures = [float(number) for number in NUMBER.findall(line)]
    return NUMBER.sub("#", " ".join(line.split())), figures


def same(command: str, expected: list[str], actual: list[str]) -> bool:
    if command == "imgrec cache list":
        expected, actual = (
            [COUNTS.sub("N", line) for line in lines] for lines in (expected, actual)
        )
    expected, actual = (
        BOTTLENECK.sub('"bottleneck": STAGE', "\n".join(lines)).splitlines()
        for lines in (expected, actual)
    )
    if len(expected) != len(actual):
        return False
    for left, right in zip(map(normalize, expected), map(normalize, actual), strict=True):
        close = all(abs(a - b) <= TOLERANCE for a, b in zip(left[1], right[1], strict=False))
        if left[0] != right[0] or len(left[1]) != len(right[1]) or not close:
            return False
    return True


def prepare(folder: Path) -> dict[str, str]:
    """Write the files that docs/usage.md starts from; return the environment."""
    names = sorted((ROOT / "data" / "products").rglob("*.jpg"))
    for number, name in enumerate(names):
        if number % 3 == 0:
            target = folder / "photos" / name.parent.name / name.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(name, target)
    (folder / "photos" / "mug" / "broken.jpg").write_bytes(names[0].read_bytes()[:2000])
    write_products(folder)
    shutil.copy(
        next(name for name in names if name.name.startswith("red-vintage-mug")),
        folder / "photo.jpg",
    )
    training = folder / "data" / "training"
    write_training(training, 8, categories=("mug",), size=160, attributes=("color",))
    (folder / "models").mkdir()
    (folder / "models" / "imgrec-mini").symlink_to(ROOT / "models" / "imgrec-mini")
    passed = {k: v for k, v in os.environ.items() if k in {"HOME", "LANG", "TMPDIR"}}
    return {
        **passed,
        **TERMINAL,
        "PATH": f"{BIN}:{os.environ.get('PATH', '')}",
        "REDIS_URL": f"redis://127.0.0.1:{free_port()}/0",
        "EMBEDDING_MODEL": "models/imgrec-mini",
        "USE_BG_REMOVAL": "false",
        "HF_HUB_OFFLINE": "1",
    }


def write_products(folder: Path) -> None:
    """Write products.csv: category and price of each product in photos."""
    with (ROOT / "data" / "products" / "products.csv").open(newline="") as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if (folder / "photos" / f"{row['product_id']}.jpg").exists()
        ]
    with (folder / "products.csv").open("w", newline="") as file:
        columns = ["product_id", "category", "price"]
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def shop() -> Iterator[Path]:
    """A folder whose path has always the same length: tables are as wide as their cells."""
    folder = Path(tempfile.mkdtemp(prefix="shop-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


def run(line: str, shop: Path, environment: dict[str, str]) -> str:
    """Run a line of the shell; return what appears in the terminal.

    A command of imgrec that a line begins with comes from the fork server, with its libraries.
    """
    command, pipe, rest = line.partition(" | ")
    command, quiet, _ = command.partition(" > /dev/null")
    answer, nowhere = shop / ".answer", Path(os.devnull)
    if command.startswith("imgrec "):
        process = Process(
            shlex.split(command),
            cwd=shop,
            env=environment,
            stdout=nowhere if quiet else answer,
            # What the first command of a pipe says beside its output is not on the page.
            stderr=nowhere if pipe else answer,
        )
        process.wait(600)
        answer.touch()
        line = f"cat {answer}" + pipe + rest
    done = subprocess.run(
        ["bash", "-c", f"{line} 2>&1"],
        cwd=shop,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    answer.unlink(missing_ok=True)
    return done.stdout


def queries_answered(session: list[Example]) -> int:
    """Return how many queries of the session have been answered so far."""
    asked = [e for e in session if e.actual and e.command.startswith("imgrec query ")]
    return sum(not any(line.startswith("Error: ") for line in e.actual) for e in asked)


def wait_for_log(queries: int, shop: Path, environment: dict[str, str]) -> None:
    """Wait until the log holds so many queries: it is written a moment after their answers."""
    deadline = time.monotonic() + 60
    while (logged := json.loads(run(REPORT, shop, environment))["queries"]) != queries:
        assert time.monotonic() < deadline, f"{logged} queries in the log, {queries} answered"
        time.sleep(0.1)


def test_the_usage_page_shows_what_happens(shop: Path) -> None:
    environment, session = prepare(shop), examples(usage())
    ids: dict[str, str] = {}
    try:
        for example in session:
            command = example.command
            for theirs, ours in ids.items():
                command = command.replace(theirs, ours)
            if command == "imgrec feedback report":
                wait_for_log(queries_answered(session), shop, environment)
            output = run(command, shop, environment)
            lines = [line.rstrip() for line in output.rstrip().splitlines()]
            # On a slow machine, a worker that `up --detach` started may not listen yet.
            example.actual = [
                line
                for line in lines
                if line and not PROGRESS.match(line) and not line.startswith("No worker listens")
            ]
            for pattern, _ in VARIES[:2]:
                theirs = pattern.findall("\n".join(example.expected))
                ours = pattern.findall(output)
                ids |= dict(zip(theirs, ours, strict=False))
    finally:
        subprocess.run(["imgrec", "down"], cwd=shop, env=environment, capture_output=True)
    if os.environ.get("IMGREC_WRITE_USAGE"):
        write(session)
        return
    wrong = [e for e in session if not same(e.command, e.expected, e.actual)]
    told = "\n".join(
        "\n".join([f"$ {e.command}", "--- docs/usage.md", *e.expected, "--- here", *e.actual])
        for e in wrong
    )
    assert not wrong, told


def write(session: list[Example]) -> None:
    """Write the actual output into docs/usage.md, with its ids in the commands that follow."""
    ids: dict[str, str] = {}
    remaining = iter(session)

    def block(match: re.Match[str]) -> str:
        lines = []
        for line in match.group(1).splitlines():
            if not line.startswith("$ "):
                continue
            example = next(remaining)
            command = example.command
            for theirs, ours in ids.items():
                command = command.replace(theirs, ours)
            output = [
                re.sub(r"/tmp/shop-\w{8}", "/srv/our-shop-site", line) for line in example.actual
            ]
            output = [line.replace(f"in {ROOT},", "in /opt/imgrec,") for line in output]
            output = [
                re.sub(r"user '.*' \(uid \d+\)|\buid \d+", "user 'shop' (uid 1000)", line)
                for line in output
            ]
            output = [
                re.sub(r"\b(embed|index|query)@[^ :│]+", r"\1@laptop", line) for line in output
            ]
            lines += [f"$ {command}", *output]
            for pattern, _ in VARIES[:2]:
                before = pattern.findall("\n".join(example.expected))
                ids.update(zip(before, pattern.findall("\n".join(output)), strict=False))
        return "```console\n" + "\n".join(lines) + "\n```"

    USAGE.write_text(FENCE.sub(block, usage()), encoding="utf-8")


def test_every_command_is_run_at_least_once() -> None:
    run = {
        name
        for example in examples(usage())
        for name in re.findall(r"imgrec ([a-z-]+)", example.command)
    }
    # The other name of import-catalogue; and a server that runs until it is stopped, see tests/web.
    assert set(COMMANDS) - run == {"import-products", "web"}
