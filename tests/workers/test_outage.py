"""What a worker does while a server that it needs is away."""

from __future__ import annotations

import logging
import threading

import pytest

from pipeline.errors import ServerUnavailable
from workers import outage
from workers.outage import wait_out


def test_each_reason_for_waiting_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outage, "RETRY_S", 0.0)
    caplog.set_level(logging.WARNING)
    reasons = iter(["It does not answer.", "It does not answer.", "It is read-only."])

    def release() -> str:
        for reason in reasons:
            raise ServerUnavailable(reason)
        return "released"

    assert wait_out(threading.Event(), release) == "released"
    assert [record.getMessage() for record in caplog.records] == [
        "Waiting for a server: It does not answer.",
        "Waiting for a server: It is read-only.",
    ]


def test_a_worker_that_is_asked_to_end_does_not_wait() -> None:
    stopping = threading.Event()
    stopping.set()

    def release() -> None:
        raise ServerUnavailable("It does not answer.")

    with pytest.raises(ServerUnavailable):
        wait_out(stopping, release)
