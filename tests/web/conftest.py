"""A web server of one test module, and a fresh one for tests that break it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from live_stack import LiveStack
from web_stand import WebServer, shop, start_web


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[LiveStack]:
    yield from shop(tmp_path_factory.mktemp("shop"), model)


@pytest.fixture(scope="module")
def web(stack: LiveStack) -> WebServer:
    return start_web(stack)
