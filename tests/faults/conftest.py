"""A whole imgrec for the tests of this folder, and the table of what the faults came to.

On the tiny model and on coloured shapes: faults are about what is lost or doubled, not about what
a picture looks like, and hundreds of pictures are embedded in seconds.

`FAULT_SEEDS` says how often each fault runs, each time with another seed; `make faults` sets 5.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from faults.fault_run import FaultRun, Outcome, table
from live_stack import LiveStack

OUTCOMES: list[Outcome] = []
TABLE = Path("build/faults.md")


@pytest.fixture
def stack(tmp_path: Path, model: Path) -> Iterator[LiveStack]:
    stack = LiveStack(tmp_path, model)
    stack.start_redis()
    yield stack
    stack.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`make test` runs a fault of each kind, the ones marked `short`; `make faults` all of them."""
    for item in items:
        if item.get_closest_marker("fault") and not _short(item):
            item.add_marker(pytest.mark.slow)


def _short(item: pytest.Item) -> bool:
    mark = item.get_closest_marker("short")
    if mark is None:
        return False
    return not mark.args or any(value in mark.args for value in item.callspec.params.values())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "fault_run" in metafunc.fixturenames:
        seeds = range(1, int(os.environ.get("FAULT_SEEDS", "1")) + 1)
        metafunc.parametrize(
            "fault_run", seeds, indirect=True, ids=[f"seed{seed}" for seed in seeds]
        )


@pytest.fixture
def fault_run(request: pytest.FixtureRequest, stack: LiveStack) -> Iterator[FaultRun]:
    """One run of the fault that the test's mark `fault(row, words)` names."""
    row, words = request.node.get_closest_marker("fault").args
    params = {k: v for k, v in request.node.callspec.params.items() if k != "fault_run"}
    fault = words.format(**params)
    fault_run = FaultRun(stack, request.param, Outcome(row, fault))
    OUTCOMES.append(fault_run.outcome)
    yield fault_run
    if request.node.stash.get(FAILED, False):
        fault_run.outcome.lost = None


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.when == "call" and report.failed:
        item.stash[FAILED] = True
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process of pytest-xdist hands its outcomes to the one that prints the table."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["outcomes"] = [asdict(outcome) for outcome in OUTCOMES]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    output = getattr(node, "workeroutput", {})  # one that crashed has none
    OUTCOMES.extend(Outcome(**facts) for facts in output.get("outcomes", ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if OUTCOMES:
        lines = table(OUTCOMES)
        terminalreporter.section("faults")
        for line in lines:
            terminalreporter.line(line)
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text("\n".join(lines) + "\n")
