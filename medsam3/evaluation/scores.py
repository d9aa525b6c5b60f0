"""One result per query and mask rule, and their means. Fractions are in 0..1; tables print percent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from medsam3.evaluation.metrics import METRICS


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
    present: bool  # is the concept in the image?
    score: float
    presence: float  # the model's, 0..1
    values: dict[str, float]  # by the names of METRICS
    ceiling: float  # Dice of the largest true instance alone: what a perfect instance model can reach by top1
    truth_px: int
    prediction_px: int


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


def summarise(results: Iterable[QueryResult]) -> dict[str, dict[str, Score]]:
    """Rule -> data set -> score, in the order of first appearance. A data set without any concept there has none."""
    cells: dict[str, dict[str, list[QueryResult]]] = {}
    for result in results:
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
    )


def mean_score(scores: dict[str, Score]) -> Score:
    """Unweighted mean over data sets (the row "Avg." of Table 3)."""
    answered = [score.answered for score in scores.values() if score.answered is not None]
    return Score(
        values=_means([score.values for score in scores.values()]),
        ceiling=float(np.mean([score.ceiling for score in scores.values()])),
        queries=sum(score.queries for score in scores.values()),
        images=sum(score.images for score in scores.values()),
        absent=sum(score.absent for score in scores.values()),
        answered=float(np.mean(answered)) if answered else None,
        with_absent=_means([score.with_absent for score in scores.values()]),
    )


def _means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([values[name] for values in rows])) for name in METRICS}
