"""Workers say what they work with, and work that would reach another shop's is not sent."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from live_stack import LiveStack

from pipeline.errors import ServerUnavailable, SettingsDiffer
from pipeline.store.identity import Identity, Place
from workers import agreement, announcer
from workers.agreement import Mismatch, require_agreement
from workers.registry import WORKERS, Announcement, WorkerRegistry

ALL = ("database", "data", "models")


def identity(name: str, host: str = "vm", **places: Place) -> Identity:
    made = {part: Place(f"{name}-{part}", f"/{name}/{part}") for part in ALL}
    return Identity(host, **{**made, **places})


def announcement(worker: str, name: str, *queues: str, at: float = 1.0) -> Announcement:
    return Announcement(worker, queues or ("embed", "index", "query"), identity(name), at)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LiveStack]:
    stack = LiveStack(tmp_path, tmp_path)
    stack.start_redis()
    yield stack
    stack.close()


@pytest.fixture
def registry(server: LiveStack) -> WorkerRegistry:
    return WorkerRegistry(server.environment["REDIS_URL"])


def test_what_a_worker_says_is_heard_until_it_leaves(registry: WorkerRegistry) -> None:
    registry.announce("embed@a", ["embed"], identity("a"))
    registry.announce("query@b", ["query"], identity("b"))
    embed, query = registry.present()
    assert (embed.worker, embed.queues, query.worker) == ("embed@a", ("embed",), "query@b")
    assert embed.identity == identity("a")
    registry.leave("embed@a")
    assert [each.worker for each in registry.present()] == ["query@b"]


def test_a_worker_that_was_killed_is_forgotten_by_redis_s_clock(
    server: LiveStack, registry: WorkerRegistry
) -> None:
    for worker, age_s in (("fresh", 5.0), ("silent", 20.0), ("of last week", 600_000.0)):
        value = {"queues": ["embed"], "at": server.redis().time()[0] - age_s}
        server.redis().hset(WORKERS, worker, json.dumps({**value, **identity("a").to_json()}))
    assert [each.worker for each in registry.present()] == ["fresh"]
    registry.leave("fresh")
    assert server.redis().hkeys(WORKERS) == [b"silent"]  # the field of last week was removed


def test_what_a_stranger_wrote_is_left_out(server: LiveStack, registry: WorkerRegistry) -> None:
    for name, value in (("a", "no json"), ("b", "[]"), ("c", '{"queues": 3}'), ("d", "{}")):
        server.redis().hset(WORKERS, name, value)
    assert registry.present() == []


def test_a_redis_that_is_away_is_a_sentence() -> None:
    with pytest.raises(ServerUnavailable, match="Redis does not answer"):
        WorkerRegistry("redis://127.0.0.1:9/0").present()


def test_a_job_that_a_worker_does_not_find_is_told_to_who_waits(registry: WorkerRegistry) -> None:
    assert registry.unknown_job("job") is None
    registry.report_unknown_job("job", "I do not have it.")
    assert registry.unknown_job("job") == "I do not have it."
    assert registry.unknown_job("another") is None


def find(mine: Identity, *present: Announcement, parts: tuple[str, ...] = ALL) -> Mismatch | None:
    return Mismatch.find(mine, present, ("embed", "index", "query"), parts)


def test_workers_of_the_same_places_are_no_mismatch() -> None:
    assert find(identity("a"), announcement("w1", "a"), announcement("w2", "a")) is None
    assert find(identity("a")) is None


def test_a_mismatch_names_the_settings_both_values_who_has_them_and_what_to_do() -> None:
    mismatch = find(identity("b"), announcement("w1", "a"), parts=("database", "data"))
    assert mismatch is not None
    assert mismatch.all_differ
    sentence = str(mismatch)
    assert "DATABASE_URL is /b/database on vm (id b-databa) for this command but" in sentence
    assert "/a/database on vm (id a-databa) for worker w1" in sentence
    assert "DATA_DIR is /b/data" in sentence
    assert "MODELS_DIR" not in sentence
    assert "Set the same values for all of them" in sentence
    assert "REDIS_URL" in sentence


def test_of_several_workers_those_that_differ_are_named() -> None:
    mismatch = find(
        identity("a"), announcement("w1", "a"), announcement("w2", "b"), announcement("w3", "b")
    )
    assert mismatch is not None
    assert [each.worker for each in mismatch.differing] == ["w2", "w3"]
    assert not mismatch.all_differ
    assert "for this command, worker w1 but" in str(mismatch)
    assert "for worker w2, worker w3" in str(mismatch)


def test_workers_that_differ_from_each_other_are_a_mismatch_for_a_command_without_a_folder() -> (
    None
):
    """Shards written into one data folder would be looked for in another, for ever."""
    client = identity("x", "laptop", data=Place(None, "/laptop/data"))
    assert find(client, announcement("w1", "a"), parts=("data",)) is None
    mismatch = find(client, announcement("w1", "a"), announcement("w2", "b"), parts=("data",))
    assert mismatch is not None
    assert [each.worker for each in mismatch.differing] == ["w2"]


def test_only_workers_on_the_work_s_queues_are_compared() -> None:
    mine, foreign = identity("a"), announcement("w", "b", "query")
    assert Mismatch.find(mine, [foreign], ("embed", "index"), ALL) is None
    assert Mismatch.find(mine, [foreign], ("query",), ALL) is not None


def test_passwords_are_in_no_sentence() -> None:
    from pipeline.store.identity import shown_database

    shown = shown_database("postgresql://shop:secret@db/shop")
    mismatch = find(
        identity("a", database=Place("1", shown)), announcement("w", "b"), parts=("database",)
    )
    assert "postgresql://shop:***@db/shop" in str(mismatch)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "LOOK_S", 0.01)


def test_a_worker_that_says_it_again_is_believed(registry: WorkerRegistry, quick: None) -> None:
    registry.announce("w", ["embed"], identity("a"))
    first = registry.present()
    again = threading.Timer(0.2, registry.announce, ["w", ["embed"], identity("a")])
    again.start()
    with pytest.raises(SettingsDiffer, match="worker w") as caught:
        require_agreement(registry, identity("b"), ["embed"], ALL, first)
    again.join()
    assert caught.value.exit_code == 4


def test_a_worker_that_has_ended_since_is_not(registry: WorkerRegistry, quick: None) -> None:
    registry.announce("w", ["embed"], identity("a"))
    first = registry.present()
    end = threading.Timer(0.2, registry.leave, ["w"])
    end.start()
    require_agreement(registry, identity("b"), ["embed"], ALL, first)
    end.join()


def test_a_folder_that_got_its_id_a_moment_ago_is_no_mismatch(
    registry: WorkerRegistry, quick: None
) -> None:
    """`imgrec train` has just made MODELS_DIR, which a worker on another host mounts, too."""
    absent = identity("a", "host2", models=Place(None, "/mnt/models"))
    registry.announce("w", ["query"], absent)
    first = registry.present()
    later = threading.Timer(0.2, registry.announce, ["w", ["query"], identity("a", "host2")])
    later.start()
    require_agreement(registry, identity("a"), ["query"], ("models",), first)
    later.join()


def test_agreement_asks_nothing_more(server: LiveStack) -> None:
    away = WorkerRegistry("redis://127.0.0.1:9/0")
    require_agreement(away, identity("a"), ["embed"], ALL, [announcement("w", "a")])


def test_an_announcer_lives_through_an_outage_and_takes_its_word_back_at_the_end(
    server: LiveStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    from live_stack import until

    class Mine:
        def read(self, *, create: bool) -> Identity:
            assert create
            return identity("a")

    monkeypatch.setattr(announcer, "EVERY_S", 0.05)
    stopping, call = threading.Event(), WorkerRegistry(server.environment["REDIS_URL"])
    speaker = announcer.Announcer(call, "w", ["embed"], Mine(), stopping)  # type: ignore[arg-type]
    thread = threading.Thread(target=speaker.run)
    thread.start()
    until(lambda: [each.worker for each in call.present()] == ["w"], "it has spoken", 20)
    server.kill_redis()
    time.sleep(0.2)
    assert thread.is_alive()
    server.start_redis()
    server.redis().delete(WORKERS)
    until(lambda: [each.worker for each in call.present()] == ["w"], "it speaks again", 20)
    stopping.set()
    thread.join(20)
    with pytest.raises(redis.RedisError):
        WorkerRegistry("redis://127.0.0.1:9/0").leave("w")
    assert call.present() == []
