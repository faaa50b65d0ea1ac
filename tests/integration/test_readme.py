"""The README's usage section is what really happens: its commands are run, their output compared.

IMGREC_WRITE_README=1 runs them and writes what came into the README.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from live_stack import BIN, ROOT, free_port

from cli.main import COMMANDS
from tools.drawing.catalogue import write_training

README = ROOT / "README.md"
FENCE = re.compile(r"```console\n(.*?)```", re.DOTALL)
NOT_RUN = {
    "failures": "runs within the example of a rebuild",
    "demo": "is no command of imgrec",
}
# What differs from run to run; everything else must be the same, figures nearly.
VARIES = [
    (re.compile(r"\b\d{8}-\d{6}-[0-9a-f]{4}\b"), "JOB"),
    (re.compile(r"\b[0-9a-f]{32}\b"), "ID"),
    (re.compile(r"\b\d{4}-\d\d-\d\d( \d\d:\d\d(:\d\d)?)?"), "DATE"),
    (re.compile(r"\b\d+(\.\d+)? (s|ms)\b|\b\d+ min \d+ s\b"), "TIME"),
    (re.compile(r'"seconds": [\d.]+'), '"seconds": N'),
    (re.compile(r"\(process \d+\)"), "(process N)"),
    (re.compile(r"\b(embed|index|query)@[^ :│]+"), "WORKER"),
    (re.compile(r"/[^ ]*/photos"), "/FOLDER/photos"),
    (re.compile(r"\b[\d.]+ GiB"), "N GiB"),
    (re.compile(r"[━─ ]{2,}|[┳┻╇┏┓┡┩└┘┴]"), " "),
]
# A query is sent once more when its worker is slow to load, which these count; so do ages.
COUNTS = re.compile(r"(\d[\d.]*( min \d+)? s\b)|\d[\d.]*%?")
NUMBER = re.compile(r"[-+]?\d+\.\d+")
TOLERANCE = 0.03  # other processors round otherwise
PROGRESS = re.compile(r"^(planned|running|merging): ", re.MULTILINE)


@dataclass
class Example:
    """One command with the output that the README shows, and the one that came."""

    command: str
    expected: list[str] = field(default_factory=list)
    got: list[str] = field(default_factory=list)


def usage() -> str:
    text = README.read_text(encoding="utf-8")
    return text[text.index("## Usage") : text.index("## Commands")]


def examples(text: str) -> list[Example]:
    found: list[Example] = []
    for block in FENCE.findall(text):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append(Example(line[2:]))
            else:
                found[-1].expected.append(line)
    return found


def plain(line: str) -> tuple[str, list[float]]:
    """Return a line without what varies, and its figures."""
    for pattern, name in VARIES:
        line = pattern.sub(name, line)
    figures = [float(number) for number in NUMBER.findall(line)]
    return NUMBER.sub("#", " ".join(line.split())), figures


def same(command: str, expected: list[str], got: list[str]) -> bool:
    if command == "imgrec cache list":
        expected, got = ([COUNTS.sub("N", line) for line in lines] for lines in (expected, got))
    if len(expected) != len(got):
        return False
    for left, right in zip(map(plain, expected), map(plain, got), strict=True):
        close = all(abs(a - b) <= TOLERANCE for a, b in zip(left[1], right[1], strict=False))
        if left[0] != right[0] or len(left[1]) != len(right[1]) or not close:
            return False
    return True


def set_table(folder: Path) -> dict[str, str]:
    """Lay out what the usage section says that is there; return the environment."""
    names = sorted((ROOT / "data" / "products").rglob("*.jpg"))
    for number, name in enumerate(names):
        if number % 3 == 0:
            target = folder / "photos" / name.parent.name / name.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(name, target)
    (folder / "photos" / "mug" / "broken.jpg").write_bytes(names[0].read_bytes()[:2000])
    facts = (ROOT / "data" / "products" / "products.csv").read_text().splitlines(keepends=True)
    kept = [row for row in facts if (folder / "photos" / f"{row.split(',')[0]}.jpg").exists()]
    (folder / "products.csv").write_text("".join([facts[0], *kept]))
    shutil.copy(
        next(name for name in names if name.name.startswith("red-vintage-mug")),
        folder / "photo.jpg",
    )
    write_training(folder / "data" / "training", per_class=8, categories=("mug",), size=160)
    (folder / "models").mkdir()
    (folder / "models" / "imgrec-mini").symlink_to(ROOT / "models" / "imgrec-mini")
    passed = {k: v for k, v in os.environ.items() if k in {"HOME", "LANG", "TMPDIR"}}
    return {
        **passed,
        "PATH": f"{BIN}:{os.environ.get('PATH', '')}",
        "REDIS_URL": f"redis://127.0.0.1:{free_port()}/0",
        "EMBEDDING_MODEL": "models/imgrec-mini",
        "USE_BG_REMOVAL": "false",
        "HF_HUB_OFFLINE": "1",
    }


@pytest.fixture
def shop() -> Iterator[Path]:
    """A folder whose path has always the same length: tables are as wide as their cells."""
    folder = Path(tempfile.mkdtemp(prefix="shop-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


def test_the_usage_section_shows_what_happens(shop: Path) -> None:
    environment, found = set_table(shop), examples(usage())
    ids: dict[str, str] = {}
    try:
        for example in found:
            command = example.command
            for theirs, ours in ids.items():
                command = command.replace(theirs, ours)
            done = subprocess.run(
                ["bash", "-c", f"{command} 2>&1"],
                cwd=shop,
                env=environment,
                capture_output=True,
                text=True,
                timeout=600,
            )
            lines = [line.rstrip() for line in done.stdout.rstrip().splitlines()]
            example.got = [line for line in lines if not PROGRESS.match(line)]
            for pattern, _ in VARIES[:2]:
                theirs = pattern.findall("\n".join(example.expected))
                ours = pattern.findall(done.stdout)
                ids |= dict(zip(theirs, ours, strict=False))
    finally:
        subprocess.run(["imgrec", "down"], cwd=shop, env=environment, capture_output=True)
    if os.environ.get("IMGREC_WRITE_README"):
        write(found)
        return
    wrong = [e for e in found if not same(e.command, e.expected, e.got)]
    told = "\n".join(
        "\n".join([f"$ {e.command}", "--- README", *e.expected, "--- here", *e.got]) for e in wrong
    )
    assert not wrong, told


def write(found: list[Example]) -> None:
    """Put what came into the README; ids in later commands follow those that are shown."""
    text, ids = usage(), dict[str, str]()
    remaining = iter(found)

    def block(match: re.Match[str]) -> str:
        lines = []
        for line in match.group(1).splitlines():
            if not line.startswith("$ "):
                continue
            example = next(remaining)
            command = example.command
            for theirs, ours in ids.items():
                command = command.replace(theirs, ours)
            got = [re.sub(r"/tmp/shop-\w{8}", "/srv/our-shop-site", line) for line in example.got]
            got = [re.sub(r"\b(embed|index|query)@[^ :│]+", r"\1@laptop", line) for line in got]
            lines += [f"$ {command}", *got]
            for pattern, _ in VARIES[:2]:
                before = pattern.findall("\n".join(example.expected))
                ids.update(zip(before, pattern.findall("\n".join(got)), strict=False))
        return "```console\n" + "\n".join(lines) + "\n```"

    whole = README.read_text(encoding="utf-8")
    README.write_text(whole.replace(text, FENCE.sub(block, text)), encoding="utf-8")


def test_every_command_is_shown_once_at_least() -> None:
    shown = {
        match
        for example in examples(usage())
        for match in re.findall(r"imgrec (?:--\w+ )?([a-z-]+)", example.command)
    }
    assert set(COMMANDS) - shown - set(NOT_RUN) == set()
