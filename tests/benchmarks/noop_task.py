"""A Celery app with one task that does nothing, asked by Celery's own client: what Celery costs."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

URL = os.environ.get("REDIS_URL")
QUEUE = "empty"
app = Celery("empty", broker=URL, backend=URL, set_as_current=False)
app.conf.update(
    accept_content=["json", "msgpack"],
    broker_transport_options={"global_keyprefix": "empty:"},
    result_backend_transport_options={"global_keyprefix": "empty:"},
)


@app.task(name="empty.task")
def nothing(data: bytes, top_k: int) -> dict[str, Any]:
    return {"matches": [{"rank": rank} for rank in range(top_k)]}


def ask(data: bytes, top_k: int) -> Any:
    """Send a picture to the task that does nothing, and wait."""
    sent = nothing.apply_async((data, top_k), queue=QUEUE, serializer="msgpack")
    return sent.get(timeout=60)
