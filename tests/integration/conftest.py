"""A whole imgrec for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from stand import Stand


@pytest.fixture
def stand(tmp_path: Path, model: Path) -> Iterator[Stand]:
    stand = Stand(tmp_path, model)
    stand.start_redis()
    yield stand
    stand.close()


@pytest.fixture
def any_database(database_url: str, tmp_path: Path, model: Path) -> Iterator[Stand]:
    stand = Stand(tmp_path, model, database_url=database_url)
    stand.start_redis()
    yield stand
    stand.close()
