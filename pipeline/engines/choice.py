"""The engines that the settings name."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.errors import WrongUse
from pipeline.index.engine import FAISS, Engine, Engines
from pipeline.index.faiss_engine import FaissEngine
from pipeline.settings import Settings
from pipeline.urls import vector_addresses


def engines(settings: Settings, owner: Callable[[], str]) -> Engines:
    """Return FAISS and the engine at `VECTOR_URL`, which then builds new versions.

    Args:
        owner: returns the id of the data folder, whose versions the engine keeps.
    """
    choices: dict[str, Engine] = {
        FAISS: FaissEngine(
            settings.flat_max_vectors, settings.threads, settings.index_memory or None
        )
    }
    if not settings.vector_url:
        if settings.vector_read_urls:
            raise WrongUse("VECTOR_READ_URLS names replicas, but VECTOR_URL no server: set both.")
        return Engines(choices)
    if settings.vector_url.startswith("milvus"):
        from pipeline.engines.milvus import MilvusEngine
        from pipeline.engines.milvus_server import MilvusServer

        if settings.vector_read_urls:
            raise WrongUse("VECTOR_READ_URLS is for PostgreSQL: Milvus has VECTOR_REPLICAS.")
        milvus = MilvusEngine(
            MilvusServer(settings.vector_url, settings.vector_token),
            owner,
            settings.vector_replicas,
        )
        return Engines({**choices, milvus.name: milvus}, milvus.name)
    from pipeline.engines.pgvector import PgvectorEngine
    from pipeline.engines.pgvector_server import PgvectorServer

    server = PgvectorServer(settings.vector_url, vector_addresses(settings.vector_read_urls))
    engine = PgvectorEngine(server, owner, settings.index_memory or None)
    return Engines({**choices, engine.name: engine}, engine.name)
