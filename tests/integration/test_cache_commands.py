"""The cache's commands on a real server that holds a queue, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from live_stack import LiveStack, draw_folder, draw_product, until


def test_the_cache_is_listed_cleared_by_kind_and_filled_and_nothing_else_is_touched(
    stack: LiveStack,
) -> None:
    draw_folder(stack.products, 12)
    stack.workers("embed", "index", "query")
    stack.rebuild()
    photo = stack.folder / "new.jpg"
    draw_product(photo, seed=77)
    first = stack.query(photo)
    assert stack.query(photo)["matches"] == first["matches"]

    def listed() -> dict[str, dict[str, Any]]:
        return {row["kind"]: row for row in stack.answer("cache", "list")["kinds"]}

    # A worker adds its counts to those in Redis every few seconds.
    until(lambda: listed()["results"]["hits"] + listed()["results"]["misses"] == 2, "the counts")
    kinds = listed()
    assert kinds["vectors"]["keys"] == 12 + 1
    assert (kinds["results"]["keys"], kinds["results"]["hits"]) == (1, 1)
    assert kinds["results"]["hit_rate"] == 0.5
    assert kinds["vectors"]["bytes"] > 12 * 4 * 8
    assert 0 <= kinds["vectors"]["newest_s"] <= kinds["vectors"]["oldest_s"] < 300
    shown = stack.imgrec("cache", "list").stdout
    assert "50.0%" in shown

    # A queue that nobody serves, so that its message can only vanish by being cleared.
    stack.redis().rpush("imgrec:a-queue", "a message that waits")
    answers = set(stack.redis().keys("*celery-task-meta*"))
    assert answers
    assert stack.answer("cache", "clear", "--kind", "results") == {"deleted": 1}
    assert stack.answer("cache", "clear")["deleted"] == 13
    assert list(stack.redis().keys("imgrec:cache:*")) == []
    assert set(stack.redis().keys("*celery-task-meta*")) == answers
    assert stack.redis().lrange("imgrec:a-queue", 0, -1) == [b"a message that waits"]

    warm = stack.answer("cache", "warm")
    assert warm["vectors"] == 12
    kinds = {row["kind"]: row for row in stack.answer("cache", "list")["kinds"]}
    assert kinds["vectors"]["keys"] == 12
    assert kinds["texts"]["keys"] > 0
    # An answer that waits in Redis is no part of the cache.
    assert stack.answer("result", first["query_id"])["matches"] == first["matches"]


def test_a_cache_that_is_away_is_exit_code_4(stack: LiveStack, tmp_path: Path) -> None:
    stack.kill_redis()
    for command in (("list",), ("clear",), ("warm",)):
        done = stack.imgrec("cache", *command)
        assert done.returncode == 4
        assert "The cache does not answer" in done.stderr
        assert "Traceback" not in done.stderr
