"""Send a question to the query workers and wait for what they say, or answer it in this process."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cli import celery_protocol
from cli.wiring import Wiring
from pipeline.errors import BadImage, IndexMissing, ServerUnavailable, TimedOut
from pipeline.images.decode import MIN_SIDE, WORK_SIDE, Limits, decode, encode_jpeg, read_image
from pipeline.settings import Settings
from pipeline.store.identity import Identifier
from workers.roll_call import Announcement, RollCall, require_agreement, serving
from workers.routes import CLASSIFY_IMAGE, QUERY, QUERY_IMAGE

# A message of at most this many bytes carries the file as it is, so that its content hash finds
# cached vectors; a larger one carries the image at the size that workers reduce it to anyway.
MESSAGE_BYTES = 512 * 1024
# A worker that was just started on a busy machine takes ten seconds to be there; one that loads its
# model may be mute for a second.
LAST_LOOK_S = 8.0
LOOK_AGAIN_S = 5.0  # silence after which it is looked whether the query can still be answered
# Sent again after 5 s, after 10 more, 20 more: a worker that still loads its model may take two of
# them and be lost with both. No more: an image that ends its worker would end them all.
RESENDS = 3
KEPT_S = 3600.0  # Celery's result_expires: a question nobody could look up later is not answered


def message(image: Path, settings: Settings) -> bytes:
    """Read and verify the image here, in the user's terminal; return the bytes to send.

    Raises:
        BadImage: naming the file.
    """
    limits = Limits(settings.max_image_pixels, settings.max_image_bytes)
    try:
        data = read_image(image, limits)
        large = len(data) > MESSAGE_BYTES
        side = WORK_SIDE if large else MIN_SIDE  # what is sent as it is needs only the check
        decoded = decode(data, limits, settings.preprocess_bg_color, side)
    except BadImage as error:
        raise BadImage(f"The image '{image}' cannot be used: {error}.", error.stage) from error
    return encode_jpeg(decoded) if large else data


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
            self._wiring, self.query_id, self._timeout, self._send, needs_index=needs_index
        )

    def _require_agreement(self) -> None:
        """Send the question; refuse its answer where it would be that of another shop.

        A question may come from a host that has neither an index nor heads. One that has them
        expects an answer from them. It changes nothing, so it is sent before the comparison, on
        the same way to Redis.
        """
        settings = self._wiring.settings
        parts = []
        if self._task == QUERY_IMAGE and (settings.index_dir / "CURRENT").is_file():
            parts.append("data")
        if self._task == CLASSIFY_IMAGE and self._args[1:] and has_heads(settings.models_dir):
            parts.append("models")
        present = self._send(ask_workers=bool(parts))
        if serving(present, [QUERY]):
            mine = Identifier(settings, None).read(*parts)
            require_agreement(RollCall(settings.redis_url), mine, [QUERY], parts, present)

    def _send(self, *, ask_workers: bool = False) -> list[Announcement]:
        expires_s = max(self._timeout, 60.0) + KEPT_S
        return celery_protocol.send(
            self._task, self.query_id, self._args, expires_s, ask_workers=ask_workers
        )


def has_heads(models: Path) -> bool:
    """Tell whether heads were trained here."""
    return next(models.glob("*/*/model.pt"), None) is not None


def wait_for(
    wiring: Wiring,
    query_id: str,
    timeout: float,
    resend: Callable[[], object] | None = None,
    *,
    needs_index: bool = True,
) -> dict[str, Any]:
    """Wait for an answer; a query lost with its worker is sent again under the same id.

    Raises:
        TimedOut: no answer in time. ServerUnavailable: Redis is away, or no worker serves queries.
        ImgrecError: what the worker raised.
    """
    deadline = time.monotonic() + timeout
    resends, pause = (RESENDS if resend else 0), LOOK_AGAIN_S
    again_at = time.monotonic() + pause
    with celery_protocol.listening(query_id) as listener:
        while True:
            remaining_s = deadline - time.monotonic()
            answer: dict[str, Any] | None = listener.wait(min(remaining_s, LOOK_AGAIN_S))
            if answer is not None:
                return answer
            late = time.monotonic() >= deadline
            try:
                dispatcher = wiring.dispatcher  # only now: it brings Celery with it
                served = dispatcher.workers()[QUERY] or dispatcher.workers(LAST_LOOK_S)[QUERY]
                # While others still wait to be taken, the workers are behind and nothing is lost:
                # to send it again would only make them slower.
                due = resends > 0 and time.monotonic() >= again_at
                if served and not late and due and resend and not dispatcher.queue_length(QUERY):
                    resend()
                    resends, pause = resends - 1, 2 * pause
                    again_at = time.monotonic() + pause
            except ServerUnavailable:
                if late:
                    raise
                continue  # the listener hears whether Redis comes back
            if not served:
                raise _nobody_answers(wiring, needs_index)
            if late:
                raise TimedOut(
                    f"No result for query {query_id} after {timeout:g} s. 'imgrec result "
                    f"{query_id}' may show it later; results are kept for 1 hour."
                )


def _nobody_answers(wiring: Wiring, needs_index: bool) -> ServerUnavailable | IndexMissing:
    if needs_index and wiring.resources.versions.current_name() is None:
        return IndexMissing()  # the first thing to mend on a machine that has neither
    return ServerUnavailable(
        "No worker listens on queue 'query': start one with 'celery worker -Q query', or all with "
        "'imgrec up'."
    )
