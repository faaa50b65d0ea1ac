"""Do what a server is needed for once it is back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from pipeline.errors import ServerUnavailable

T = TypeVar("T")

RETRY_S = 1.0


def wait_out(stopping: threading.Event, call: Callable[[], T]) -> T:
    """Call, and again while a server is away; for the end of work that is not to blame for it.

    Raises:
        ServerUnavailable: this process is asked to end before the server is back.
    """
    while True:
        try:
            return call()
        except ServerUnavailable:
            if stopping.wait(RETRY_S):
                raise
