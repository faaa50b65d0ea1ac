"""One run of one fault: what was there before, what is there after, and how long it took."""

from __future__ import annotations

import random
import statistics
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from live_stack import PATIENCE_S, LiveStack, draw_folder, until

from pipeline.store.job import Job


@dataclass
class Outcome:
    """What became of the images of one run; None where it did not get so far."""

    row: float
    fault: str
    lost: int | None = None
    doubled: int | None = None
    seconds: float | None = None


@dataclass
class FaultRun:
    """A stack with a folder of good and bad images, and random numbers from a seed."""

    stack: LiveStack
    seed: int
    outcome: Outcome
    good: list[str] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self._hit = time.monotonic()

    def draw(self, count: int = 40) -> None:
        """Fill the folder: `count` good images, and two bad ones beside them."""
        products = self.stack.products
        self.good = draw_folder(products, count, 10_000 * self.seed)
        whole = (products / self.good[0]).read_bytes()
        for name, data in (("empty", b""), ("cut", whole[: len(whole) // 2])):
            path = f"kind{self.rng.randrange(3)}/bad-{name}.jpg"
            (products / path).write_bytes(data)
            self.bad.append(path)

    def armed(self, line: str) -> dict[str, str]:
        """Return the switches that make a line strike once in the life of this run."""
        return {"IMGREC_FAILPOINT": line, "IMGREC_FAILPOINT_ONCE": str(self.once)}

    @property
    def once(self) -> Path:
        """The file that says that the armed line was reached."""
        return self.stack.folder / "once"

    def wait_for_failpoint(self) -> None:
        """Wait until the armed line is reached; the clock of recovery starts."""
        until(self.once.exists, "the armed line is reached")
        self.hit()

    def hit(self) -> None:
        """Note the moment of the fault."""
        self._hit = time.monotonic()

    def recovered(self) -> None:
        """Note the moment when everything is right again."""
        self.outcome.seconds = time.monotonic() - self._hit

    def enqueue(self, **more: str) -> str:
        job_id: str = self.stack.answer("enqueue-rebuild", str(self.stack.products), **more)[
            "job_id"
        ]
        return job_id

    def state(self, job_id: str) -> str:
        return self.stack.jobs.get(job_id).state

    def end(self, job_id: str, patience_s: float = PATIENCE_S) -> Job:
        """Wait for a job to end by itself: this only looks into the ledger."""
        until(lambda: not self.stack.jobs.get(job_id).open, f"job {job_id} ends", patience_s)
        self.recovered()
        return self.stack.jobs.get(job_id)

    def publishes(
        self, job_id: str, *, left_out: Mapping[str, str] | None = None, **patience: float
    ) -> None:
        """Wait for a job's publication; then each good image is there once, the others told of.

        Args:
            left_out: images that must not be in the index, but in the ledger, for this reason.
        """
        job = self.end(job_id, **patience)
        assert job.state == "published", f"{job.state}: {job.error}"
        self.account(job_id, left_out=left_out)

    def account(self, job_id: str, *, left_out: Mapping[str, str] | None = None) -> None:
        """Compare the published version and the ledger with what is in the folder."""
        left_out = left_out or {}
        wanted = Counter(name for name in self.good if name not in left_out)
        found = Counter(self.stack.indexed())
        self.outcome.lost = (wanted - found).total()
        self.outcome.doubled = (found - wanted).total()
        assert found == wanted
        ledger = {f.path: f for f in self.stack.jobs.failures(job_id) if not f.warning}
        assert sorted(ledger) == sorted({*self.bad, *left_out})
        for name, reason in left_out.items():
            assert reason in ledger[name].reason
        progress = self.stack.jobs.progress(job_id)
        assert progress.embedded + progress.reused == len(wanted)
        assert progress.images == len(self.good) + len(self.bad)


def table(outcomes: list[Outcome]) -> list[str]:
    """Return the lines of the table: one a fault, over its runs."""
    lines = [
        "| # | fault | runs | failed | images lost | images doubled | seconds to recover |",
        "|---|---|---|---|---|---|---|",
    ]
    by_fault: dict[tuple[float, str], list[Outcome]] = {}
    for outcome in outcomes:
        by_fault.setdefault((outcome.row, outcome.fault), []).append(outcome)
    for (row, fault), runs in sorted(by_fault.items()):
        whole = [run for run in runs if run.lost is not None and run.doubled is not None]
        lost = sum(run.lost or 0 for run in whole)
        doubled = sum(run.doubled or 0 for run in whole)
        took = [run.seconds for run in whole if run.seconds is not None]
        shown = f"{statistics.median(took):.1f} (most {max(took):.1f})" if took else "-"
        number = f"{row:g}" if row < 100 else ""
        lines.append(
            f"| {number} | {fault} | {len(runs)} | {len(runs) - len(whole)} | {lost} | {doubled} "
            f"| {shown} |"
        )
    return lines
