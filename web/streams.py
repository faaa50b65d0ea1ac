"""How many event streams are open: each holds a connection and reads the job table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.store.api_keys import ApiKey
from web.problems import Refusal

RETRY_S = 10


class Streams:
    """Counts open streams, of each API key and in all."""

    def __init__(self, most: int, most_of_a_key: int) -> None:
        self._most, self._most_of_a_key = most, most_of_a_key
        self._open: Counter[str] = Counter()

    @property
    def open(self) -> int:
        """Streams that are open now."""
        return self._open.total()

    @contextmanager
    def hold(self, key: ApiKey | None) -> Iterator[None]:
        """Count a stream for as long as it is open.

        Raises:
            Refusal: too many are.
        """
        key_id = key.id if key else ""
        headers = {"Retry-After": str(RETRY_S)}
        if key is not None and self._open[key.id] >= self._most_of_a_key:
            raise Refusal(
                429,
                "too-many-requests",
                f"The key '{key.name}' has {self._most_of_a_key} event streams open "
                "(WEB_MAX_STREAMS_PER_KEY): close one first.",
                headers,
            )
        if self.open >= self._most:
            raise Refusal(
                503,
                "overloaded",
                f"The web server has {self._most} event streams open (WEB_MAX_STREAMS): try again "
                "later.",
                headers,
            )
        self._open[key_id] += 1
        try:
            yield
        finally:
            self._open[key_id] -= 1
            self._open += Counter()  # forget who has none
