"""Named lines at which the fault tests kill, freeze or fail a process.

Nothing happens here: the tests bring the actions, and install them by setting `on_failpoint`.
"""

from __future__ import annotations

from collections.abc import Callable

on_failpoint: Callable[[str, str], None] | None = None


def failpoint(name: str, detail: str = "") -> None:
    """Mark a line; `detail` tells apart the times that it is passed, e.g. an image's path."""
    if on_failpoint is not None:
        on_failpoint(name, detail)
