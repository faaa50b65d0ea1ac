"""The servers that search vectors."""

from __future__ import annotations

import os
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


@pytest.fixture(scope="session")
def milvus_url() -> str:
    """A Milvus that was started for the tests, see CONTRIBUTING.md; it is no dependency of them."""
    pytest.importorskip("pymilvus", reason="pymilvus is not installed")
    url = os.environ.get("IMGREC_TEST_MILVUS", "")
    if not url:
        pytest.skip("IMGREC_TEST_MILVUS names no Milvus")
    return url
