"""Does the model say no? Numbers of its scores where a concept is absent, and of what its scores are worth.

A score is what the model gives an answer, 0 to 1; it answers where the score is at least the threshold. Nothing asked:
NaN, never a number. Scores outside 0 to 1 and NaN are refused (`ValueError`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from medsam3.metrics.statistics import MIN_GROUPS, MeanInterval, mean_interval

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


def presence_auroc(present_scores: ArrayLike, absent_scores: ArrayLike) -> float:
    """The chance that a present concept scores above an absent one, ties half (Mann and Whitney). 0.5: cannot tell."""
    present, absent = checked_scores(present_scores), checked_scores(absent_scores)
    if not (present.size and absent.size):
        return float("nan")
    return float(_below(absent, present).mean())


def rate_interval(hits: ArrayLike, groups: Sequence[str], level: float, draws: int, seed: int) -> MeanInterval:
    """A share of rows with its interval by groups, see `mean_interval`.

    Where all rows are alike (no false positive at all) a bootstrap has nothing to draw from, and its interval would be
    a point. Then the exact binomial one (Clopper and Pearson) of as many trials as there are groups takes its place.
    """
    found = mean_interval(hits, groups, level, draws, seed)
    if found.interval is None or found.mean not in (0.0, 1.0):
        return found
    reach = 1 - ((1 - level) / 2) ** (1 / found.groups)
    return replace(found, interval=(0.0, reach) if found.mean == 0.0 else (1 - reach, 1.0))


def auroc_interval(
    present: ArrayLike, present_groups: Sequence[str], absent: ArrayLike, absent_groups: Sequence[str], level: float
) -> MeanInterval | None:
    """Presence AUROC with an interval by groups, each with all its rows, present and absent.

    The variance is that of the placements (DeLong's, summed by group as Obuchowski 1997); the interval is Student's on
    the scale of logits, so that it stays within 0 to 1. None where fewer than 10 groups have present rows, or absent
    ones, and where all present rows score above all absent ones, or below: nothing tells then how sure that is.
    Simulated at 40 groups of 1 or 5 images, at 95 %: 94.5 to 95.9 % covered for an AUROC of 0.5 to 0.76, 92 to 93 % for
    one of 0.96; where 10, 3, 1 of the 40 (8 images each) have absent rows, 93, 83, 26 %.

    Args:
        present, absent: scores.

    Returns:
        None where one side has no row; `rows` are those of both.
    """
    yes, no = checked_scores(present), checked_scores(absent)
    if not (yes.size and no.size):
        return None
    auroc = presence_auroc(yes, no)
    names, index = np.unique([*present_groups, *absent_groups], return_inverse=True)
    interval = None
    if min(len(set(present_groups)), len(set(absent_groups))) >= MIN_GROUPS and 0 < auroc < 1:
        off = np.concatenate([(_below(no, yes) - auroc) / yes.size, (1 - _below(yes, no) - auroc) / no.size])
        spread = (np.bincount(index, off) ** 2).sum() * len(names) / (len(names) - 1)
        reach = stats.t.ppf((1 + level) / 2, len(names) - 1) * np.sqrt(spread) / (auroc * (1 - auroc))
        low, high = special.expit(special.logit(auroc) + np.array([-reach, reach]))
        interval = (float(low), float(high))
    return MeanInterval(auroc, interval, level, int(yes.size + no.size), len(names))


def _below(scores: Floats, values: Floats) -> Floats:
    """Of each value the share of scores below it, ties half."""
    ordered = np.sort(scores)
    return (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / (2 * len(ordered))


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
