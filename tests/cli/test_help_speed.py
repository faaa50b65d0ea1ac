"""`imgrec --help` must feel instant."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path


def shortest(command: list[str], runs: int = 7) -> float:
    """Return the shortest of several runs in seconds: noise only ever adds."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return min(times)


def test_help_takes_less_than_twice_what_importing_click_and_rich_takes() -> None:
    # A ratio of alternating runs on one machine, not a time: it holds on a slow machine, too.
    imgrec = str(Path(sys.executable).parent / "imgrec")
    ratios = []
    for _ in range(3):
        ratios.append(
            shortest([imgrec, "--help"]) / shortest([sys.executable, "-c", "import click, rich"])
        )
        if ratios[-1] < 2:
            return
    raise AssertionError(ratios)
