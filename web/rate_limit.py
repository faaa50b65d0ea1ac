"""A token bucket for each client, in Redis, so that all web servers count together."""

from __future__ import annotations

import math

import redis
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from pipeline.store.redis_client import PREFIX
from web.problems import Refusal

# KEYS[1]: the bucket; ARGV: tokens a second, size. By Redis's clock. Returns seconds to wait.
TAKE = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local rate, size = tonumber(ARGV[1]), tonumber(ARGV[2])
local bucket = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens = math.min(size, (tonumber(bucket[1]) or size)
    + math.max(0, now - (tonumber(bucket[2]) or now)) * rate)
local wait = 0
if tokens >= 1 then tokens = tokens - 1 else wait = (1 - tokens) / rate end
redis.call('HSET', KEYS[1], 'tokens', tostring(tokens), 'at', string.format('%.6f', now))
redis.call('EXPIRE', KEYS[1], math.ceil(size / rate) + 1)
return tostring(wait)
"""


class RateLimiter:
    """Counts the requests of clients."""

    def __init__(self, url: str, burst: int) -> None:
        self._burst = burst
        self._client = redis.asyncio.Redis.from_url(
            url, socket_timeout=1.0, socket_connect_timeout=1.0, retry=Retry(NoBackoff(), 0)
        )
        self._take = self._client.register_script(TAKE)

    async def take(self, client: str, rate: float) -> None:
        """Count one request.

        While Redis is away nothing is counted: whatever costs something needs Redis itself.

        Raises:
            Refusal: the client has sent too many.
        """
        if not rate:
            return
        try:
            wait_s = float(await self._take([f"{PREFIX}rate:{client}"], [rate, self._burst]))
        except (redis.RedisError, OSError):
            return
        if wait_s:
            raise Refusal(
                429,
                "too-many-requests",
                f"More than {rate:g} requests a second (RATE_LIMIT): try again in "
                f"{math.ceil(wait_s)} s.",
                {"Retry-After": str(math.ceil(wait_s))},
            )

    async def close(self) -> None:
        await self._client.aclose()
