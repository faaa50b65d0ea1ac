"""A whole imgrec for the tests of this folder, and the table of what the faults came to.

On the tiny model and on coloured shapes: faults are about what is lost or doubled, not about what
a picture looks like, and hundreds of pictures are embedded in seconds.

`FAULT_SEEDS` says how often each fault runs, each time with other dice; `make faults` sets 5.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.trial import Outcome, Trial, table
from stand import Stand

OUTCOMES: list[Outcome] = []
TABLE = Path("build/faults.md")


@pytest.fixture
def stand(tmp_path: Path, model: Path) -> Iterator[Stand]:
    stand = Stand(tmp_path, model)
    stand.start_redis()
    yield stand
    stand.close()


# What `make test` runs of the table: a fault of each kind. `make faults` runs all of it.
SHORT = (
    *("killed_at_any_line_loses_no_image[seed1-image]", "loses_no_image[seed1-embed.after_write]"),
    *(
        "delivered_three_times",
        "poisonous_image_is_found_and_the_rest_of_its_shard_is_indexed[seed1-kill",
    ),
    *("shard_file_that_rots_is_made_again[seed1-changed]", "gives_its_shard_back[seed1-SIGTERM]"),
    *("cancelled_rebuild", "leaves_a_job_that_ends[seed1-plan.before_finish]"),
    *("see_a_half[seed1-merge.before_commit]", "see_a_half[seed1-merge.after_pointer]"),
    *("redis_killed_within_a_shard", "stops_no_rebuild[seed1-flushed]"),
    *("full_redis_says_so", "answered_by_another[seed1-query.start]", "one_bad_query"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("fault") and not any(name in item.name for name in SHORT):
            item.add_marker(pytest.mark.slow)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "trial" in metafunc.fixturenames:
        seeds = range(1, int(os.environ.get("FAULT_SEEDS", "1")) + 1)
        metafunc.parametrize("trial", seeds, indirect=True, ids=[f"seed{seed}" for seed in seeds])


@pytest.fixture
def trial(request: pytest.FixtureRequest, stand: Stand) -> Iterator[Trial]:
    """One run of the fault that the test's mark `fault(row, words)` names."""
    row, words = request.node.get_closest_marker("fault").args
    params = {k: v for k, v in request.node.callspec.params.items() if k != "trial"}
    fault = words.format(**params)
    trial = Trial(stand, request.param, Outcome(row, fault))
    OUTCOMES.append(trial.outcome)
    yield trial
    if request.node.stash.get(FAILED, False):
        trial.outcome.lost = None


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.when == "call" and report.failed:
        item.stash[FAILED] = True
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if OUTCOMES:
        lines = table(OUTCOMES)
        terminalreporter.section("faults")
        for line in lines:
            terminalreporter.line(line)
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text("\n".join(lines) + "\n")
