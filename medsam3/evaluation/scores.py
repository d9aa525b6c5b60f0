"""One result per query, and their means. Fractions are in 0..1 everywhere but in tables, which print percent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from medsam3.evaluation.metrics import METRICS


@dataclass(frozen=True, kw_only=True)
class QueryResult:
    """One concept asked of one image: a row of results.csv."""

    dataset: str
    item: str
    concept: str
    prompt: str
    score: float
    values: dict[str, float]  # by the names of METRICS
    truth_px: int
    prediction_px: int


@dataclass(frozen=True, kw_only=True)
class Score:
    """Means over the queries of a data set; the mean over data sets is unweighted, as in Table 3."""

    values: dict[str, float]  # by the names of METRICS
    queries: int
    images: int


def summarise(results: Iterable[QueryResult]) -> dict[str, Score]:
    """Score of each data set, in the order of first appearance."""
    by_dataset: dict[str, list[QueryResult]] = {}
    for result in results:
        by_dataset.setdefault(result.dataset, []).append(result)
    return {
        name: Score(
            values=_means([row.values for row in rows]), queries=len(rows), images=len({row.item for row in rows})
        )
        for name, rows in by_dataset.items()
    }


def mean_score(scores: dict[str, Score]) -> Score:
    """Unweighted mean over data sets (the row "Avg." of Table 3)."""
    return Score(
        values=_means([score.values for score in scores.values()]),
        queries=sum(score.queries for score in scores.values()),
        images=sum(score.images for score in scores.values()),
    )


def _means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([values[name] for values in rows])) for name in METRICS}
