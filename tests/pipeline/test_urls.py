"""Addresses: the same for all who read them, a sentence where they cannot work, no secret shown."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from kombu import Connection

from pipeline.errors import ServerUnavailable, WrongUse
from pipeline.settings import load_settings
from pipeline.store.redis_client import trouble
from pipeline.urls import celery_address, redis_address, without_password

TLS = "ssl_cert_reqs=required"


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        ("redis://host", "redis://host/0"),
        ("redis://host:6380/2", "redis://host:6380/2"),
        ("redis://host?db=3", "redis://host/3"),
        ("redis://[::1]:6379/1", "redis://[::1]:6379/1"),
        ("redis://:p%40ss@host/0", "redis://:p%40ss@host/0"),
        ("redis://:p@ss@host/0", "redis://:p@ss@host/0"),
        ("rediss://host", f"rediss://host/0?{TLS}"),
        ("rediss://host/0?ssl_cert_reqs=CERT_REQUIRED", f"rediss://host/0?{TLS}"),
        ("rediss://host/0?ssl_cert_reqs=CERT_NONE", "rediss://host/0?ssl_cert_reqs=none"),
        (
            "rediss://host/0?ssl_check_hostname=no",
            f"rediss://host/0?ssl_check_hostname=false&{TLS}",
        ),
        ("unix:///run/redis.sock?db=2", "unix:///run/redis.sock?db=2"),
    ],
)
def test_an_address_is_made_alike_for_all_who_read_it(given: str, normal: str) -> None:
    assert redis_address(given) == normal
    assert redis_address(normal) == normal


def as_celery_has_it(url: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the parameters that kombu and the result backend would connect with."""
    app = Celery(set_as_current=False, broker=celery_address(url), backend=celery_address(url))
    with Connection(celery_address(url)) as connection:
        # The transport's own reading, without opening anything.
        channel = connection.transport.Channel.__new__(connection.transport.Channel)
        channel.connection, channel._registered = connection.transport, False
        broker: dict[str, Any] = channel._connparams()
    return broker, app.backend.connparams


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("rediss://host", ssl.CERT_REQUIRED),
        ("rediss://host?ssl_cert_reqs=CERT_REQUIRED", ssl.CERT_REQUIRED),
        ("rediss://host?ssl_cert_reqs=none", ssl.CERT_NONE),
    ],
)
def test_broker_results_and_cache_verify_alike(url: str, wanted: ssl.VerifyMode) -> None:
    url = redis_address(url)
    for parameters in as_celery_has_it(url):
        assert issubclass(parameters["connection_class"], redis.SSLConnection)
        assert parameters["ssl_cert_reqs"] == wanted
    made = redis.ConnectionPool.from_url(url).make_connection()
    assert isinstance(made, redis.SSLConnection)
    assert made.cert_reqs == wanted


def test_broker_results_and_cache_read_the_same_socket_file_and_database() -> None:
    url = redis_address("unix://:p%40ss@/run/redis.sock?db=2")
    for parameters in (*as_celery_has_it(url), redis.connection.parse_url(url)):
        assert parameters["path"] == "/run/redis.sock"
        assert int(parameters["db"]) == 2
        assert parameters["password"] == "p@ss"


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("REDIS_URL", "http://:s3cret@host", "must start with redis://"),
        ("REDIS_URL", "redis:/:s3cret@host", "must start with redis://"),
        ("REDIS_URL", "redis://:s3cret/raw@host:6379/0", "written %XX"),
        ("REDIS_URL", "redis://:s3cret#raw@host:6379/0", "written %XX"),
        ("REDIS_URL", "redis://:123?s3cret@host:6379/0", "written %XX"),
        ("REDIS_URL", "redis://:s3cret@host:port/0", "written %XX"),
        ("REDIS_URL", "redis://:s3cret@[::1/0", "written %XX"),
        ("REDIS_URL", "redis://:s3cret@host/tasks", "must be a number"),
        ("REDIS_URL", "redis://:s3cret@host?ssl_cert_reqs=none", "needs rediss://"),
        ("CACHE_URL", "rediss://:s3cret@host?ssl_cert_reqs=maybe", "must be one of required"),
        ("CACHE_URL", "rediss://:s3cret@host?ssl_ca_certs=/nowhere.pem", "does not exist"),
        ("CACHE_URL", "redis://:s3cret@host?password=s3cret", "unknown option 'password'"),
        ("CACHE_URL", "rediss://host?ssl_password=s3cret&x=1", "unknown option 'x'"),
        ("DATABASE_URL", "mysql://shop:s3cret@host/db", "must start with sqlite:///"),
        ("DATABASE_URL", "sqlite:///app.db?timeout=30", "takes no options after a '?'"),
        ("DATABASE_URL", "sqlite:///app.db?password=s3cret", "takes no options"),
        ("DATABASE_URL", "postgresql://shop:s3cret/raw@host/db", "written %XX"),
        ("DATABASE_URL", "postgresql://shop:s3cret@raw@host/db", "written %XX"),
        ("DATABASE_URL", "postgresql://shop:s3cret@host:port/db", "written %XX"),
    ],
)
def test_an_address_that_can_never_work_is_a_sentence_without_a_secret(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setting: str, value: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(setting, value)
    load_settings.cache_clear()
    with pytest.raises(WrongUse, match=f"The setting {setting} cannot be used") as caught:
        load_settings()
    load_settings.cache_clear()
    assert words in str(caught.value)
    error: BaseException | None = caught.value
    while error is not None:  # all that a traceback shows
        assert "s3cret" not in str(error)
        assert "raw" not in str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://shop:p%2Fs@host/db",
        "postgresql://shop:p#s?s@host/db",  # libpq takes these as they are
        "postgresql://shop:ps@one:1,two:2/db",
        "postgresql:///db?host=/run&user=shop&password=a@b",
        "postgres://[::1]:5432/db",
    ],
)
def test_an_address_that_postgresql_reads_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", url)
    load_settings.cache_clear()
    assert load_settings().database_url == url
    load_settings.cache_clear()


def test_no_secret_of_a_key_file_is_shown_either() -> None:
    text = "rediss://u:one@host/0?ssl_password=two&db=1 and postgresql://h?sslpassword=three"
    assert without_password(text) == (
        "rediss://u:***@host/0?ssl_password=***&db=1 and postgresql://h?sslpassword=***"
    )


def test_an_old_server_that_quotes_the_login_is_not_quoted_further() -> None:
    error = redis.ResponseError(
        "unknown command 'HELLO', with args beginning with: '3' 'AUTH' 'default' 's3cret'"
    )
    told = trouble("redis://:s3cret@host/0", error)
    assert isinstance(told, ServerUnavailable)
    assert "unknown command 'HELLO'" in str(told)
    assert "s3cret" not in str(told)
