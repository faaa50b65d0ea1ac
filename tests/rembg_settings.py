"""What the tests of background removal's backends share: small weights, and their settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.settings import Settings

WEIGHTS = Path(__file__).parents[1] / "models" / "u2net"


def settings(folder: Path, backend: str, **more: Any) -> Settings:
    wanted = {"rembg_model": "u2netp", "device": "cpu", **more}
    return Settings(_env_file=None, data_dir=folder, rembg_backend=backend, **wanted)
