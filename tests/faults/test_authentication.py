"""Redis and PostgreSQL behind passwords: right ones work, wrong ones are a sentence, none shows."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import redis
from live_stack import ROOT, LiveStack, draw_folder, until
from postgres_server import Postgres
from preloaded import Process
from secret_leaks import ODD_QUOTED, ODD_SECRET, SECRET, places_of

CACHE_SECRET = "cache-Pa55-s3cret"
DATABASE_SECRET = "data base/s3cret@:%"
QUOTED = "data%20base%2Fs3cret%40%3A%25"


@dataclass
class Locked(LiveStack):
    """A stack whose workers tell everything they could tell, and a second Redis for the cache."""

    cache: LiveStack = field(init=False)
    postgres: Postgres = field(init=False)
    password: str | None = None

    def open(self) -> None:
        (self.folder / "cache").mkdir()
        self.cache = LiveStack(self.folder / "cache", self.model)
        self.postgres = Postgres()
        self.start_redis()
        self.set_password(ODD_SECRET)
        self.cache.start_redis()
        self.cache.redis().config_set("requirepass", CACHE_SECRET)
        self.postgres.admin(f"CREATE ROLE shop LOGIN PASSWORD '{DATABASE_SECRET}'")
        self.postgres.admin("CREATE DATABASE shop OWNER shop")
        self.environment |= {
            "REDIS_URL": f"redis://:{ODD_QUOTED}@127.0.0.1:{self.port}/0",
            "CACHE_URL": f"redis://:{CACHE_SECRET}@127.0.0.1:{self.cache.port}/0",
            "DATABASE_URL": f"postgresql://shop:{QUOTED}@127.0.0.1:{self.postgres.port}/shop",
        }

    def set_password(self, password: str) -> None:
        self.redis().config_set("requirepass", password)
        self.password = password

    def redis(self) -> redis.Redis:
        return redis.Redis(port=self.port, password=self.password, socket_timeout=5)

    def worker(self, queue: str, *, preloaded: bool = True, **more: str) -> Process:
        log = self.folder / f"{queue}-{len(self.processes)}.log"
        command = ["celery", "worker", "-Q", queue, "-l", "DEBUG"]
        process = Process(command, cwd=ROOT, env=self.env(**more), stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def close(self) -> None:
        super().close()
        if hasattr(self, "postgres"):
            self.postgres.close()
        self.cache.close()


@pytest.fixture
def locked(tmp_path: Path, model: Path) -> Iterator[Locked]:
    locked = Locked(tmp_path, model)
    try:
        locked.open()
        yield locked
    finally:
        locked.close()


def shown(stack: Locked, *told: str) -> list[str]:
    """Return where any of the three secrets can be seen: here, in logs, in the process list."""
    places = []
    for secret in (ODD_SECRET, CACHE_SECRET, DATABASE_SECRET):
        places += places_of(secret, stack)
        forms = (secret, ODD_QUOTED, QUOTED, repr(secret)[1:-1])
        places += [text for text in told if any(form in text for form in forms)]
    return places


def test_three_passwords_open_three_doors_and_none_is_ever_shown(locked: Locked) -> None:
    good = draw_folder(locked.products, 12)
    locked.workers("embed", "index", "query")
    done = locked.imgrec("--debug", "enqueue-rebuild", str(locked.products), "--wait", "--json")
    assert done.returncode == 0, done.stderr
    answer = locked.imgrec("query", str(locked.products / good[3]), "--wait", "--json")
    assert good[3] in answer.stdout
    checked = locked.imgrec("check")
    assert checked.returncode == 0, checked.stdout
    assert f"postgresql://shop:***@127.0.0.1:{locked.postgres.port}/shop" in checked.stdout
    as_json = locked.imgrec("check", "--json", "--no-model")
    listed = locked.imgrec("cache", "list", "--json")
    assert '"keys": 12' in listed.stdout  # in the cache of its own
    every = (done, answer, checked, as_json, listed)
    told = [text for each in every for text in (each.stdout, each.stderr)]
    banner = locked.log("embed")
    assert ".> transport:" in banner
    assert shown(locked, *told) == []


WRONG = {
    "REDIS_URL": [
        ("redis://:wrong-{odd}@127.0.0.1:{redis}/0", "refuses the login"),
        ("redis://bob:{odd}@127.0.0.1:{redis}/0", "refuses the login"),
        ("redis://127.0.0.1:{redis}/0", "it requires a password"),
        ("redis://:{odd}@127.0.0.1:{redis}/99", "correct the database's number"),
        ("redis://:{odd}@no-such-host.invalid:{redis}/0", "does not answer"),
    ],
    "CACHE_URL": [
        ("redis://:wrong-{cache_secret}@127.0.0.1:{cache}/0", "refuses the login"),
        ("redis://:{cache_secret}@127.0.0.1:1/0", "does not answer"),
    ],
    "DATABASE_URL": [
        ("postgresql://shop:wrong{quoted}@127.0.0.1:{postgres}/shop", "refuses the login"),
        ("postgresql://bob:{quoted}@127.0.0.1:{postgres}/shop", "refuses the login"),
        ("postgresql://shop:{quoted}@127.0.0.1:{postgres}/attic", "refuses the login"),
        ("postgresql://shop:{quoted}@127.0.0.1:{postgres}/postgres", "too few rights"),
        ("postgresql://shop:{quoted}@no-such-host.invalid/shop", "does not answer"),
    ],
}


def test_a_wrong_password_user_name_or_host_is_a_sentence_and_exit_code_4(locked: Locked) -> None:
    draw_folder(locked.products, 1)
    picture = str(next(locked.products.rglob("*.jpg")))
    commands = {
        "REDIS_URL": ["query", picture, "--wait"],
        "CACHE_URL": ["cache", "list"],
        "DATABASE_URL": ["jobs", "--json"],
    }
    for setting, cases in WRONG.items():
        for number, (form, words) in enumerate(cases):
            url = form.format(
                odd=ODD_QUOTED,
                quoted=QUOTED,
                cache_secret=CACHE_SECRET,
                redis=locked.port,
                cache=locked.cache.port,
                postgres=locked.postgres.port,
            )
            done = locked.imgrec(*commands[setting], **{setting: url})
            assert done.returncode == 4, (url, done.stderr)
            assert done.stderr.startswith("Error: ")
            assert len(done.stderr.strip().splitlines()) == 1
            assert words in done.stderr
            assert setting in done.stderr
            told = [done.stderr, done.stdout]
            if number == 0:
                traced = locked.imgrec("--debug", *commands[setting], **{setting: url})
                assert "Traceback" in traced.stderr
                told += [traced.stderr, traced.stdout]
            assert shown(locked, *told) == []


def test_workers_with_a_wrong_password_wait_and_tell_why(locked: Locked) -> None:
    wrong = locked.environment["REDIS_URL"].replace(ODD_QUOTED, f"wrong-{ODD_QUOTED}")
    worker = locked.worker("embed", REDIS_URL=wrong)
    until(lambda: "invalid username-password pair" in locked.log("embed"), "it says why", 60)
    assert worker.poll() is None
    assert shown(locked) == []
    locked.set_password(f"wrong-{ODD_SECRET}")  # now it is the right one
    until(lambda: "Connected to redis" in locked.log("embed"), "it joins by itself", 60)
    assert shown(locked) == []


@pytest.mark.slow
def test_up_starts_a_redis_for_one_user_and_shows_no_password(tmp_path: Path, model: Path) -> None:
    stack = LiveStack(tmp_path, model)
    stack.environment["REDIS_URL"] = f"redis://shop:{ODD_QUOTED}@127.0.0.1:{stack.port}/0"
    good = draw_folder(stack.products, 6)
    try:
        done = stack.imgrec("up", "--detach")
        assert done.returncode == 0, done.stderr
        assert stack.rebuild()["state"] == "published"
        assert stack.indexed() == good
        logs = (stack.data / "run" / "up.log").read_text()
        assert "embed    | " in logs
        (secret_file,) = places_of(ODD_SECRET, stack, stack.data / "redis")
        assert Path(secret_file).stat().st_mode & 0o077 == 0  # for the server alone
        with pytest.raises(redis.AuthenticationError):
            stack.redis().ping()
    finally:
        stopped = stack.imgrec("down")
    assert stopped.returncode == 0, stopped.stderr


@pytest.mark.slow
def test_a_redis_behind_a_socket_file_works(tmp_path: Path, model: Path) -> None:
    stack = LiveStack(tmp_path, model)
    with tempfile.TemporaryDirectory(prefix="imgrec-") as short:  # a socket's path has a limit
        socket = f"{short}/redis.sock"
        try:
            stack.start_redis("--unixsocket", socket)
            stack.redis().config_set("requirepass", SECRET)
            stack.environment["REDIS_URL"] = f"unix://:{SECRET}@{socket}?db=1"
            good = draw_folder(stack.products, 6)
            stack.workers("embed", "index")
            assert stack.rebuild()["state"] == "published"
            assert stack.indexed() == good
            assert stack.answer("cache", "list")["kinds"][0]["keys"] == 6
            assert places_of(SECRET, stack) == []
        finally:
            stack.close()


# What the sentence about too few rights proposes.
ENOUGH = ("~imgrec:*", "&*", "+@all", "-@dangerous", "+info")


def acl_user(stack: LiveStack, *rights: str) -> None:
    """A Redis whose default user may do nothing, and a user with these rights."""
    client = stack.redis()
    client.execute_command("ACL", "SETUSER", "shop", "on", f">{SECRET}", *rights)
    client.execute_command("ACL", "SETUSER", "default", "off")
    stack.environment["REDIS_URL"] = f"redis://shop:{SECRET}@127.0.0.1:{stack.port}/0"


def test_an_acl_user_with_keys_of_its_own_is_enough(stack: LiveStack) -> None:
    acl_user(stack, *ENOUGH)
    good = draw_folder(stack.products, 12)
    stack.workers("embed", "index", "query")
    assert stack.rebuild()["state"] == "published"
    assert stack.query(stack.products / good[3])["matches"][0]["filename"] == good[3]
    assert stack.answer("cache", "list")["kinds"][0]["keys"] == 12
    assert stack.imgrec("check", "--no-model").returncode == 0
    assert "has no permissions" not in stack.log("embed") + stack.log("query")
    assert places_of(SECRET, stack) == []


@pytest.mark.parametrize("rights", [("~other:*", "&*", "+@all"), ("~imgrec:*", "&*", "+ping")])
def test_an_acl_user_with_too_few_rights_is_a_sentence(
    stack: LiveStack, rights: tuple[str, ...]
) -> None:
    acl_user(stack, *rights)
    (name,) = draw_folder(stack.products, 1)
    for command in (
        ["enqueue-rebuild", str(stack.products)],
        ["query", str(stack.products / name), "--wait"],
        ["cache", "list"],
        ["check", "--no-model"],
    ):
        done = stack.imgrec(*command)
        assert done.returncode == 4, (command, done.stderr)
        assert "gives this user too few rights" in done.stderr + done.stdout
        assert "Traceback" not in done.stderr
        assert SECRET not in done.stderr + done.stdout
