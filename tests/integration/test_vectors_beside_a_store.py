"""VECTOR_URL together with ARTIFACTS_URL: hosts share two servers and no folder."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from inline_worker import InlineWorker
from live_stack import until
from postgres_server import Postgres
from s3_server import S3Server

from pipeline.index.engine import engine_of
from pipeline.rebuild.migrate import migrate
from workers import query
from workers.resources import Resources
from workers.rollback import roll_back


@pytest.fixture
def vector_url() -> Iterator[str]:
    server = Postgres()
    server.admin("CREATE USER shop PASSWORD 'secret'")
    server.admin("CREATE DATABASE shop OWNER shop")
    server.admin("CREATE EXTENSION vector", "shop")
    yield f"postgresql://shop:secret@127.0.0.1:{server.port}/shop"
    server.close()


@pytest.fixture
def shop(
    inline_worker: InlineWorker, vector_url: str, s3: S3Server, quick_followers: None
) -> InlineWorker:
    """The workers of the host that rebuilds."""
    inline_worker.start_again(artifacts_url=f"s3://shop/{uuid.uuid4().hex}", vector_url=vector_url)
    inline_worker.toy.versions = inline_worker.resources.versions
    return inline_worker


@pytest.fixture
def host(shop: InlineWorker, tmp_path: Path) -> Callable[[str], Resources]:
    """Make another host: with a data folder of its own."""

    def host(name: str) -> Resources:
        settings = shop.resources.settings.model_copy(update={"data_dir": tmp_path / name})
        return Resources(settings, shop, cache=shop.memory, clip=shop.resources.clip)

    return host


def ask(resources: Resources, file: Path, **options: Any) -> tuple[str, str]:
    """Return the version that answered, and the best match."""
    answer = query.query_image(resources, file.read_bytes(), 3, options)
    return answer["index_version"], answer["matches"][0]["filename"]


def wait_for(resources: Resources, file: Path, expected: tuple[str, str]) -> None:
    """Wait until a host has seen what another has published."""
    until(lambda: ask(resources, file) == expected, f"{expected[0]} answers", 20)


def test_a_second_host_queries_rolls_back_and_migrates_what_the_first_has_built(
    shop: InlineWorker, host: Callable[[str], Resources], tmp_path: Path
) -> None:
    photo = shop.toy.root / "kind0/04.png"
    shop.rebuild()
    second = host("second")
    assert ask(second, photo) == ("v0001", "kind0/04.png")
    assert engine_of(second.versions.current().manifest) == "pgvector"
    assert not list((tmp_path / "second").rglob("index.bin"))

    shop.toy.draw("kind0/new.png", seed=99)
    shop.rebuild()
    new = shop.toy.root / "kind0/new.png"
    for resources in (shop.resources, second, host("third")):
        wait_for(resources, new, ("v0002", "kind0/new.png"))
    searched = query.query_image(second, new.read_bytes(), 3, {"explain": True})["search"]
    assert "of 21 rows allowed" in searched  # by PostgreSQL

    assert roll_back(second, None)[:1] == ("v0002",)
    for resources in (shop.resources, second, host("fourth")):
        wait_for(resources, photo, ("v0001", "kind0/04.png"))
    assert roll_back(shop.resources, "v0002")[1].name == "v0002"

    with second.versions.lock():
        _, moved = migrate(second.versions, second.engines, "faiss")
    assert engine_of(moved.manifest) == "faiss"
    for resources in (shop.resources, second, host("fifth")):
        wait_for(resources, new, (moved.name, "kind0/new.png"))
    assert roll_back(shop.resources, "v0001")[1].name == "v0001"  # its table is still there
    assert ask(host("sixth"), photo) == ("v0001", "kind0/04.png")
