"""One result per query and mask rule, and their means. Fractions are in 0..1; tables print percent."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medsam3.metrics.masks import PX, has_mean, one_unit
from medsam3.metrics.statistics import MeanInterval, average_interval, mean_interval
from medsam3.results.asking import FOREIGN, PRESENT

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
    score: float  # NaN: masks that came as files have none
    presence: float  # the model's, 0..1; NaN likewise
    values: dict[str, float]  # by the names of METRICS
    ceiling: float  # Dice of the largest true instance alone: what a perfect instance model can reach by top1
    truth_px: int
    prediction_px: int
    unit: str = PX  # of distances: mm where the file says how large a pixel is, else px
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
    unit: str = PX  # of distances; "mm and px": their means are NaN


class Tally:
    """The results of one mask rule in one data set, as columns of numbers, some 50 bytes for each."""

    def __init__(self) -> None:
        self._values: dict[str, array[float]] = {}  # by metric
        self._ceilings = array("d")
        self._present, self._answered = array("b"), array("b")
        self._items = array("q")  # hashes
        self._units: set[str] = set()  # of what is there

    def add(self, result: QueryResult) -> None:
        for name, value in result.values.items():
            self._values.setdefault(name, array("d")).append(value)
        self._ceilings.append(result.ceiling)
        self._present.append(result.present)
        self._answered.append(result.prediction_px > 0)
        self._items.append(hash(result.item))
        self._units |= {result.unit} if result.present else set()

    def score(self) -> Score | None:
        """None if the data set is without any concept there."""
        there = np.asarray(self._present, dtype=bool)
        if not there.any():
            return None
        values = {name: np.asarray(column) for name, column in self._values.items()}
        present = {name: column[there] for name, column in values.items()}
        answered = np.asarray(self._answered)[~there]
        unit = one_unit(self._units)
        return Score(
            values=_means(present, unit),
            ceiling=float(np.mean(np.asarray(self._ceilings)[there])),
            queries=int(there.sum()),
            images=len(np.unique(self._items)),
            absent=len(answered),
            answered=float(np.mean(answered)) if len(answered) else None,
            with_absent=_means(values, unit),
            left_out={name: int((~np.isfinite(column)).sum()) for name, column in present.items()},
            unit=unit,
        )


class Tallies:
    """By rule and data set, in the order of first appearance. No foreign word takes part."""

    def __init__(self) -> None:
        self._tallies: dict[str, dict[str, Tally]] = {}

    def add(self, result: QueryResult) -> None:
        if not result.foreign:
            self._tallies.setdefault(result.rule, {}).setdefault(result.dataset, Tally()).add(result)

    def scores(self) -> dict[str, dict[str, Score]]:
        """Rule -> data set -> score. A data set without any concept there has none."""
        scores = {rule: {name: own.score() for name, own in found.items()} for rule, found in self._tallies.items()}
        return {
            rule: {name: score for name, score in found.items() if score is not None} for rule, found in scores.items()
        }


def summarise(results: Iterable[QueryResult]) -> dict[str, dict[str, Score]]:
    """See `Tallies.scores`."""
    tallies = Tallies()
    for result in results:
        tallies.add(result)
    return tallies.scores()


class _Dice:
    """The Dice of present queries of one rule in one data set, and their groups."""

    def __init__(self) -> None:
        self._values, self._groups = array("d"), array("q")
        self._numbers: dict[str, int] = {}

    def add(self, result: QueryResult) -> None:
        self._values.append(result.values["dice"])
        self._groups.append(self._numbers.setdefault(result.group, len(self._numbers)))

    @property
    def columns(self) -> tuple[array[float], NDArray[np.int64]]:
        """Values and groups, [N] each, groups as numbers in the order of their names."""
        places = np.empty(len(self._numbers), dtype=np.int64)
        places[[self._numbers[name] for name in sorted(self._numbers)]] = np.arange(len(places))
        return self._values, places[self._groups]


def dice_intervals(results: Iterable[QueryResult]) -> dict[str, dict[str, MeanInterval]]:
    """Rule -> data set -> the mean Dice of present queries with its interval, groups drawn together.

    Of several data sets also that of their unweighted mean, as AVERAGE.
    """
    cells: dict[str, dict[str, _Dice]] = {}
    for result in results:
        if result.present:
            cells.setdefault(result.rule, {}).setdefault(result.dataset, _Dice()).add(result)
    found = {}
    for rule, sets in cells.items():
        columns = {name: own.columns for name, own in sets.items()}
        found[rule] = {name: mean_interval(*own, LEVEL, DRAWS, SEED) for name, own in columns.items()}
        if len(sets) > 1:
            found[rule][AVERAGE] = average_interval(list(columns.values()), LEVEL, DRAWS, SEED)
    return found


def mean_score(scores: dict[str, Score]) -> Score:
    """Unweighted mean over data sets (the row "Avg." of Table 3); infinite where one of them has no finite value."""
    first = next(iter(scores.values()))
    answered = [score.answered for score in scores.values() if score.answered is not None]
    unit = one_unit(score.unit for score in scores.values())
    return Score(
        values=_mean_of_sets([score.values for score in scores.values()], unit),
        ceiling=float(np.mean([score.ceiling for score in scores.values()])),
        queries=sum(score.queries for score in scores.values()),
        images=sum(score.images for score in scores.values()),
        absent=sum(score.absent for score in scores.values()),
        answered=float(np.mean(answered)) if answered else None,
        with_absent=_mean_of_sets([score.with_absent for score in scores.values()], unit),
        left_out={name: sum(score.left_out[name] for score in scores.values()) for name in first.left_out},
        unit=unit,
    )


def _mean_of_sets(rows: Sequence[dict[str, float]], unit: str) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) if has_mean(name, unit) else math.nan for name in rows[0]}


def _means(columns: Mapping[str, NDArray[np.float64]], unit: str) -> dict[str, float]:
    """Of the values that are finite (an HD95 without a mask is not); infinite where none is; NaN of several units."""
    means = {}
    for name, values in columns.items():
        finite = values[np.isfinite(values)]
        means[name] = float(np.mean(finite)) if len(finite) else math.inf
        if not has_mean(name, unit):
            means[name] = math.nan
    return means
