"""What a benchmark is given, and what it leaves behind: ratios, facts, plots.

A module `bench_NAME.py` of this folder has a `TITLE` and a `measure(run)`. Every figure with a
target is a ratio against something measured in the same run, taken in turns: machines change their
speed from minute to minute, and only what ran side by side can be compared.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from tools.drawing import COLORS, Product, draw

ROOT = Path(__file__).parent.parent.parent
PHOTOS = ROOT.parent / "shared" / "clothing" / "train"
KINDS = ("chair", "mug", "shoe", "watch", "lamp", "sofa")
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Ratio:
    """One measured ratio: the median over rounds, the least and the most, and what it should be."""

    name: str
    median: float
    least: float
    most: float
    rounds: int
    what: str
    better: Literal["higher", "lower"]
    target: float | None

    @property
    def reached(self) -> bool | None:
        """Whether the median keeps the target; None where there is none."""
        if self.target is None:
            return None
        if self.better == "higher":
            return self.median >= self.target
        return self.median <= self.target


@dataclass(frozen=True)
class Plot:
    """Curves over one axis: {name: [(x, y), ...]}."""

    title: str
    x_label: str
    y_label: str
    series: Mapping[str, Points]
    log_x: bool = False
    log_y: bool = False


@dataclass
class Run:
    """One benchmark: its inputs, and what it has measured so far."""

    name: str
    title: str
    folder: Path
    quick: bool
    say: Callable[[str], None] = print
    ratios: list[Ratio] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    plots: list[Plot] = field(default_factory=list)
    seconds: float = 0.0

    def ratio(
        self,
        name: str,
        samples: Sequence[float],
        *,
        what: str,
        target: float | None = None,
        better: Literal["higher", "lower"] = "higher",
    ) -> Ratio:
        """Keep a ratio, one sample a round.

        Args:
            what: what was divided by what, on what.
        """
        found = Ratio(
            name,
            statistics.median(samples),
            min(samples),
            max(samples),
            len(samples),
            what,
            better,
            target,
        )
        self.ratios.append(found)
        self.say(f"  {describe(found)}")
        return found

    def fact(self, name: str, value: Any) -> None:
        """Keep an absolute figure; true of this machine at this hour only."""
        self.facts[name] = value
        self.say(f"  {name}: {value}")

    def plot(
        self,
        title: str,
        x_label: str,
        y_label: str,
        series: Mapping[str, Points],
        *,
        log_x: bool = False,
        log_y: bool = False,
    ) -> None:
        """Keep curves for the page."""
        self.plots.append(Plot(title, x_label, y_label, series, log_x, log_y))

    def photos(self, count: int) -> list[Path]:
        """Return `count` photos: real ones where they are there, drawn ones otherwise."""
        real = self._real
        if real:
            step = max(1, len(real) // count)
            chosen = real[::step][:count]
            return chosen + [real[n % len(real)] for n in range(count - len(chosen))]
        return [self._drawn(number) for number in range(count)]

    @cached_property
    def _real(self) -> list[Path]:
        return sorted(PHOTOS.rglob("*.jpg")) if PHOTOS.is_dir() else []

    def _drawn(self, number: int) -> Path:
        kind, color = KINDS[number % len(KINDS)], COLORS[number % len(COLORS)]
        file = self.folder / "drawn" / kind / f"{color}-{number}.jpg"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            draw(Product(kind, color, "plain", "casual", number), 480).save(file, quality=90)
        return file

    def report(self) -> dict[str, Any]:
        """Return all that was measured, for JSON."""
        return {
            "title": self.title,
            "seconds": round(self.seconds, 1),
            "ratios": [{**asdict(ratio), "reached": ratio.reached} for ratio in self.ratios],
            "facts": self.facts,
            "plots": [asdict(plot) for plot in self.plots],
        }


def describe(ratio: Ratio) -> str:
    """Return one line about a ratio."""
    mark = {True: "reached", False: "MISSED", None: ""}[ratio.reached]
    sign = ">=" if ratio.better == "higher" else "<="
    target = f"{sign} {ratio.target:g} {mark}" if ratio.target is not None else ""
    spread = f"{ratio.least:.3g}..{ratio.most:.3g}"
    return f"{ratio.name}: {ratio.median:.3g} ({spread}, {ratio.rounds} rounds) {target}".rstrip()


def seconds(work: Callable[[], Any]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turns(
    first: Callable[[], Any], second: Callable[[], Any], rounds: int
) -> list[tuple[float, float]]:
    """Time two calls in turns, each round in the other order -> seconds of both, by round."""
    pairs = []
    for number in range(rounds):
        if number % 2:
            late, early = seconds(second), seconds(first)
            pairs.append((early, late))
        else:
            pairs.append((seconds(first), seconds(second)))
    return pairs


def anonymous_bytes(pid: int | str = "self") -> int:
    """Return the memory that a process has for itself: not mapped files, not the page cache."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return 1024 * int(line.split()[1])
    return 0


def machine() -> dict[str, Any]:
    """Say what the figures were measured on."""
    import torch

    cpu = platform.processor() or platform.machine()
    flags: set[str] = set()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                cpu = value.strip()
            elif name.strip() == "flags":
                flags = set(value.split())
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "instructions": [name for name in wanted if name in flags],
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def load(file: Path) -> dict[str, Any]:
    """Read a report that an earlier run has left; empty where there is none."""
    found: dict[str, Any] = json.loads(file.read_bytes()) if file.exists() else {}
    return found
