"""Look at a store again and again, beside the work."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from weakref import WeakMethod

from pipeline.errors import ImgrecError, IndexBroken

log = logging.getLogger(__name__)

DAMAGED_PAUSE_S = 60.0  # each look fetches a damaged object whole, which may be gigabytes


class Follower:
    """Repeats a look in a thread of its own; a store that is away is waited for."""

    def __init__(self, name: str, look: Callable[[], object], every_s: float) -> None:
        """Do nothing yet.

        Args:
            look: a method; the thread ends when nobody else holds its object any more.
        """
        self._name, self._every_s = name, every_s
        self._look = WeakMethod(look)
        self._turn = threading.Lock()
        self._thread: threading.Thread | None = None
        self._problem = ""

    def start(self) -> None:
        """Begin, unless it has begun."""
        with self._turn:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()

    def _run(self) -> None:
        pause, pause_s = threading.Event(), self._every_s
        while (look := self._look()) is not None:
            damaged = self._once(look)
            del look
            pause_s = min(2 * pause_s, DAMAGED_PAUSE_S) if damaged else self._every_s
            pause.wait(pause_s)

    def _once(self, look: Callable[[], object]) -> bool:
        """Look; tell whether what the store holds is damaged, so that it may be fetched rarely."""
        try:
            look()
        except (ImgrecError, OSError) as error:
            if str(error) != self._problem:  # told once
                log.warning("%s What is here stays in use.", error)
            self._problem = str(error)
            return isinstance(error, IndexBroken)
        except Exception as error:
            if str(error) != self._problem:
                log.exception("The look at the store failed; it is repeated.")
            self._problem = str(error)
        else:
            if self._problem:
                log.info("The store can be read again.")
            self._problem = ""
        return False
