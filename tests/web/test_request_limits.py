"""The limits that hold for all requests together."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from web.problems import Refusal
from web.request_limits import HOLD, RequestLimits


def test_what_a_request_fetches_counts_until_it_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("web.request_limits.ALL_BODIES", 100)
    fetched = asyncio.Event()
    release = asyncio.Event()
    refused: list[Refusal] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            scope[HOLD](60)
        except Refusal as refusal:
            refused.append(refusal)
            return
        fetched.set()
        await release.wait()

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        raise AssertionError

    limits = RequestLimits(app, max_body=10)

    def ask() -> Any:
        return asyncio.ensure_future(limits({"type": "http", "headers": []}, receive, send))

    async def run() -> None:
        first = ask()
        await fetched.wait()
        await ask()
        assert [refusal.kind for refusal in refused] == ["overloaded"]
        release.set()
        await first
        await ask()
        assert len(refused) == 1

    asyncio.run(run())
