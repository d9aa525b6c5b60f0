"""Does the model say no? Numbers of its scores where a concept is absent, and of what its scores are worth.

A score is what the model gives an answer, 0 to 1; it answers where the score is at least the threshold. Nothing asked:
NaN, never a number. Scores outside 0 to 1 and NaN are refused (`ValueError`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

Floats = NDArray[np.float64]


def checked_scores(values: ArrayLike) -> Floats:
    """Scores as they are.

    Raises:
        ValueError: one outside 0 to 1 or NaN.
    """
    scores = np.asarray(values, dtype=np.float64)
    wrong = scores[~((scores >= 0) & (scores <= 1))]
    if wrong.size:
        raise ValueError(f"{wrong.size} of {scores.size} values lie outside 0 to 1, the first is {wrong[0]}")
    return scores


def false_positive_rate(absent_scores: ArrayLike, threshold: float) -> float:
    """The share of absent concepts that are answered all the same. Lower is better."""
    scores = checked_scores(absent_scores)
    return float((scores >= threshold).mean()) if scores.size else float("nan")


def presence_auroc(present_scores: ArrayLike, absent_scores: ArrayLike) -> float:
    """The chance that a present concept scores above an absent one, ties half (Mann and Whitney). 0.5: cannot tell."""
    present, absent = checked_scores(present_scores), checked_scores(absent_scores)
    if not (present.size and absent.size):
        return float("nan")
    ranks = rankdata(np.concatenate([present, absent]))[: present.size]
    return float((ranks.mean() - (present.size + 1) / 2) / absent.size)


@dataclass(frozen=True)
class Reliability:
    """Scores against what they achieved, in B bins of equal width: [low, high), the last one closed."""

    edges: Floats  # [B + 1]
    counts: NDArray[np.int64]  # [B]
    mean_scores: Floats  # [B], NaN in an empty bin
    mean_outcomes: Floats  # [B], likewise

    @property
    def error(self) -> float:
        """Expected calibration error (ECE): the mean of |score - outcome| over bins, weighed by their answers."""
        used = self.counts > 0
        gaps = np.abs(self.mean_scores[used] - self.mean_outcomes[used])
        return float((gaps * self.counts[used]).sum() / self.counts.sum()) if used.any() else float("nan")


def reliability(scores: ArrayLike, outcomes: ArrayLike, bins: int) -> Reliability:
    """Reliability diagram and calibration error.

    Args:
        scores: one per answer, 0 to 1.
        outcomes: what the score should foretell, 0 to 1: the IoU achieved, or whether the concept is present.
        bins: how many.

    Raises:
        ValueError: unequal lengths, values outside 0 to 1.
    """
    stated, achieved = checked_scores(scores), checked_scores(outcomes)
    if stated.shape != achieved.shape:
        raise ValueError(f"{stated.size} scores and {achieved.size} outcomes: must be one outcome for each score")
    edges = np.linspace(0.0, 1.0, bins + 1)
    place = np.clip(np.searchsorted(edges, stated, side="right") - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    means = [
        np.divide(np.bincount(place, values, bins), counts, out=np.full(bins, np.nan), where=counts > 0)
        for values in (stated, achieved)
    ]
    return Reliability(edges, counts, *means)


def mean_by_coverage(scores: ArrayLike, values: ArrayLike) -> tuple[Floats, Floats]:
    """If only the answers of the highest scores are kept, how good are they? (the other face of a risk-coverage curve)

    Returns:
        Coverage, the share of answers kept, rising to 1, and the mean of `values` (Dice) over them, one entry per
        distinct score, as answers of equal score are kept or dropped together.
    """
    stated, achieved = checked_scores(scores), np.asarray(values, dtype=np.float64)
    order = np.argsort(-stated, kind="stable")
    last = np.flatnonzero(np.diff(stated[order], append=-np.inf))  # the last of each run of equal scores
    kept = last + 1
    return kept / max(stated.size, 1), achieved[order].cumsum()[last] / kept
