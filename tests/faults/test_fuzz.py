"""Mutated pictures against live workers: each is indexed or named with a reason, no worker ends.

A failure names the seed; `fuzz_images.mutants(seed, count)` makes the same bytes again.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from fuzz_images import Mutant, mutants
from live_stack import LiveStack, draw_folder, until
from preloaded import Process

from pipeline import errors
from pipeline.errors import BadImage

LIMIT = 2 * 1024**3
ONE_LINE = 400  # characters of a reason, at most


@contextmanager
def watched(*workers: Process) -> Iterator[None]:
    """Fail when a worker ends, or holds more memory than WORKER_MAX_MEMORY at any instant."""
    yield
    for worker in workers:
        assert worker.poll() is None, "a worker has ended"
        status = Path(f"/proc/{worker.pid}/status").read_text()
        # The kernel keeps the peak: nothing between two looks is missed.
        peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
        assert peak < LIMIT, f"a worker has held {peak >> 20} MiB"


def limited(stack: LiveStack) -> None:
    stack.environment["WORKER_MAX_MEMORY"] = "2GiB"


def asker(stack: LiveStack) -> Celery:
    prefix = {"global_keyprefix": "imgrec:"}
    app = Celery(broker=stack.environment["REDIS_URL"], set_as_current=False)
    app.conf.update(broker_transport_options=prefix)
    return app


def answers(
    stack: LiveStack, ids: Mapping[str, Any], patience_s: float
) -> dict[str, dict[str, Any]]:
    """Wait until every question has an answer; return them as Celery stores them."""
    found: dict[str, dict[str, Any]] = {}

    def all_there() -> bool:
        missing = [each for each in ids if each not in found]
        raw = stack.redis().mget(f"imgrec:celery-task-meta-{each}" for each in missing)
        found.update(
            {each: json.loads(data) for each, data in zip(missing, raw, strict=True) if data}
        )
        return len(found) == len(ids)

    until(all_there, "every question is answered", patience_s)
    return found


def rebuild_of_mutants(stack: LiveStack, seed: int, count: int) -> None:
    limited(stack)
    good = draw_folder(stack.products, 20)
    made: dict[str, Mutant] = {}
    for number, mutant in enumerate(mutants(seed, count)):
        name = f"mutants/{number:05d}-{mutant.kind.replace(';', '')}.{mutant.suffix}"
        made[name] = mutant
        (stack.products / name).parent.mkdir(exist_ok=True)
        (stack.products / name).write_bytes(mutant.data)
    workers = [stack.worker("embed"), stack.worker("index"), stack.worker("query")]
    with watched(*workers):
        job_id = stack.answer("enqueue-rebuild", str(stack.products))["job_id"]
        done = stack.answer("status", job_id, "--wait", "--timeout", "1500")
        assert done["state"] == "published"
        indexed, failed = set(stack.indexed()), stack.failures(job_id)
        # Each is in one of the two, the good ones and nothing hopeless in the first.
        assert indexed | set(failed) == {*good, *made}
        assert not indexed & set(failed)
        assert set(good) <= indexed
        assert [name for name in indexed if name in made and made[name].hopeless] == []
        assert done["embedded"] + done["reused"] == len(indexed)
        for name, (stage, reason) in failed.items():
            assert stage in {"read", "decode"}, (name, stage, reason)
            assert 10 < len(reason) < ONE_LINE, (name, reason)
            assert "\n" not in reason, (name, reason)
        answer = stack.query(stack.products / good[3])
        assert answer["matches"][0]["filename"] == good[3]


def queries_of_mutants(stack: LiveStack, seed: int, count: int) -> None:
    limited(stack)
    good = draw_folder(stack.products, 20)
    workers = [stack.worker("embed"), stack.worker("index"), stack.worker("query")]
    stack.rebuild()
    app = asker(stack)
    made = {uuid.uuid4().hex: mutant for mutant in mutants(seed, count)}
    with watched(*workers):
        for number, (query_id, mutant) in enumerate(made.items()):
            # The other task of pictures, too.
            task, more = (
                ("imgrec.query_image", (3,)) if number % 2 else ("imgrec.classify_image", ())
            )
            app.send_task(
                task,
                args=(mutant.data, *more),
                task_id=query_id,
                queue="query",
                serializer="msgpack",
                argsrepr="(<image>)",
            )
        for query_id, answer in answers(stack, made, 900).items():
            mutant, result = made[query_id], answer["result"]
            if answer["status"] == "SUCCESS":
                assert not mutant.hopeless, mutant.kind
                assert len(result.get("matches", [0, 0, 0])) == 3
            else:
                empty = "Name an image" in str(result["exc_message"]) and not mutant.data
                error = getattr(errors, result["exc_type"], int)
                assert issubclass(error, BadImage) or empty, (mutant.kind, result)
                assert 10 < len(str(result["exc_message"][0])) < ONE_LINE, (mutant.kind, result)
        answer = stack.query(stack.products / good[3])
        assert answer["matches"][0]["filename"] == good[3]


def test_a_rebuild_of_mutated_pictures_indexes_or_names_each_and_loses_no_good_one(
    stack: LiveStack,
) -> None:
    rebuild_of_mutants(stack, seed=1, count=250)


def test_queries_with_mutated_pictures_are_each_answered(stack: LiveStack) -> None:
    queries_of_mutants(stack, seed=2, count=150)


@pytest.mark.slow
def test_a_rebuild_of_12_000_mutated_pictures(stack: LiveStack) -> None:
    rebuild_of_mutants(stack, seed=12_000, count=12_000)


@pytest.mark.slow
def test_8_000_queries_with_mutated_pictures(stack: LiveStack) -> None:
    queries_of_mutants(stack, seed=8_000, count=8_000)
