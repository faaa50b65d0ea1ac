"""The figures of an evaluation, against values worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import WrongUse
from pipeline.evaluate.retrieval import (
    Labelled,
    confusion,
    interval,
    list_classes,
    recall_of_index,
    report,
    retrieve,
    zero_shot,
)
from pipeline.images.failure import Failure


def labelled(labels: list[str], vectors: list[list[float]]) -> Labelled:
    rows = np.array(vectors, np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return Labelled(Path(), [f"{n}.jpg" for n in range(len(labels))], np.array(labels), rows)


# Its catalogue in order of likeness: cat, dog, cat, dog.
QUERY = labelled(["cat"], [[1, 0]])
CATALOGUE = labelled(["dog", "cat", "dog", "cat"], [[0, 1], [1, 0.1], [1, 0.2], [1, 0.5]])


def test_precision_recall_and_map_are_those_of_the_textbook() -> None:
    found = retrieve(QUERY, CATALOGUE, (1, 2, 3))
    assert [found.precision[k][0] for k in (1, 2, 3)] == pytest.approx([1, 1 / 2, 2 / 3])
    assert [found.recall[k][0] for k in (1, 2, 3)] == pytest.approx([1 / 2, 1 / 2, 1])
    assert found.average_precision[0] == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert found.first[0] == 1


def test_without_a_catalogue_a_picture_never_finds_itself() -> None:
    found = retrieve(CATALOGUE, None, (1,))
    assert found.first.tolist() == [3, 2, 1, 2]
    assert found.precision[1].tolist() == [0, 0, 0, 0]


def test_a_class_that_the_catalogue_lacks_has_no_recall_and_no_precision() -> None:
    alien = labelled(["bird"], [[1, 0]])
    figures = report(alien, retrieve(alien, CATALOGUE, (5,)), None)
    assert figures["precision"] == {"5": 0.0}
    assert figures["recall"] == {"5": None}
    assert figures["map"] is None
    assert figures["intervals"]["map"] is None
    assert figures["zero_shot_accuracy"] is None


def test_an_image_that_was_measured_with_a_warning_was_not_skipped() -> None:
    failures = [
        Failure("a.jpg", "decode", "corrupt"),
        Failure("0.jpg", "preprocess", "blank", True),
    ]
    queries = replace(QUERY, failures=failures)
    assert report(queries, retrieve(queries, CATALOGUE, (5,)), None)["skipped"] == 1


def test_a_short_catalogue_cannot_lift_precision_at_a_greater_k() -> None:
    assert retrieve(QUERY, CATALOGUE, (8,)).precision[8][0] == pytest.approx(2 / 8)


def test_zero_shot_takes_the_nearest_class_name_averaged_over_prompts() -> None:
    words = {"a cat": [1, 0], "a dog": [0, 1], "cat!": [1, 1], "dog!": [0, 1]}

    def embed(texts: object) -> np.ndarray:
        rows = np.array([words[text] for text in texts], np.float32)  # type: ignore[attr-defined]
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    shot = zero_shot(CATALOGUE, embed, ["a {}", "{}!"])
    assert shot.predicted.tolist() == ["dog", "cat", "cat", "cat"]
    matrix = confusion(shot.names, CATALOGUE.labels, shot.predicted)
    assert matrix.tolist() == [[2, 0], [1, 1]]


def test_the_interval_holds_the_mean_and_narrows_with_more_queries() -> None:
    few, many = np.array([0.0, 1.0] * 10), np.array([0.0, 1.0] * 1000)
    (low, high), (lower, upper) = interval(few), interval(many)
    assert low < lower < 0.5 < upper < high
    # The standard error of the mean is 0.5 / sqrt(2000), 1.96 of which lie on each side.
    assert upper - lower == pytest.approx(2 * 1.96 * 0.5 / 2000**0.5, rel=0.1)
    assert interval(many) == (lower, upper)


def test_many_queries_are_ranked_as_few_are() -> None:
    """More rows than are ranked at once."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(600, 8))
    labels = rng.choice(["a", "b"], 600).tolist()
    every = retrieve(labelled(labels, vectors.tolist()), None, (5,))
    for row in (0, 255, 256, 599):
        scores = labelled(labels, vectors.tolist()).vectors @ (vectors[row] / 1)
        best = [other for other in np.argsort(-scores) if other != row][:5]
        expected = np.mean([labels[other] == labels[row] for other in best])
        assert every.precision[5][row] == pytest.approx(expected)


def test_recall_of_an_index_counts_what_it_missed_and_forgives_equal_pictures() -> None:
    vectors = labelled(["x"] * 4, [[1, 0], [1, 0], [1, 1], [0, 1]]).vectors
    queries = vectors[:1]

    def answers(*rows: int):  # type: ignore[no-untyped-def]
        return lambda asked, k: np.array([rows[:k]])

    assert recall_of_index(answers(1, 0), vectors, queries, (1, 2))[1][0] == 1
    assert recall_of_index(answers(1, 0), vectors, queries, (1, 2))[2][0] == 1
    assert recall_of_index(answers(0, 3), vectors, queries, (2,))[2][0] == 0.5
    assert recall_of_index(answers(0, -1), vectors, queries, (2,))[2][0] == 0.5


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ([], "at least two classes; it has 0"),
        (["a/x.jpg"], "at least two classes; it has 1"),
        (["a/x.jpg", "b/x.jpg", "y.jpg"], "'y.jpg' is not in a class folder"),
    ],
)
def test_a_folder_of_another_layout_is_refused_with_the_one_it_needs(
    tmp_path: Path, files: list[str], sentence: str
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(WrongUse, match=sentence) as caught:
        list_classes(tmp_path)
    assert "<class>/<image>.jpg" in str(caught.value)
