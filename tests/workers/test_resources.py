"""What a worker holds is made once a process; known vectors are only ever of its own kind."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from inline_worker import InlineWorker

from pipeline.errors import SetupError
from pipeline.images.decode import sha256
from pipeline.settings import load_settings
from workers import resources

VECTOR = np.eye(12, dtype=np.float32)[0]


def test_threads_that_ask_at_once_wait_for_one_making() -> None:
    """The model must not be loaded once a task, nor twice at the start."""
    made, gate = [], threading.Event()

    def make() -> object:
        gate.wait(10)
        made.append(1)
        return object()

    get = resources.once(make)
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(get) for _ in range(8)]
        gate.set()
        assert len({id(answer.result()) for answer in answers}) == 1
    assert get() is answers[0].result()
    assert made == [1]


def test_a_making_that_failed_is_tried_again() -> None:
    """Weights may be put into place while the worker runs."""
    outcomes = iter([SetupError("no weights"), "loaded"])

    def make() -> str:
        outcome = next(outcomes)
        if isinstance(outcome, SetupError):
            raise outcome
        return outcome

    get = resources.once(make)
    with pytest.raises(SetupError):
        get()
    assert get() == get() == "loaded"


def test_the_tools_of_a_shard_follow_the_settings(
    desk: InlineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBED_BATCH_SIZE", "7")
    monkeypatch.setenv("MAX_IMAGE_PIXELS", "1000")
    monkeypatch.setenv("PREPROCESS_BG_COLOR", "1,2,3")
    load_settings.cache_clear()
    tools = resources.embedder()
    assert (tools.batch_size, tools.threads, tools.bg_color) == (7, 1, (1, 2, 3))
    assert tools.limits.max_pixels == 1000
    assert resources.embedder() is tools


def known(desk: InlineWorker, reuse: bool = True) -> resources.KnownVectors:
    return resources.reusable_vectors(reuse=reuse)


def test_vectors_of_the_published_version_are_known_by_content(desk: InlineWorker) -> None:
    assert known(desk).get("0" * 64) is None  # nothing is published yet
    desk.rebuild()
    desk.memory.vectors.clear()
    version = desk.shop.versions.current()
    for row in (0, 7, 19):
        digest = sha256((desk.shop.root / version.paths[row]).read_bytes())
        assert np.array_equal(known(desk).get(digest), version.vectors[row])
    assert known(desk).get("0" * 64) is None
    assert known(desk).get("f" * 64) is None
    assert known(desk, reuse=False).get(digest) is None


def test_vectors_of_another_kind_are_not_known(
    desk: InlineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.rebuild()
    digest = sha256((desk.shop.root / "kind0/04.png").read_bytes())
    monkeypatch.setenv("PREPROCESS_SIZE", "64,64")
    load_settings.cache_clear()
    monkeypatch.setattr(resources, "fingerprint", resources.once(resources.fingerprint.__wrapped__))
    assert known(desk).get(digest) is None


def test_a_broken_version_lends_no_vectors_and_stops_no_work(desk: InlineWorker) -> None:
    desk.rebuild()
    (desk.shop.settings.index_dir / "v0001" / "vectors.npy").write_bytes(b"short")
    vectors = known(desk)
    vectors.put({"digest": VECTOR})
    assert np.array_equal(vectors.get("digest"), VECTOR)


def test_vectors_that_have_rotted_are_not_reused_by_a_rebuild(desk: InlineWorker) -> None:
    job_id = desk.rebuild()
    assert desk.job(job_id).state == "published"
    desk.memory.vectors.clear()
    version = resources.versions().current()
    digest = version.sha256[3].decode()
    assert resources.reusable_vectors(verify=True).get(digest) is not None
    file = version.folder / "vectors.npy"
    data = bytearray(file.read_bytes())
    data[-10] ^= 4
    file.write_bytes(data)
    resources._verified.clear()  # as in another process
    assert resources.reusable_vectors(verify=True).get(digest) is None
