"""An image that could not be indexed, or only with a warning."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Failure:
    """One row of the ledger; a warning is indexed all the same."""

    path: str
    stage: str
    reason: str
    warning: bool = False
