"""Refusal rates, AUROC and calibration against counts by hand and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest

from medsam3.evaluation.refusals import false_positive_rate, mean_by_coverage, presence_auroc, reliability


def test_an_answer_is_a_score_that_reaches_the_threshold() -> None:
    assert false_positive_rate([0.1, 0.5, 0.49999, 0.9], 0.5) == 0.5
    assert np.isnan(false_positive_rate([], 0.5))


def test_auroc_by_hand_and_without_one_side() -> None:
    # of 6 pairs 4 are in order, 1 is a tie, 1 is the wrong way round
    assert presence_auroc([0.9, 0.4], [0.4, 0.3, 0.6]) == pytest.approx(4.5 / 6)
    assert presence_auroc([1.0], [0.0]) == 1.0 and presence_auroc([0.2], [0.2]) == 0.5
    assert np.isnan(presence_auroc([], [0.1])) and np.isnan(presence_auroc([0.1], []))


def test_auroc_equals_scikit_learns() -> None:
    sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn comes with nilearn")
    rng = np.random.default_rng(0)
    for _ in range(20):
        present, absent = rng.integers(3, 11, 40) / 10, rng.integers(0, 8, 70) / 10
        expected = sklearn.roc_auc_score([1] * 40 + [0] * 70, np.concatenate([present, absent]))
        assert presence_auroc(present, absent) == pytest.approx(expected, abs=1e-12)


def test_calibration_by_hand() -> None:
    table = reliability([0.05, 0.15, 0.1, 0.95, 1.0], [0.0, 0.5, 0.3, 1.0, 0.6], bins=10)
    assert table.counts.tolist() == [1, 2, 0, 0, 0, 0, 0, 0, 0, 2]  # 0.1 opens the second bin, 1 lies in the last
    assert table.mean_scores[[0, 1, 9]] == pytest.approx([0.05, 0.125, 0.975])
    assert table.mean_outcomes[[0, 1, 9]] == pytest.approx([0.0, 0.4, 0.8])
    assert np.isnan(table.mean_scores[2]) and np.isnan(table.mean_outcomes[2])
    assert table.error == pytest.approx((1 * 0.05 + 2 * 0.275 + 2 * 0.175) / 5)
    assert np.isnan(reliability([], [], bins=10).error)


def test_a_calibrated_score_has_no_error_and_a_constant_one_has() -> None:
    scores = np.random.default_rng(0).random(1000)
    assert reliability(scores, scores, 10).error == pytest.approx(0, abs=1e-12)
    assert reliability(np.full(1000, 0.93), np.zeros(1000), 10).error == pytest.approx(0.93)


def test_coverage_keeps_or_drops_equal_scores_together() -> None:
    coverage, mean = mean_by_coverage([0.2, 0.9, 0.5, 0.5], [0.0, 1.0, 0.4, 0.8])
    assert coverage.tolist() == [0.25, 0.75, 1.0]
    assert mean == pytest.approx([1.0, 2.2 / 3, 0.55])


def test_logits_are_refused_not_clipped() -> None:
    with pytest.raises(ValueError, match=r"1 of 2 values lie outside 0 to 1, the first is 3.2"):
        reliability([0.5, 3.2], [0.5, 0.5], 10)
    with pytest.raises(ValueError, match=r"1 of 1 values lie outside 0 to 1, the first is nan"):
        presence_auroc([float("nan")], [0.5])
    with pytest.raises(ValueError, match=r"2 scores and 1 outcomes"):
        reliability([0.5, 0.2], [0.5], 10)
