"""What the web server's requests share, made once for its process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import FastAPI, Request

from pipeline.allowed_hosts import AllowedHosts
from pipeline.cgroup import cores
from pipeline.errors import ImgrecError, ServerUnavailable
from pipeline.images.decode import Limits
from pipeline.outbound import Client
from pipeline.settings import Settings
from web.agreement import Agreement
from web.answers import Answers
from web.process_metrics import WebMetrics
from web.rate_limit import RateLimiter
from web.streams import Streams
from workers.agreement import parts_of_query
from workers.resources import Resources
from workers.routes import QUERY

FETCHERS = 8  # images that are fetched at the same time
THREADS = 32
PLANNERS = 4  # folders that are listed at the same time
DRAIN_S = 2.5  # queries that wait when the server is asked to stop get so long


class Web:
    """The resources of one web server."""

    def __init__(self, resources: Resources, *, public: bool = False) -> None:
        """Hold nothing yet but what costs nothing.

        Args:
            public: whether the server listens on more than a loopback address.
        """
        self.resources = resources
        self.settings: Settings = resources.settings
        self.public = public
        self.stopping = asyncio.Event()
        self.metrics = WebMetrics()
        self.answers = Answers(
            self.settings.redis_url,
            resources.dispatcher.workers,
            self.has_index,
            self.settings.web_max_queries,
            lambda task, seconds: self.metrics.queries.labels(task).observe(seconds),
        )
        self.agreement = Agreement(resources)
        self.streams = Streams(self.settings.web_max_streams, self.settings.web_max_streams_per_key)
        self.limiter = RateLimiter(self.settings.redis_url, self.settings.rate_burst)
        # Images are verified beside each other on few threads: each may take 200 MB.
        self.decoders = ThreadPoolExecutor(max(2, cores()), "decode")
        self.fetchers = ThreadPoolExecutor(FETCHERS, "fetch")
        self.image_client = Client(
            AllowedHosts.parse(self.settings.image_url_hosts),
            "IMAGE_URL_HOSTS",
            min(int(self.settings.max_image_bytes), int(self.settings.web_max_body)),
        )
        self.planners = ThreadPoolExecutor(PLANNERS, "plan")
        self.free_planners = asyncio.Semaphore(PLANNERS)
        self.limits = Limits.of(self.settings)

    async def ask(
        self, task: str, args: tuple[Any, ...], *, needs_index: bool = True
    ) -> dict[str, Any]:
        """Ask a query worker that works with this server's data; return its answer.

        Raises:
            SettingsDiffer: they work with other data. ImgrecError: see `Answers.ask`.
        """
        parts = await asyncio.to_thread(parts_of_query, task, args, self.settings)
        await self.agreement.require((QUERY,), *parts)
        timeout_s = self.settings.web_timeout_s
        _, answer = await self.answers.ask(task, args, timeout_s, needs_index=needs_index)
        return dict(answer)

    def has_index(self) -> bool:
        try:
            return self.resources.versions.is_published()
        except ImgrecError:
            return True  # a broken pointer is another error, which a worker explains

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen for answers within a block."""
        # Python's own has six threads on two cores: a database that is away would hold them all.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, "work"))
        listener = asyncio.create_task(self.answers.run(), name="answers")
        drain = asyncio.create_task(self._drain(), name="drain")
        try:
            yield
        finally:
            for task in (listener, drain):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            await self.answers.close()
            await self.limiter.close()
            for pool in (self.decoders, self.fetchers, self.planners):
                pool.shutdown(wait=False, cancel_futures=True)

    async def pause(self, seconds: float) -> None:
        """Wait, but no longer than until the server is asked to stop."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stopping.wait(), seconds)

    async def _drain(self) -> None:
        """End what still waits a moment after the server was asked to stop."""
        await self.stopping.wait()
        await asyncio.sleep(DRAIN_S)
        while True:
            self.answers.end_all(
                ServerUnavailable("The web server is stopping: send the request again.")
            )
            await asyncio.sleep(0.1)


def web_of(request: Request) -> Web:
    """Return what the requests of this server share."""
    app: FastAPI = request.app
    web: Web = app.state.web
    return web
