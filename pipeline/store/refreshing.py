"""Hold something from the database, and look now and then whether it has changed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from pipeline.errors import ServerUnavailable

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
Held = TypeVar("Held")


class RevisionCache(Generic[Held]):
    """A value that is loaded again when its revision has changed, at most a second later."""

    def __init__(self, revision: Callable[[], int], load: Callable[[], Held]) -> None:
        self._revision = revision
        self._load = load
        self._lock = threading.Lock()
        self._held: tuple[int, Held] | None = None
        self._look_at = 0.0
        self._away = False  # then it is waited for as ever: each look may take seconds

    def get(self, now: bool = False) -> Held:
        """Return the value; the last one, while the database is away.

        Args:
            now: look at once, for who asks about what was changed a moment before.

        Raises:
            ServerUnavailable: the database does not answer and nothing is held yet.
        """
        value, patient = self._held, not now or self._away
        if value and patient and (time.monotonic() < self._look_at or self._lock.locked()):
            return value[1]
        with self._lock:
            value = self._held
            if value and patient and time.monotonic() < self._look_at:
                return value[1]
            try:
                revision = self._revision()
                if value is None or revision != value[0]:
                    value = self._held = (revision, self._load())
                self._away = False
            except ServerUnavailable as error:
                self._away = True
                if value is None:
                    raise
                log.warning("The last known data stays in use: %s", error)
            self._look_at = time.monotonic() + LOOK_EVERY_S
            return value[1]
