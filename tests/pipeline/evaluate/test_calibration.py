"""Precision, recall, calibration and temperature, against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.evaluate.calibration import (
    calibration_error,
    fit_temperature,
    log_loss,
    per_class,
    softmax,
)


def two(confidences: list[float]) -> np.ndarray:
    """Shares of two classes; the first is the likelier one."""
    return np.array([[share, 1 - share] for share in confidences])


def test_precision_and_recall_are_read_off_the_confusion_counts() -> None:
    counts = np.array([[3, 1, 0], [2, 2, 0], [1, 0, 0]])
    assert per_class(("a", "b", "c"), counts) == {
        "a": {"precision": 0.5, "recall": 0.75, "images": 4},
        "b": {"precision": 0.6667, "recall": 0.5, "images": 4},
        "c": {"precision": None, "recall": 0.0, "images": 1},  # never said
    }


def test_calibration_error_is_the_one_worked_out_by_hand() -> None:
    # Bin (9/15, 10/15]: 0.61 and 0.65, one of two right. Bin (13/15, 14/15]: 0.9, wrong.
    shares = two([0.61, 0.65, 0.9])
    expected = 2 / 3 * abs(1 / 2 - 0.63) + 1 / 3 * abs(0 - 0.9)
    assert calibration_error(shares, np.array([0, 1, 1])) == pytest.approx(expected)


def test_a_bin_holds_its_upper_end() -> None:
    # 0.6 = 9/15 belongs with 0.58 and not with 0.62: right and wrong would otherwise meet.
    shares = two([0.6, 0.58])
    assert calibration_error(shares, np.array([0, 1])) == pytest.approx(abs(0.5 - 0.59))


def test_confidence_that_comes_true_has_an_error_near_nothing_and_a_boast_has_not() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (40_000, 5))
    shares = softmax(logits)
    truth = np.array([rng.choice(5, p=row) for row in shares])
    assert calibration_error(shares, truth) < 0.01
    assert calibration_error(softmax(3 * logits), truth) > 0.1


@pytest.mark.parametrize("boast", [0.01, 0.3, 4.0])
def test_the_temperature_that_spoilt_a_calibration_is_found_and_lowers_the_loss(
    boast: float,
) -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (5_000, 4))
    truth = np.array([rng.choice(4, p=row) for row in softmax(logits)])
    spoilt = logits * boast
    temperature = fit_temperature(spoilt, truth)
    assert temperature == pytest.approx(boast, rel=0.1)
    assert log_loss(spoilt, truth, temperature) < log_loss(spoilt, truth)
    for other in (0.8, 1.25):
        assert log_loss(spoilt, truth, temperature) < log_loss(spoilt, truth, temperature * other)


def test_a_few_pictures_that_are_all_right_prove_no_certainty() -> None:
    logits = np.array([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [0.0, 2.0]])
    temperature = fit_temperature(logits, np.array([0, 1, 0, 1]))
    # n right of n: (n + 1/2) / (n + 1), Jeffreys' estimate.
    np.testing.assert_allclose(softmax(logits / temperature).max(axis=1), 4.5 / 5, atol=1e-4)


def test_logits_of_any_size_overflow_nothing() -> None:
    assert softmax(np.array([[1e6, 0.0]])).tolist() == [[1.0, 0.0]]
    assert log_loss(np.array([[1e6, 0.0]]), np.array([1])) == pytest.approx(1e6)
