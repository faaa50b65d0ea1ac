"""Send a question to the query workers and wait for what they say, or answer it in this process."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cli import celery_protocol
from cli.wiring import Wiring
from pipeline.errors import BadImage, ServerUnavailable
from pipeline.images.decode import Limits, read_image
from pipeline.images.message_image import message_image
from pipeline.settings import Settings
from workers.agreement import parts_of_query, require_agreement
from workers.answer_wait import LAST_LOOK_S, RESENDS, AnswerWait, nobody_answers
from workers.registry import Announcement, WorkerRegistry, serving
from workers.routes import QUERY

KEPT_S = 3600.0  # Celery's result_expires: a question nobody could look up later is not answered


def message(image: Path, settings: Settings) -> bytes:
    """Read and verify the image here, in the user's terminal; return the bytes to send.

    Raises:
        BadImage: naming the file.
    """
    limits = Limits.of(settings)
    try:
        return message_image(read_image(image, limits), limits, settings.preprocess_bg_color)
    except BadImage as error:
        raise BadImage(f"The image '{image}' cannot be used: {error}.", error.stage) from error


class PendingQuery:
    """One question: sent to the workers, or with `local` answered here."""

    def __init__(
        self, wiring: Wiring, task: str, args: tuple[Any, ...], timeout: float, local: bool
    ) -> None:
        """Send the question.

        Raises:
            ServerUnavailable: Redis does not answer.
        """
        self.query_id = uuid.uuid4().hex
        self._wiring, self._local = wiring, local
        self._task, self._args, self._timeout = task, args, timeout
        if not local:
            self._require_agreement()

    def answer(self, *, needs_index: bool = True) -> dict[str, Any]:
        """Wait for the answer.

        Raises:
            ImgrecError: see `wait_for`, and what the task raised.
        """
        if self._local:
            return self._wiring.local.answer(self._task, self.query_id, self._args)
        return wait_for(
            self._wiring,
            self.query_id,
            self._timeout,
            self._task,
            self._send,
            needs_index=needs_index,
        )

    def _require_agreement(self) -> None:
        """Send the question; refuse its answer where it would be that of another shop.

        It changes nothing, so it is sent before the comparison, on the same way to Redis.
        """
        settings = self._wiring.settings
        parts = parts_of_query(self._task, self._args, settings)
        present = self._send(ask_workers=bool(parts))
        if serving(present, [QUERY]):
            # The addresses of stores are compared, not their ids: a question asks no store.
            read = ["database"] if settings.artifacts_url else parts
            mine = self._wiring.folders.read(*read)
            require_agreement(WorkerRegistry(settings.redis_url), mine, [QUERY], parts, present)

    def _send(self, *, ask_workers: bool = False) -> list[Announcement]:
        expires_s = max(self._timeout, 60.0) + KEPT_S
        return celery_protocol.send(
            self._task, self.query_id, self._args, expires_s, ask_workers=ask_workers
        )


def wait_for(
    wiring: Wiring,
    query_id: str,
    timeout: float,
    task: str,
    resend: Callable[[], object] | None = None,
    *,
    needs_index: bool = True,
) -> dict[str, Any]:
    """Wait for an answer; a query lost with its worker is sent again under the same id.

    Raises:
        TimedOut: no answer in time. ServerUnavailable: Redis is away, or no worker serves queries.
        ImgrecError: what the worker raised.
    """
    wait = AnswerWait(query_id, timeout, task, resends=RESENDS if resend else 0)
    with celery_protocol.listening(query_id) as listener:
        while True:
            answer: dict[str, Any] | None = listener.wait(wait.pause())
            if answer is not None:
                return answer
            late = wait.late  # before the looks, which take seconds
            try:
                dispatcher = wiring.dispatcher  # only now: it brings Celery with it
                served = dispatcher.workers()[QUERY] or dispatcher.workers(LAST_LOOK_S)[QUERY]
                due = resend and served and not late and wait.due
                if due and resend and not dispatcher.queue_length(QUERY):
                    resend()
                    wait.resent()
            except ServerUnavailable:
                if late:
                    raise
                continue  # the listener hears whether Redis comes back
            if not served:
                missing = needs_index and wiring.resources.versions.current_name() is None
                raise nobody_answers(missing)
            if late:
                raise wait.timed_out()
