"""How long a client waits for an answer, and when it sends its question again.

A worker may be lost with the question that it has taken. Clients send it again under the same id.
"""

from __future__ import annotations

import time

from pipeline.errors import IndexMissing, ServerUnavailable, TimedOut
from workers.routes import CLASSIFY_IMAGE, QUERY, QUERY_IMAGE, nobody_listens

# A worker that was just started on a busy machine takes ten seconds to be there; one that loads its
# model may be mute for a second.
LAST_LOOK_S = 8.0
LOOK_AGAIN_S = 5.0  # silence after which it is looked whether the query can still be answered
# Sent again after 5 s, after 10 more, 20 more: a worker that still loads its model may take two of
# them and be lost with both. No more: an image that ends its worker would end them all.
RESENDS = 3
SHOWN_LATER = (QUERY_IMAGE, CLASSIFY_IMAGE)  # the results that `imgrec result` shows


class AnswerWait:
    """The wait for one answer.

    After each silence of `pause()` seconds, the client looks for workers, and sends its question
    again if that is `due`.
    """

    def __init__(
        self, query_id: str, timeout_s: float, task: str, *, resends: int = RESENDS
    ) -> None:
        self._query_id, self._timeout_s, self._task = query_id, timeout_s, task
        self._deadline = time.monotonic() + timeout_s
        self._resends, self._step_s = resends, LOOK_AGAIN_S
        self._again_at = time.monotonic() + self._step_s

    def pause(self) -> float:
        """Return the seconds to listen before the next look."""
        return max(0.0, min(self._deadline - time.monotonic(), LOOK_AGAIN_S))

    @property
    def late(self) -> bool:
        return time.monotonic() >= self._deadline

    @property
    def due(self) -> bool:
        """Whether to send the question again, if none waits to be taken.

        While others wait, the workers are behind and nothing is lost: another copy would only make
        them slower.
        """
        return self._resends > 0 and time.monotonic() >= self._again_at

    def resent(self) -> None:
        """Wait twice as long before the next time."""
        self._resends, self._step_s = self._resends - 1, 2 * self._step_s
        self._again_at = time.monotonic() + self._step_s

    def timed_out(self) -> TimedOut:
        if self._task not in SHOWN_LATER:
            return TimedOut(
                f"The query workers did not answer within {self._timeout_s:g} s: they are busy, or "
                "still load their model. Try again."
            )
        return TimedOut(
            f"No result for query {self._query_id} after {self._timeout_s:g} s. 'imgrec result "
            f"{self._query_id}' may show it later; results are kept for 1 hour."
        )


def nobody_answers(index_missing: bool) -> ServerUnavailable | IndexMissing:
    """Return the error of a question that no worker serves."""
    if index_missing:
        return IndexMissing()  # the first thing to mend on a machine that has neither
    return ServerUnavailable(nobody_listens(QUERY))
