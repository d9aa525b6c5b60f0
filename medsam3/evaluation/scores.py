"""One result per query and mask rule, and their means. Fractions are in 0..1; tables print percent."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from medsam3.evaluation.asking import FOREIGN, PRESENT
from medsam3.evaluation.statistics import MeanInterval, average_interval, mean_interval

LEVEL, DRAWS, SEED = 0.95, 2000, 0  # of intervals
AVERAGE = "**Avg.**"  # the row of the mean over data sets


@dataclass(frozen=True, kw_only=True)
class QueryResult:
    """What one mask rule made of one concept asked of one image: a row of results.csv."""

    dataset: str
    item: str
    group: str  # patient, video or volume
    part: str
    concept: str
    prompt: str
    rule: str
    kind: str  # present; or absent: marked (by the data set), hard, easy (words of evaluation.foreign)
    score: float
    presence: float  # the model's, 0..1
    values: dict[str, float]  # by the names of METRICS
    ceiling: float  # Dice of the largest true instance alone: what a perfect instance model can reach by top1
    truth_px: int
    prediction_px: int
    swapped: float | None = None  # see Swapped; of the first rule, where the concept is in the image
    swapped_truths: float | None = None
    swapped_absent: float | None = None

    @property
    def present(self) -> bool:
        """Is the concept in the image?"""
        return self.kind == PRESENT

    @property
    def foreign(self) -> bool:
        """Is it a word that the data set does not know? It has a part in no mean but those of refusals."""
        return self.kind in FOREIGN


@dataclass(frozen=True, kw_only=True)
class Score:
    """Means over the queries of a data set; the mean over data sets is unweighted, as in Table 3."""

    values: dict[str, float]  # by the names of METRICS, over queries whose concept is there
    ceiling: float  # mean Dice, see QueryResult
    queries: int  # whose concept is there
    images: int
    absent: int  # queries whose concept is not there
    answered: float | None  # share of the absent ones that got a mask all the same; None without any
    with_absent: dict[str, float]  # as `values`, over all queries: 1 where nothing is there and nothing is answered
    left_out: dict[str, int]  # of the present queries, by metric: values that are not finite, left out of its mean


def summarise(results: Iterable[QueryResult]) -> dict[str, dict[str, Score]]:
    """Rule -> data set -> score, in the order of first appearance. A data set without any concept there has none.

    Of the concepts of the data sets alone: no foreign word takes part.
    """
    cells: dict[str, dict[str, list[QueryResult]]] = {}
    for result in (result for result in results if not result.foreign):
        cells.setdefault(result.rule, {}).setdefault(result.dataset, []).append(result)
    return {
        rule: {name: _score(rows) for name, rows in by_dataset.items() if any(row.present for row in rows)}
        for rule, by_dataset in cells.items()
    }


def _score(rows: Sequence[QueryResult]) -> Score:
    there = [row for row in rows if row.present]
    absent = [row for row in rows if not row.present]
    return Score(
        values=_means([row.values for row in there]),
        ceiling=float(np.mean([row.ceiling for row in there])),
        queries=len(there),
        images=len({row.item for row in rows}),
        absent=len(absent),
        answered=float(np.mean([row.prediction_px > 0 for row in absent])) if absent else None,
        with_absent=_means([row.values for row in rows]),
        left_out={name: sum(not math.isfinite(row.values[name]) for row in there) for name in there[0].values},
    )


def dice_intervals(results: Iterable[QueryResult]) -> dict[str, dict[str, MeanInterval]]:
    """Rule -> data set -> the mean Dice of present queries with its interval, groups drawn together.

    Of several data sets also that of their unweighted mean, as AVERAGE.
    """
    cells: dict[str, dict[str, tuple[list[float], list[str]]]] = {}
    for result in results:
        if result.present:
            values, groups = cells.setdefault(result.rule, {}).setdefault(result.dataset, ([], []))
            values.append(result.values["dice"])
            groups.append(result.group)
    found = {}
    for rule, sets in cells.items():
        found[rule] = {name: mean_interval(*own, LEVEL, DRAWS, SEED) for name, own in sets.items()}
        if len(sets) > 1:
            found[rule][AVERAGE] = average_interval(list(sets.values()), LEVEL, DRAWS, SEED)
    return found


def mean_score(scores: dict[str, Score]) -> Score:
    """Unweighted mean over data sets (the row "Avg." of Table 3)."""
    first = next(iter(scores.values()))
    answered = [score.answered for score in scores.values() if score.answered is not None]
    return Score(
        values=_means([score.values for score in scores.values()]),
        ceiling=float(np.mean([score.ceiling for score in scores.values()])),
        queries=sum(score.queries for score in scores.values()),
        images=sum(score.images for score in scores.values()),
        absent=sum(score.absent for score in scores.values()),
        answered=float(np.mean(answered)) if answered else None,
        with_absent=_means([score.with_absent for score in scores.values()]),
        left_out={name: sum(score.left_out[name] for score in scores.values()) for name in first.left_out},
    )


def _means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of the values that are finite (an HD95 without a mask is not); infinite where none is."""
    means = {}
    for name in rows[0]:
        values = np.asarray([row[name] for row in rows])
        finite = values[np.isfinite(values)]
        means[name] = float(np.mean(finite)) if len(finite) else math.inf
    return means
