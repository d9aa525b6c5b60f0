"""One result per query, and their means.

Dice and IoU are fractions in 0..1 everywhere but in tables, which print percent.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class QueryResult:
    """One concept asked of one image: a row of results.csv."""

    dataset: str
    item: str
    concept: str
    prompt: str
    score: float
    dice: float
    iou: float
    truth_px: int
    prediction_px: int


@dataclass(frozen=True)
class Score:
    """Means over the queries of a data set; the mean over data sets is unweighted, as in Table 3."""

    dice: float
    iou: float
    queries: int
    images: int


def summarise(results: Iterable[QueryResult]) -> dict[str, Score]:
    """Score of each data set, in the order of first appearance."""
    by_dataset: dict[str, list[QueryResult]] = {}
    for result in results:
        by_dataset.setdefault(result.dataset, []).append(result)
    return {
        name: Score(
            dice=float(np.mean([r.dice for r in rows])),
            iou=float(np.mean([r.iou for r in rows])),
            queries=len(rows),
            images=len({r.item for r in rows}),
        )
        for name, rows in by_dataset.items()
    }


def mean_score(scores: dict[str, Score]) -> Score:
    """Unweighted mean over data sets (the row "Avg." of Table 3)."""
    return Score(
        dice=float(np.mean([s.dice for s in scores.values()])),
        iou=float(np.mean([s.iou for s in scores.values()])),
        queries=sum(s.queries for s in scores.values()),
        images=sum(s.images for s in scores.values()),
    )
