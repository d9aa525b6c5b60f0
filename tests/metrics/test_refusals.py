"""Refusal rates, AUROC and calibration against counts by hand and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest

from medsam3.metrics.refusals import auroc_interval, mean_by_coverage, presence_auroc, rate_interval, reliability
from medsam3.results.obedience import obedience, refusal_means, refusals, spreads, swaps, word_scalars, worths
from medsam3.results.scores import QueryResult
from tests.reports.test_page import case


def test_an_answer_is_a_score_that_reaches_the_threshold() -> None:
    rows = [absent("hard", score) for score in (0.1, 0.5, 0.49999, 0.9)]
    (found,) = refusals(rows)
    assert (found.fired.mean, found.answered.mean, found.score.mean) == (0.5, 1.0, pytest.approx(0.4999975))
    assert (found.kind, found.present, found.auroc, found.mcc) == ("hard", 0, None, None) and refusals([]) == []


def absent(kind: str, score: float, **changes) -> QueryResult:
    return case("1", 0.0, kind=kind, score=score, truth_px=0, prediction_px=5, **changes)


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


def test_a_share_without_a_single_hit_is_not_sure_to_be_zero() -> None:
    groups = [f"p{i // 2}" for i in range(60)]
    found = rate_interval([False] * 60, groups, 0.95, 2000, 0)
    # Clopper and Pearson for 0 of 30: 1 - 0.025^(1 / 30)
    assert found.mean == 0.0 and found.interval == (0.0, pytest.approx(0.115703, abs=1e-6))
    assert rate_interval([True] * 60, groups, 0.95, 2000, 0).interval == (pytest.approx(0.884297, abs=1e-6), 1.0)
    assert rate_interval([False] * 18, groups[:18], 0.95, 2000, 0).interval is None
    some = rate_interval([i < 6 for i in range(60)], groups, 0.95, 2000, 0)
    assert some.mean == 0.1 and 0 <= some.interval[0] < 0.1 < some.interval[1] < 0.3


def test_the_interval_of_an_auroc_covers_the_truth() -> None:
    """30 patients of 4 images: the truth is that of two normal scores, one standard deviation apart."""
    rng, covered, groups = np.random.default_rng(3), 0, np.repeat(np.arange(30), 4).astype(str)
    for _ in range(400):
        patient = np.repeat(rng.normal(size=30), 4) * 0.7
        present, absent = (1 / (1 + np.exp(-(mean + patient + 0.714 * rng.normal(size=120)))) for mean in (1, 0))
        low, high = auroc_interval(present, groups, absent, groups, 0.95).interval
        covered += low <= 0.7602 <= high
    assert 0.925 <= covered / 400 <= 0.975
    assert auroc_interval([0.9] * 20, groups[:20], [], [], 0.95) is None
    parted = auroc_interval([0.9] * 60, groups[:60], [0.1] * 60, groups[:60], 0.95)
    assert parted.mean == 1.0 and parted.interval is None  # nothing tells how sure that is
    for few in (groups[:20], groups[:36]):  # 5 and 9 patients: their own variance would hardly be in it, or not at all
        assert auroc_interval(present, groups, absent[: len(few)], few, 0.95).interval is None
        assert auroc_interval(present[: len(few)], few, absent, groups, 0.95).interval is None
    assert auroc_interval(present, groups, absent[:40], groups[:40], 0.95).interval


def test_refusals_are_told_apart_by_kind_rule_and_data_set() -> None:
    rows = [case(str(i), 0.5, score=score) for i, score in enumerate((0.9, 0.8, 0.3))]
    rows += [absent("marked", 0.7), absent("hard", 0.95), absent("hard", 0.1), absent("easy", 0.1, dataset="drive")]
    found = {(row.dataset, row.kind): row for row in refusals(rows)}
    assert list(found) == [("papila", "marked"), ("papila", "hard"), ("drive", "easy")]
    hard = found["papila", "hard"]
    assert (hard.fired.mean, hard.fired.rows, hard.present, hard.auroc.mean) == (0.5, 2, 3, 0.5)
    assert hard.mcc == pytest.approx((2 * 1 - 1 * 1) / np.sqrt(3 * 3 * 2 * 2), abs=1e-6)
    assert refusal_means(rows, "union") == {
        "marked/answered": 1.0, "marked/fired": 1.0, "marked/auroc": pytest.approx(2 / 3), "hard/answered": 1.0,
        "hard/fired": 0.5, "hard/auroc": 0.5, "easy/answered": 1.0, "easy/fired": 0.0,
    }  # fmt: skip
    assert refusal_means(rows, "top1") == {}


def test_swapped_prompts_are_means_of_the_rows_that_have_them() -> None:
    rows = [
        case("1", 0.8, swapped=0.5, swapped_truths=0.1, swapped_absent=0.6),
        case("2", 0.6, swapped=0.3, swapped_truths=0.3, swapped_absent=0.2),
        case("3", 1.0, swapped_absent=0.1),
        absent("hard", 0.9),
    ]
    present, nothing = swaps(rows)
    assert [m.mean for m in (present.asked, present.swapped, present.perfect)] == pytest.approx([0.7, 0.4, 0.2])
    assert [m.mean for m in (nothing.asked, nothing.swapped, nothing.perfect)] == pytest.approx([0.8, 0.3, 0.0])
    assert (present.among, present.asked.rows, nothing.among, nothing.asked.rows) == ("present", 2, "absent", 3)


def test_the_spread_over_words_is_of_their_means() -> None:
    dice = {"optic cup": (0.8, 0.6), "physiologic cup": (0.2, 0.4), "optic nerve cup": (0.9, 0.7)}
    rows = [case(str(i), own[i], prompt=phrase) for phrase, own in dice.items() for i in (0, 1)]
    (found,) = spreads(rows, {("papila", "optic cup"): "optic cup"})
    assert (found.asked.mean, found.worst, found.best) == (pytest.approx(0.7), "physiologic cup", "optic nerve cup")
    assert found.by_phrase == {phrase: pytest.approx(sum(own) / 2) for phrase, own in dice.items()}
    assert found.deviation == pytest.approx(0.264575, abs=1e-6)  # of .7, .3, .8: variance (.1^2 + .3^2 + .2^2) / 2


def test_the_worth_of_a_score_leaves_foreign_words_out() -> None:
    rows = [case(str(i), dice, score=score) for i, (dice, score) in enumerate([(1.0, 0.9), (0.6, 0.5), (0.2, 0.4)])]
    silent = case("4", 1.0, kind="marked", score=0.8, truth_px=0, prediction_px=0)  # a Dice of 1 is no object found
    (found,) = worths([*rows, silent, absent("hard", 1.0)])
    # IoU is Dice / 2: |.9 - .5|, |.5 - .3|, |.4 - .1|, and .8 where nothing is there
    assert found.answers == 4 and found.ece == pytest.approx((0.4 + 0.2 + 0.3 + 0.8) / 4)
    assert found.dice_by_coverage == {"0.5": pytest.approx(0.8), "0.8": pytest.approx(0.6), "1": pytest.approx(0.6)}


def test_an_evaluation_that_is_read_row_by_row_is_told_in_full() -> None:
    """Rows come from disk and can be read once."""
    rows = [case("1", 0.5, swapped_absent=0.1), absent("hard", 0.7)]
    rows += [case("2", 0.5, dataset="z"), absent("easy", 0.7, dataset="z")]
    reworded = [case("1", 0.5, prompt="optic cup"), case("1", 0.2, prompt="cup")]
    found = obedience(iter(rows), iter(reworded))
    assert [(row.dataset, row.kind, row.present) for row in found.refusals] == [("papila", "hard", 1), ("z", "easy", 1)]
    assert (len(found.swaps), len(found.spreads), len(found.worths)) == (1, 1, 2)
    assert word_scalars(found) == {
        "union/papila/absent/hard/answered": 1.0, "union/papila/absent/hard/fired": 1.0,
        "union/papila/absent/hard/score": 0.7, "union/papila/absent/hard/auroc": 1.0,
        "union/z/absent/easy/answered": 1.0, "union/z/absent/easy/fired": 1.0,
        "union/z/absent/easy/score": 0.7, "union/z/absent/easy/auroc": 1.0,
        "swapped/papila/absent": pytest.approx(0.1),
        "union/papila/synonyms/optic cup/lowest": pytest.approx(0.2),
        "union/papila/synonyms/optic cup/deviation": pytest.approx(0.2121320),
        "union/papila/ece": 0.5, "union/z/ece": 0.5,
    }  # fmt: skip
