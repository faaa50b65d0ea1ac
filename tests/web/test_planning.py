"""Rebuilds that are planned at the same time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from pipeline.errors import Overloaded
from pipeline.settings import Settings
from web.context import PLANNERS, Web
from web.jobs import start_plan
from workers.dispatch import CeleryDispatcher
from workers.resources import Resources


def test_a_rebuild_for_which_no_thread_is_free_is_refused(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("web.jobs.advance", lambda resources, job_id: None)
    monkeypatch.setattr("web.jobs.PLANNER_WAIT_S", 0.1)
    web = Web(Resources(settings, CeleryDispatcher(settings.redis_url)))
    listed = threading.Event()

    def plan(created: Callable[[str], None]) -> str:
        created("job")
        listed.wait(60)
        return "job"

    async def run() -> None:
        for _ in range(PLANNERS):
            assert await start_plan(web, plan) == "job"
        with pytest.raises(Overloaded, match=f"already lists {PLANNERS} folders"):
            await asyncio.wait_for(start_plan(web, plan), 10)
        monkeypatch.setattr("web.jobs.PLANNER_WAIT_S", 10.0)
        listed.set()
        assert await start_plan(web, plan) == "job"

    asyncio.run(run())
    web.planners.shutdown()
