"""What a worker holds is made once a process; known vectors are only ever of its own kind."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from inline_worker import InlineWorker

from pipeline.errors import SetupError
from pipeline.images.decode import sha256
from pipeline.settings import Settings
from workers import resources as module
from workers.known_vectors import KnownVectors
from workers.resources import Once, process_resources, set_process_resources

VECTOR = np.eye(12, dtype=np.float32)[0]


class Model:
    """Holds what `load` makes."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self.load = load

    @Once
    def weights(self) -> Any:
        return self.load()

    @Once
    def other(self) -> str:
        return "other"


def test_threads_that_ask_at_once_wait_for_one_making() -> None:
    """The model must not be loaded once a task, nor twice at the start."""
    made, gate = [], threading.Event()

    def load() -> object:
        assert gate.wait(10)
        made.append(1)
        return object()

    model = Model(load)
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(lambda: model.weights) for _ in range(8)]
        assert model.other == "other"  # which does not wait for the weights
        gate.set()
        assert len({id(answer.result()) for answer in answers}) == 1
    assert model.weights is answers[0].result()
    assert made == [1]
    assert Model(object).weights is not model.weights


def test_a_making_that_failed_is_tried_again() -> None:
    """Weights may be put into place while the worker runs."""
    outcomes = iter([SetupError("no weights"), "loaded"])

    def load() -> str:
        outcome = next(outcomes)
        if isinstance(outcome, SetupError):
            raise outcome
        return outcome

    model = Model(load)
    with pytest.raises(SetupError):
        _ = model.weights
    assert model.weights == model.weights == "loaded"


def test_a_process_has_one_object_of_resources_made_from_its_settings(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()

    def load() -> Settings:
        assert gate.wait(10)
        return settings

    monkeypatch.setattr(module, "load_settings", load)
    try:
        with ThreadPoolExecutor(4) as pool:
            answers = [pool.submit(process_resources) for _ in range(4)]
            gate.set()
            (resources,) = {answer.result() for answer in answers}
        assert resources is process_resources()
        assert resources.settings is settings
    finally:
        set_process_resources(None)


def test_the_embedder_of_a_shard_follows_the_settings(inline_worker: InlineWorker) -> None:
    inline_worker.start_again(
        embed_batch_size=7, max_image_pixels=1000, preprocess_bg_color=(1, 2, 3)
    )
    embedder = inline_worker.resources.embedder
    assert (embedder.batch_size, embedder.threads, embedder.bg_color) == (7, 1, (1, 2, 3))
    assert embedder.limits.max_pixels == 1000
    assert inline_worker.resources.embedder is embedder


def known(inline_worker: InlineWorker, reuse: bool = True) -> KnownVectors:
    return inline_worker.resources.reusable_vectors(reuse=reuse)


def test_vectors_of_the_published_version_are_known_by_content(inline_worker: InlineWorker) -> None:
    assert known(inline_worker).get("0" * 64) is None  # nothing is published yet
    inline_worker.rebuild()
    inline_worker.memory.vectors.clear()
    version = inline_worker.toy.versions.current()
    for row in (0, 7, 19):
        digest = sha256((inline_worker.toy.root / version.paths[row]).read_bytes())
        assert np.array_equal(known(inline_worker).get(digest), version.vectors[row])
    assert known(inline_worker).get("0" * 64) is None
    assert known(inline_worker).get("f" * 64) is None
    assert known(inline_worker, reuse=False).get(digest) is None


def test_a_vector_that_is_not_finite_is_not_known(inline_worker: InlineWorker) -> None:
    """An earlier release kept them."""
    vectors = known(inline_worker)
    vectors.put({"digest": VECTOR * np.float32(np.nan)})
    assert vectors.get("digest") is None


def test_vectors_of_another_kind_are_not_known(inline_worker: InlineWorker) -> None:
    inline_worker.rebuild()
    digest = sha256((inline_worker.toy.root / "kind0/04.png").read_bytes())
    inline_worker.start_again(preprocess_size=(64, 64))
    assert known(inline_worker).get(digest) is None


def test_a_broken_version_lends_no_vectors_and_stops_no_work(inline_worker: InlineWorker) -> None:
    inline_worker.rebuild()
    (inline_worker.toy.settings.index_dir / "v0001" / "vectors.npy").write_bytes(b"short")
    vectors = known(inline_worker)
    vectors.put({"digest": VECTOR})
    assert np.array_equal(vectors.get("digest"), VECTOR)


def test_vectors_that_have_rotted_are_not_reused_by_a_rebuild(inline_worker: InlineWorker) -> None:
    job_id = inline_worker.rebuild()
    assert inline_worker.job(job_id).state == "published"
    inline_worker.memory.vectors.clear()
    version = inline_worker.resources.versions.current()
    digest = version.sha256[3].decode()
    assert inline_worker.resources.reusable_vectors(verify=True).get(digest) is not None
    file = version.folder / "vectors.npy"
    data = bytearray(file.read_bytes())
    data[-10] ^= 4
    file.write_bytes(data)
    inline_worker.start_again()
    assert inline_worker.resources.reusable_vectors(verify=True).get(digest) is None
