"""A shop for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from shop import Shop

from pipeline.settings import Settings


@pytest.fixture
def shop(settings: Settings, tmp_path: Path) -> Shop:
    shop = Shop(settings, tmp_path)
    for number in range(30):
        shop.draw(f"kind{number % 2}/{number:02d}.png", seed=number)
    return shop
