"""A whole imgrec for the tests of this folder.

On the tiny model and on coloured shapes: faults are about what is lost or doubled, not about what
a picture looks like, and hundreds of pictures are embedded in seconds.
"""

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
