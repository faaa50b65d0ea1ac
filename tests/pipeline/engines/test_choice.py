"""Which engine the settings name, and what of them can never work."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.engines.choice import engines
from pipeline.engines.milvus_server import MilvusServer, NotLoaded
from pipeline.errors import DatabaseFailed, ServerUnavailable, WrongUse
from pipeline.index.engine import age_s, is_own_name, new_name
from pipeline.settings import Settings
from pipeline.urls import vector_addresses


def made(**settings: Any) -> Settings:
    return Settings(_env_file=None, **settings)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("", "faiss"),
        ("postgresql://u:p@h/shop", "pgvector"),
        ("postgresql://h1,h2:5433/shop", "pgvector"),
        ("milvus://h:19530/shop", "milvus"),
        ("milvus+tls://h", "milvus"),
    ],
)
def test_the_address_names_the_engine_and_nothing_is_connected(url: str, name: str) -> None:
    assert engines(made(vector_url=url), lambda: "me").current.name == name


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("mysql://h/shop", "must be empty, or start with postgresql://, milvus:// or milvus\\+tls"),
        ("milvus://user:secret@h/shop", "the login of Milvus belongs into VECTOR_TOKEN"),
        ("milvus:///shop", "is not an address like"),
        ("milvus://h:port/shop", "is not an address like"),
    ],
)
def test_an_address_that_can_never_work_is_refused_without_its_secret(
    url: str, reason: str
) -> None:
    with pytest.raises(ValidationError, match=reason) as refusal:
        made(vector_url=url)
    assert "secret" not in str(refusal.value.errors()[0]["msg"])


def test_replicas_need_a_postgresql() -> None:
    with pytest.raises(WrongUse, match="VECTOR_URL no server"):
        engines(made(vector_read_urls="postgresql://h/shop"), lambda: "me")
    both = made(vector_url="milvus://h", vector_read_urls="postgresql://h/shop")
    with pytest.raises(WrongUse, match="is for PostgreSQL"):
        engines(both, lambda: "me")


def test_a_list_of_replicas_may_hold_addresses_of_several_hosts() -> None:
    first, second = "postgresql://u@h1,h2/shop", "postgres://u@h3/shop"
    assert vector_addresses(f" {first}, {second} ,") == [first, second]
    assert vector_addresses("") == []


def test_a_name_tells_its_age_and_is_given_once() -> None:
    assert new_name() != new_name()
    assert 0 <= age_s(new_name()) < 60
    assert age_s("imgrec_index_0000000aabcdef01") > 10**9


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        (2, "Fail connecting to server", ServerUnavailable),
        (None, "Retry timeout: 10.0s, StatusCode.UNAVAILABLE", ServerUnavailable),
        (101, "collection not loaded", NotLoaded),
        (1100, "invalid parameter", DatabaseFailed),
    ],
)
def test_an_error_of_milvus_is_a_sentence_of_its_kind(
    code: int | None, text: str, kind: type[Exception]
) -> None:
    error = MilvusServer("milvus://h/shop", "secret")._sentence(RuntimeError(text), code)
    assert type(error) is kind
    assert text in str(error)
    assert "milvus://h/shop" in str(error)
    assert "secret" not in str(error)


def test_somebodys_copy_of_a_collection_is_not_ours() -> None:
    name = new_name()
    assert is_own_name(name)
    assert age_s(name) < 60
    for other in (f"{name}_old", "imgrec_index_backup", f"my_{name}", ""):
        assert not is_own_name(other)


@pytest.mark.parametrize(
    ("url", "uri"),
    [("milvus://h", "http://h:19530"), ("milvus+tls://[::1]:9/shop", "https://[::1]:9")],
)
def test_a_milvus_is_addressed_by_its_name_or_number(url: str, uri: str) -> None:
    assert MilvusServer(url, "")._uri == uri


def test_no_budget_of_memory_is_none(settings: Settings) -> None:
    engine = engines(settings.model_copy(update={"index_memory": 0}), str).current
    assert vars(engine)["_budget"] is None
