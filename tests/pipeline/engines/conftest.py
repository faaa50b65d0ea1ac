"""A PostgreSQL with pgvector."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from postgres_server import Postgres


def shop_url(server: Postgres) -> str:
    return f"postgresql://shop:secret@127.0.0.1:{server.port}/shop"


@pytest.fixture(scope="module")
def vector_server() -> Iterator[Postgres]:
    server = Postgres()
    server.admin("CREATE USER shop PASSWORD 'secret'")
    server.admin("CREATE DATABASE shop OWNER shop")
    server.admin("CREATE EXTENSION vector", "shop")
    yield server
    server.close()


@pytest.fixture(scope="module")
def vector_url(vector_server: Postgres) -> str:
    return shop_url(vector_server)
