"""Intervals and paired tests: by hand, against enumeration, and by how often they are right in simulated studies."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from medsam3.metrics.statistics import average_interval, compare_paired, holm, mean_interval

SETTINGS = {"level": 0.95, "draws": 2000, "seed": 3}


def simulated(rng: np.random.Generator, sizes: str, scores: str) -> tuple[np.ndarray, np.ndarray, float]:
    """Scores of 40 patients, the patient of each, and the true mean."""
    rows = {"equal": np.full(40, 5), "unequal": rng.geometric(0.15, 40)}[sizes]
    patient = np.repeat(np.arange(40), rows)
    if scores == "normal":
        return 0.7 + 0.1 * rng.standard_normal(40)[patient] + 0.1 * rng.standard_normal(len(patient)), patient, 0.7
    if scores == "skewed":  # Dice-like: most near 0.95, a tail to the left
        mean = rng.beta(8, 1.5, 40)[patient]
        return rng.beta(20 * mean, 20 * (1 - mean)), patient, 8 / 9.5
    failed = (rng.random(40) < 0.08)[patient]  # 8 % of patients fail
    return np.where(failed, 0.1, 0.9) + 0.02 * rng.uniform(-1, 1, len(patient)), patient, 0.08 * 0.1 + 0.92 * 0.9


@pytest.mark.parametrize(
    ("sizes", "scores"),
    [("equal", "normal"), ("unequal", "normal"), ("equal", "skewed"), ("unequal", "skewed"), ("equal", "failures")],
)
def test_a_95_percent_interval_covers_93_to_97_percent_at_40_patients(sizes: str, scores: str) -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for study in range(500):
        values, patient, truth = simulated(rng, sizes, scores)
        low, high = mean_interval(values, patient, 0.95, 2000, study).interval
        covered += low <= truth <= high
    assert 0.93 <= covered / 500 <= 0.97


def test_images_taken_for_patients_would_cover_far_less() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for study in range(60):
        values, _, truth = simulated(rng, "equal", "skewed")
        low, high = mean_interval(values, np.arange(len(values)), 0.95, 2000, study).interval
        covered += low <= truth <= high
    assert covered / 60 < 0.8


@pytest.mark.parametrize("sizes", ["equal", "unequal"])
def test_paired_tests_keep_their_level_under_the_null(sizes: str) -> None:
    rng = np.random.default_rng(0)
    p_values = []
    for study in range(300):
        base, patient, _ = simulated(rng, sizes, "skewed")
        one, two = (base + 0.05 * rng.standard_normal(40)[patient] for _ in range(2))
        result = compare_paired(one, two, patient, 0.95, 2000, study)
        p_values.append((result.permutation_p, result.wilcoxon_p))
    for rate in (np.asarray(p_values) <= 0.05).mean(axis=0):
        assert 0.03 <= rate <= 0.07


def test_the_mean_is_over_rows_and_groups_are_counted() -> None:
    groups = [f"p{i % 12}" for i in range(30)]
    values = np.arange(30) / 30
    found = mean_interval(values, groups, **SETTINGS)
    assert (found.rows, found.groups, found.level) == (30, 12, 0.95)
    assert found.mean == pytest.approx(values.mean())
    low, high = found.interval
    assert values.min() < low < found.mean < high < values.max()
    assert mean_interval(values, groups, **SETTINGS) == found
    narrow = mean_interval(values, groups, **SETTINGS | {"level": 0.5}).interval
    assert low < narrow[0] < narrow[1] < high
    # the names and the order of the groups do not matter
    order = np.random.default_rng(0).permutation(30)
    again = mean_interval(values[order], [groups[i] for i in order], **SETTINGS)
    assert again.interval == pytest.approx(found.interval, abs=1e-12)


def test_many_groups_agree_with_the_normal_approximation() -> None:
    values = np.random.default_rng(0).normal(0.8, 0.1, 3000)  # several blocks of draws
    low, high = mean_interval(values, np.arange(3000), **SETTINGS).interval
    half = 1.96 * values.std() / 3000**0.5
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=2e-4)


def test_the_mean_over_data_sets_draws_within_each() -> None:
    rng = np.random.default_rng(0)
    low_set, high_set = (rng.normal(mean, sd, 900) for mean, sd in ((0.2, 0.1), (0.9, 0.02)))
    found = average_interval([(low_set, range(900)), (high_set[:400], range(400))], 0.95, 20_000, 3)
    half = 1.96 * (0.1**2 / 900 + 0.02**2 / 400) ** 0.5 / 2  # of half the sum of two independent means
    assert found.interval == pytest.approx((found.mean - half, found.mean + half), abs=3e-4)
    assert found.mean == pytest.approx((low_set.mean() + high_set[:400].mean()) / 2)  # unweighted
    assert (found.rows, found.groups) == (1300, 1300)
    apart = average_interval([(np.zeros(20), range(20)), (np.ones(20), range(20))], **SETTINGS)
    assert apart.interval == pytest.approx((0.5, 0.5))  # drawn from all together it would be wide
    few = average_interval([(low_set, range(900)), (high_set[:90], [i % 9 for i in range(90)])], **SETTINGS)
    assert few.interval is None and few.mean == pytest.approx((low_set.mean() + high_set[:90].mean()) / 2)


def test_the_interval_of_a_mean_over_small_data_sets_covers() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for study in range(300):
        patients = [np.repeat(np.arange(g), rng.geometric(0.2, g)) for g in (12, 25, 60)]
        sets = [
            (0.7 + spread * rng.standard_normal(p[-1] + 1)[p] + 0.05 * rng.standard_normal(len(p)), p)
            for p, spread in zip(patients, (0.15, 0.05, 0.1), strict=True)
        ]
        low, high = average_interval(sets, 0.95, 2000, study).interval
        covered += low <= 0.7 <= high
    assert 0.93 <= covered / 300 <= 0.97


def test_no_interval_below_ten_groups() -> None:
    values = np.linspace(0, 1, 90)
    assert mean_interval(values, [i % 9 for i in range(90)], **SETTINGS).interval is None
    assert mean_interval(values, [i % 10 for i in range(90)], **SETTINGS).interval is not None


def test_the_mean_lies_in_its_interval_however_unequal_the_groups() -> None:
    rng = np.random.default_rng(0)
    for seed in range(40):
        sizes = np.exp(rng.normal(0, 2, 30)).astype(int) + 1
        sizes[0] += 2000 * (seed % 2)
        values = (np.arange(30) != seed % 3).astype(float)  # one group fails, at times the giant
        found = mean_interval(np.repeat(values, sizes), np.repeat(np.arange(30), sizes), 0.95, 2000, seed)
        assert found.interval[0] <= found.mean <= found.interval[1]


def test_equal_values_and_one_giant_group() -> None:
    assert mean_interval(np.full(20, 0.1), np.arange(20), **SETTINGS).interval == pytest.approx((0.1, 0.1))
    giant = mean_interval([1.0] * 11 + [0.0] * 1000, [*range(11), *[99] * 1000], **SETTINGS)
    assert giant.interval == pytest.approx((0.0, 1.0), abs=0.01)  # 12 groups, but as good as one: nothing is known


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": [0.5, math.inf]}, "1 of 2 values are not finite"),
        ({"values": [0.5]}, r"values \[1\] and 2 groups"),
        ({"values": [], "groups": []}, "must be 1 row or more"),
        ({"draws": 1999}, "draws=1999: must be at least 2000"),
        ({"level": 95}, "level=95: must lie between 0 and 1"),
    ],
)
def test_bad_input_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mean_interval(**({"values": [0.5, 0.6], "groups": ["a", "b"]} | SETTINGS | change))


def test_comparison_by_hand() -> None:
    # group differences: a +.2 (two rows), b +.1, c -.1, d 0
    first, second = [0.5, 0.5, 0.5, 0.5, 0.5], [0.6, 0.8, 0.6, 0.4, 0.5]
    found = compare_paired(first, second, ["a", "a", "b", "c", "d"], **SETTINGS)
    assert found.difference.mean == pytest.approx(0.08) and found.difference.interval is None
    assert (found.better, found.equal, found.worse) == (2, 1, 1)
    # sums .4, .1, -.1, 0: |.4 +- .1 -+ .1| >= .4 for 6 of 8 flips
    assert found.permutation_p == 6 / 8
    assert found.cohen_dz == pytest.approx(0.05 / np.std([0.2, 0.1, -0.1, 0.0], ddof=1))
    assert found.rank_biserial == pytest.approx((3 + 1.5 - 1.5) / 6)


def test_flips_are_all_flips_of_few_groups_and_random_ones_of_many() -> None:
    rng = np.random.default_rng(0)
    differences = rng.normal(0.3, 0.5, 10)
    flipped = [abs(np.dot(signs, differences)) for signs in itertools.product((1, -1), repeat=10)]
    exact = np.mean(np.asarray(flipped) >= abs(differences.sum()) - 1e-12)
    zeros = np.zeros(10)
    assert compare_paired(zeros, differences, range(10), **SETTINGS).permutation_p == exact
    many = np.concatenate([differences, zeros])  # 20 groups, 10 of them equal: the same test
    sampled = compare_paired(np.zeros(20), many, range(20), **SETTINGS | {"draws": 20_000}).permutation_p
    assert sampled == pytest.approx(exact, abs=0.01)


def test_a_clear_gain_and_no_difference_at_all() -> None:
    rng = np.random.default_rng(0)
    base = rng.random(60)
    gain = compare_paired(base, base + rng.uniform(0.01, 0.05, 60), range(60), **SETTINGS)
    assert gain.permutation_p == 1 / 2001 and gain.wilcoxon_p < 1e-9
    assert gain.rank_biserial == 1.0 and gain.cohen_dz > 2 and gain.difference.interval[0] > 0
    same = compare_paired(base, base + 1e-16, range(60), **SETTINGS)
    assert (same.permutation_p, same.wilcoxon_p, same.cohen_dz, same.rank_biserial, same.equal) == (1, 1, 0, 0, 60)
    constant = compare_paired(base, base + 0.1, range(60), **SETTINGS)
    assert constant.cohen_dz == math.inf and constant.permutation_p < 0.001


def test_one_patient_proves_nothing() -> None:
    one = compare_paired([0.1, 0.2], [0.5, 0.6], ["a", "a"], **SETTINGS)
    assert (one.permutation_p, one.wilcoxon_p) == (1.0, 1.0) and math.isnan(one.cohen_dz)


def test_unlike_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="2 rows and 3 rows"):
        compare_paired([0.1, 0.2], [0.1, 0.2, 0.3], ["a", "b"], **SETTINGS)


def test_holm_by_hand() -> None:
    # sorted .01 .02 .03 .04, times 4 3 2 1 = .04 .06 .06 .04, and never below the one before
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0] and holm([]) == []
    with pytest.raises(ValueError, match="must lie in 0 to 1"):
        holm([0.5, math.nan])
