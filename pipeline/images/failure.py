"""An image that could not be indexed, or only with a warning."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Failure:
    """An image that a rebuild left out, or indexed with a warning."""

    path: str
    stage: str
    reason: str
    warning: bool = False
