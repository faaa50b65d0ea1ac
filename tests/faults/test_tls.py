"""Redis over TLS: the whole way through it, and a sentence for each way that it can be wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from live_stack import LiveStack, draw_folder, until
from secret_leaks import SECRET, places_of
from tls_proxy import Authority, TlsProxy


@dataclass
class Door:
    """A Redis with a password, which only a proxy speaks to in plain words."""

    stack: LiveStack
    authority: Authority
    proxy: TlsProxy

    def url(self, host: str = "localhost", scheme: str = "rediss", options: str = "") -> str:
        return f"{scheme}://:{SECRET}@{host}:{self.proxy.port}/0{options}"

    @property
    def trusted(self) -> str:
        return f"?ssl_cert_reqs=required&ssl_ca_certs={self.authority.file}"


@pytest.fixture
def door(tmp_path: Path, model: Path) -> Iterator[Door]:
    stack = LiveStack(tmp_path, model)
    stack.start_redis()
    stack.redis().config_set("requirepass", SECRET)
    authority = Authority(tmp_path / "authority.pem")
    proxy = TlsProxy(authority.server("localhost"), stack.port)
    door = Door(stack, authority, proxy)
    stack.environment["REDIS_URL"] = door.url(options=door.trusted)
    yield door
    proxy.close()
    stack.close()


def test_a_rebuild_and_queries_go_over_tls_and_outlive_a_proxy_that_restarts(door: Door) -> None:
    stack = door.stack
    good = draw_folder(stack.products, 12)
    workers = [stack.worker(queue) for queue in ("embed", "index", "query")]
    assert stack.rebuild()["state"] == "published"
    answer = stack.query(stack.products / good[3])
    assert answer["matches"][0]["filename"] == good[3]
    assert stack.answer("cache", "list")["kinds"][0]["keys"] == 12
    checked = stack.imgrec("check", "--no-model")
    assert checked.returncode == 0, checked.stdout
    assert "ok   redis: " in checked.stdout
    assert door.proxy.handshakes > 6  # nobody found another way

    door.proxy.cut()
    again = stack.query(stack.products / good[5])
    assert again["matches"][0]["filename"] == good[5]
    assert [worker.poll() for worker in workers] == [None, None, None]
    # One that Celery would have called insecure, or refused.
    assert "insecure" not in stack.log("embed") + stack.log("query")
    assert places_of(SECRET, stack) == []


WRONG = {
    "plain to TLS": ("redis", "localhost", "", "write rediss://"),
    "no authority": ("rediss", "localhost", "", "ssl_ca_certs=FILE"),
    "another name": ("rediss", "127.0.0.1", "TRUSTED", "write the name that it was made for"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_way_to_tls_is_a_sentence_with_the_way_out(door: Door, case: str) -> None:
    scheme, host, options, way_out = WRONG[case]
    url = door.url(host, scheme, door.trusted if options else "")
    (name,) = draw_folder(door.stack.products, 1)
    for command in (
        ["enqueue-rebuild", str(door.stack.products)],
        ["query", str(door.stack.products / name), "--wait"],
        ["cache", "list"],
        *([["check", "--no-model"], ["up", "--detach"]] if case == "no authority" else []),
    ):
        done = door.stack.imgrec(*command, REDIS_URL=url)
        told = done.stdout + done.stderr
        assert done.returncode == 4, (command, told)
        assert way_out in told, command
        assert "Traceback" not in told
        assert SECRET not in told


def test_tls_to_a_plain_redis_is_a_sentence_too(door: Door) -> None:
    url = f"rediss://:{SECRET}@localhost:{door.stack.port}/0"
    done = door.stack.imgrec("cache", "list", REDIS_URL=url)
    assert done.returncode == 4
    assert "if it does not use TLS, write redis://" in done.stderr


@pytest.mark.slow
def test_a_server_may_want_a_certificate_of_its_clients(door: Door, tmp_path: Path) -> None:
    context = door.authority.server("localhost")
    door.authority.demand(context)
    strict = TlsProxy(context, door.stack.port)
    certificate, key = door.authority.client_files(tmp_path)
    url = f"rediss://:{SECRET}@localhost:{strict.port}/0{door.trusted}"
    try:
        refused = door.stack.imgrec("cache", "list", REDIS_URL=url)
        assert refused.returncode == 4
        assert "add ssl_certfile and ssl_keyfile" in refused.stderr
        mine = f"{url}&ssl_certfile={certificate}&ssl_keyfile={key}"
        good = draw_folder(door.stack.products, 3)
        door.stack.environment["REDIS_URL"] = mine
        door.stack.workers("embed", "index")
        assert door.stack.rebuild()["state"] == "published"
        assert door.stack.indexed() == good
    finally:
        strict.close()


def test_a_bare_rediss_verifies(door: Door) -> None:
    """What kombu would do without us is to verify nothing."""
    stack = door.stack
    worker = stack.worker("embed", REDIS_URL=door.url())
    until(lambda: "CERTIFICATE_VERIFY_FAILED" in stack.log("embed"), "the worker refuses", 60)
    assert worker.poll() is None  # it waits for a better certificate
    assert door.proxy.handshakes == 0
    assert places_of(SECRET, stack) == []
