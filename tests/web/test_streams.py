"""Event streams: each holds a connection, so they are few."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from live_stack import until
from web_stand import Answer, HttpClient, serve_here

from pipeline.settings import Settings
from pipeline.store.api_keys import ApiKeys
from pipeline.store.database import Database
from pipeline.store.jobs import Jobs
from web.context import Web
from workers.dispatch import CeleryDispatcher
from workers.resources import Resources


@pytest.fixture
def served(settings: Settings) -> Iterator[tuple[HttpClient, Web]]:
    settings.data_dir.mkdir()
    limits = {"web_max_streams": 3, "web_max_streams_per_key": 2, "rate_limit": 0}
    settings = settings.model_copy(update=limits)
    with serve_here(Resources(settings, CeleryDispatcher(settings.redis_url))) as served:
        yield served


@pytest.fixture
def job(settings: Settings) -> str:
    return Jobs(Database(settings.database_url)).create(
        "/products",
        full=False,
        save_preprocessed=False,
        fingerprint=None,
        base_version=None,
        lease_s=600,
    )


def follow(client: HttpClient, job: str, key: str = "") -> socket.socket:
    """Open a stream and read its first event."""
    connection = client.connect()
    authorization = f"Authorization: Bearer {key}\r\n" if key else ""
    head = f"GET /v1/jobs/{job}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n{authorization}\r\n"
    connection.sendall(head.encode())
    data = b""
    while b"event: progress" not in data:
        piece = connection.recv(4096)
        assert piece, data
        data += piece
    assert b" 200 " in data.split(b"\r\n")[0]
    return connection


def refused(answer: Answer, status: int) -> str:
    assert answer.status == status
    assert int(answer.headers["Retry-After"]) > 0
    return answer.detail


def test_a_key_and_the_server_keep_a_limited_number_of_streams_open(
    served: tuple[HttpClient, Web], settings: Settings, job: str
) -> None:
    client, web = served
    keys = ApiKeys(Database(settings.database_url))
    first, second = (keys.create(name, "admin")[1] for name in ("first", "second"))
    path = f"/v1/jobs/{job}/events"
    until(lambda: client.get("/v1/jobs", key=first).status == 200, "the keys are known", 20)
    streams = [follow(client, job, first), follow(client, job, first)]
    detail = refused(client.get(path, key=first), 429)
    assert "'first' has 2 event streams open (WEB_MAX_STREAMS_PER_KEY)" in detail
    streams.append(follow(client, job, second))
    detail = refused(client.get(path, key=second), 503)
    assert "3 event streams open (WEB_MAX_STREAMS)" in detail
    assert client.get(f"/v1/jobs/{job}", key=second).status == 200
    streams.pop(0).close()
    until(lambda: web.streams.open == 2, "the server notices who has left", 30)
    streams.append(follow(client, job, first))
    for stream in streams:
        stream.close()
    until(lambda: web.streams.open == 0, "all have left", 30)


def test_a_stream_that_is_refused_counts_for_nothing(
    served: tuple[HttpClient, Web], job: str
) -> None:
    client, web = served
    for _ in range(5):
        assert client.get("/v1/jobs/none/events").status == 404
    assert web.streams.open == 0
    streams = [follow(client, job) for _ in range(3)]  # one person without keys has no key's limit
    refused(client.get(f"/v1/jobs/{job}/events"), 503)
    Jobs(web.resources.database).cancel(job)
    for stream in streams:
        data = b""
        while b"event: end" not in data:
            data += stream.recv(4096)
        stream.close()
    until(lambda: web.streams.open == 0, "ended streams are forgotten", 30)
