"""Do what a server is needed for once it is back."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from pipeline.errors import ServerUnavailable

log = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_S = 1.0


def wait_out(stopping: threading.Event, call: Callable[[], T]) -> T:
    """Call, and again while a server is away; for the end of work that is not to blame for it.

    The log has each reason once: a server that is away may come back as a read-only one.

    Raises:
        ServerUnavailable: this process is asked to end before the server is back.
    """
    told = ""
    while True:
        try:
            return call()
        except ServerUnavailable as error:
            if str(error) != told:
                told = str(error)
                log.warning("Waiting for a server: %s", told)
            if stopping.wait(RETRY_S):
                raise
