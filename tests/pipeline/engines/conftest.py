"""The servers that search vectors."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from engine_tools import shop_url
from milvus_server import Milvus
from postgres_server import Postgres


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


@pytest.fixture(scope="module")
def milvus_url() -> Iterator[str]:
    """A Milvus, see CONTRIBUTING.md; it is no dependency of the tests."""
    pytest.importorskip("pymilvus", reason="pymilvus is not installed")
    if url := os.environ.get("IMGREC_TEST_MILVUS", ""):
        yield url
        return
    server = Milvus()
    yield server.url
    server.close()
