"""A whole imgrec on the bundled model, imgrec-mini: its answers make sense, and tests say so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from live_stack import LiveStack
from sample_images import MINI


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[LiveStack]:
    stack = LiveStack(tmp_path, MINI)
    stack.start_redis()
    yield stack
    stack.close()


@pytest.fixture
def any_database(database_url: str, tmp_path: Path) -> Iterator[LiveStack]:
    stack = LiveStack(tmp_path, MINI, database_url=database_url)
    stack.start_redis()
    yield stack
    stack.close()
