"""A whole imgrec on the bundled model, imgrec-mini: its answers make sense, and tests say so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from live_stack import LiveStack
from sample_images import MINI


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[LiveStack]:
    stand = LiveStack(tmp_path, MINI)
    stand.start_redis()
    yield stand
    stand.close()


@pytest.fixture
def any_database(database_url: str, tmp_path: Path) -> Iterator[LiveStack]:
    stand = LiveStack(tmp_path, MINI, database_url=database_url)
    stand.start_redis()
    yield stand
    stand.close()
