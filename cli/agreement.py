"""Compare with the workers, for commands that need neither Redis nor workers."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.errors import ServerUnavailable

if TYPE_CHECKING:
    from workers.resources import Resources


def require_agreement(resources: Resources, queues: Sequence[str], *parts: str) -> None:
    """Refuse to write where running workers would not see it; without Redis there are none.

    Raises:
        SettingsDiffer: they work with another database or folder.
    """
    with contextlib.suppress(ServerUnavailable):  # this command works without Redis
        resources.require_agreement(queues, *parts)
