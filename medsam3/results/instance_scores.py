"""AP, F1 and PQ per concept and data set, cgF1 per data set: what the records of single instances add up to.

Of a data set, AP, F1 and PQ are means over its concepts, each of all images where it was asked, as COCO and the authors
of PQ have it; a concept without a true instance in them has none and is left out. cgF1 and its factors are of all pairs
of image and concept in one pool, absent ones too.

Shapes: G groups, n draws of them, T IoU thresholds.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam3.metrics.concept_f1 import IOU_THRESHOLDS, from_sums, pair_table
from medsam3.metrics.instances import Ranking
from medsam3.metrics.masks import Metric
from medsam3.metrics.statistics import MIN_GROUPS, statistic_intervals
from medsam3.results.instance_records import BITS, InstanceRecord
from medsam3.results.scores import LEVEL, SEED

Floats = NDArray[np.float64]
OF_CONCEPTS = ("ap", "ap50", "ap75", "f1", "pq")
POOLED = ("cgf1", "il_mcc", "pmf1")
TITLES = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "f1": "F1@.5", "pq": "PQ", "cgf1": "cgF1"}
TITLES |= {"il_mcc": "IL_MCC", "pmf1": "pmF1"}
# of one image and concept alone, so that two results can be paired: columns of instances.csv, for compare.py
IMAGE_METRICS = {
    "f1": Metric(TITLES["f1"], lambda record: record.f1.f1),
    "pq": Metric(TITLES["pq"], lambda record: record.pq.pq),
}
NEED_SCORES = {"ap", "ap50", "ap75"}
Interval = tuple[float, float] | None
_LEVELS = [int(np.flatnonzero(np.isclose(IOU_THRESHOLDS, level))[0]) for level in (0.5, 0.75)]


@dataclass(frozen=True, kw_only=True)
class InstanceScore:
    """Of a data set, or of one concept in it."""

    values: dict[str, float | None]  # by the names of TITLES, fractions; None: there is none
    intervals: dict[str, tuple[float, float] | None]  # by groups
    queries: int  # pairs of image and concept
    absent: int  # of them without a true instance
    truths: int  # instances
    predictions: int  # of at least prediction.union_threshold
    groups: int  # that hold a true instance
    not_exhaustive: int  # pairs that cgF1 leaves out, as not all that is there is marked


@dataclass(frozen=True, kw_only=True)
class InstanceScores:
    """Of a data set."""

    own: InstanceScore
    concepts: dict[str, InstanceScore]  # those with a true instance
    kind: str = ""  # what one true instance is, see DatasetSpec.instances

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> InstanceScores:
        """As results.json has it."""
        concepts = {name: InstanceScore(**own) for name, own in content["concepts"].items()}
        return cls(own=InstanceScore(**content["own"]), concepts=concepts, kind=content["kind"])

    @property
    def values(self) -> dict[str, float | None]:
        """Those of its own that tell something: without an absent prompt IL_MCC and cgF1 are 0 whatever was found."""
        empty = () if self.own.absent else ("cgf1", "il_mcc")
        return {name: None if name in empty else value for name, value in self.own.values.items()}


def average(scores: Mapping[str, InstanceScores]) -> dict[str, float | None]:
    """Unweighted means over data sets; None where one of them has no such number."""
    columns = {name: [own.values[name] for own in scores.values()] for name in TITLES}
    told = {name: [value for value in column if value is not None] for name, column in columns.items()}
    return {name: float(np.mean(values)) if len(values) == len(scores) else None for name, values in told.items()}


def scalars(scores: Mapping[str, InstanceScores]) -> dict[str, float]:
    """For the log of a run: measure -> mean over data sets, and data set/measure -> value; those that there are."""
    values = dict(average(scores)) if scores else {}
    for dataset, own in scores.items():
        values |= {f"{dataset}/{name}": value for name, value in own.values.items()}
    return {name: value for name, value in values.items() if value is not None}


class InstanceTallies:
    """The records of many data sets, as columns of numbers: 14 bytes for each prediction, some for each group."""

    def __init__(self) -> None:
        self._sets: dict[str, _Set] = {}

    def add(self, record: InstanceRecord) -> None:
        self._sets.setdefault(record.dataset, _Set()).add(record)

    def scores(self, draws: int | None = None, kinds: Mapping[str, str] | None = None) -> dict[str, InstanceScores]:
        """Data set -> its scores; a data set without any true instance has none.

        Args:
            draws: of the intervals; None: no intervals.
            kinds: data set -> what one true instance is.
        """
        return {
            name: own.scores(draws, (kinds or {}).get(name, "")) for name, own in self._sets.items() if own.whole.truths
        }


def instance_scores(records: Iterable[InstanceRecord], draws: int | None = None) -> dict[str, InstanceScores]:
    """See `InstanceTallies.scores`."""
    tallies = InstanceTallies()
    for record in records:
        tallies.add(record)
    return tallies.scores(draws)


@dataclass
class _Counts:
    queries: int = 0
    absent: int = 0
    truths: int = 0
    predictions: int = 0
    not_exhaustive: int = 0
    ranked: bool = True
    groups: set[int] = field(default_factory=set)  # that hold a true instance

    def add(self, record: InstanceRecord, group: int) -> None:
        self.queries += 1
        self.absent += record.truths == 0
        self.truths += record.truths
        self.predictions += record.f1.true_positives + record.f1.false_positives
        self.not_exhaustive += not record.exhaustive
        self.ranked &= record.ranked
        if record.truths:
            self.groups.add(group)

    def score(self, names: Iterable[str], values: Iterable[float], ends: Iterable[Interval]) -> InstanceScore:
        lacking = set() if self.ranked else NEED_SCORES
        told = {
            name: float(v) if np.isfinite(v) and name not in lacking else None
            for name, v in zip(names, values, strict=False)
        }
        few = len(self.groups) < MIN_GROUPS
        return InstanceScore(
            values=told,
            intervals={
                name: None if few or told[name] is None else own for name, own in zip(names, ends, strict=False)
            },
            queries=self.queries,
            absent=self.absent,
            truths=self.truths,
            predictions=self.predictions,
            groups=len(self.groups),
            not_exhaustive=self.not_exhaustive,
        )


class _Concept:
    """A concept's images in one data set."""

    def __init__(self) -> None:
        self.counts = _Counts()
        self._scores, self._hits, self._groups = array("d"), array("h"), array("i")  # of predictions
        self._sums: dict[int, Floats] = {}  # [8] by group: truths; TP, FP, FN of F1; TP, FP, FN and IoU of PQ

    def add(self, record: InstanceRecord, group: int) -> None:
        self.counts.add(record, group)
        self._scores.extend(record.scores)
        self._hits.extend(record.hits)
        self._groups.extend([group] * len(record.scores))
        f1, pq = record.f1, record.pq
        row: list[float] = [record.truths, f1.true_positives, f1.false_positives, f1.false_negatives]
        row += [pq.true_positives, pq.false_positives, pq.false_negatives, pq.iou_sum]
        self._sums[group] = self._sums.get(group, 0) + np.asarray(row, dtype=np.float64)

    @cached_property
    def _ranking(self) -> Ranking:
        """Of what was added by now."""
        hits = (np.asarray(self._hits) & BITS[:, None]) > 0
        return Ranking.of(np.asarray(self._scores), hits, np.asarray(self._groups, dtype=np.int64))

    def values(self, drawn: Floats) -> Floats:
        """[n, 5] by OF_CONCEPTS, of how often each group is drawn, [n, G]; NaN where no true instance is."""
        sums = _table(self._sums, 8, drawn.shape[1])
        ap = self._ranking.average_precision(sums[:, 0], drawn)
        _, tp, fp, fn, *pq, iou = (drawn @ sums).T
        with np.errstate(invalid="ignore"):  # nothing on either side of a draw
            f1, quality = 2 * tp / (2 * tp + fp + fn), iou / (pq[0] + (pq[1] + pq[2]) / 2)
        found = np.column_stack([ap.mean(axis=1), ap[:, _LEVELS], f1, quality])
        found[np.isnan(ap[:, 0])] = np.nan
        return found


def _table(rows: dict[int, Floats], width: int, groups: int) -> Floats:
    """[G, width], zeros where a group has no row."""
    table = np.zeros((groups, width))
    for group, row in rows.items():
        table[group] = row
    return table


class _Set:
    """A data set."""

    def __init__(self) -> None:
        self.whole = _Counts()
        self._groups: dict[str, int] = {}
        self._concepts: dict[str, _Concept] = {}
        self._pairs: dict[int, Floats] = {}  # by group, see `pair_table`

    def add(self, record: InstanceRecord) -> None:
        group = self._groups.setdefault(record.group, len(self._groups))
        self.whole.add(record, group)
        self._concepts.setdefault(record.concept, _Concept()).add(record, group)
        if record.exhaustive:
            self._pairs[group] = self._pairs.get(group, 0) + pair_table([record.pair])[0].astype(np.float64)

    def scores(self, draws: int | None, kind: str) -> InstanceScores:
        concepts = {name: own for name, own in self._concepts.items() if own.counts.truths}
        pairs = _table(self._pairs, len(IOU_THRESHOLDS) + 7, len(self._groups))

        def numbers(drawn: Floats) -> Floats:
            """[n, 8 + 5 concepts]"""
            each = [own.values(drawn) for own in concepts.values()]
            pool = from_sums(drawn @ pairs)
            factors = (pool.cgf1.mean(axis=1), pool.image_level.mcc[:, 0], pool.positive_micro_f1.mean(axis=1))
            pooled = np.column_stack(factors) if self._pairs else np.full((len(drawn), len(POOLED)), np.nan)
            return np.concatenate([_mean_of_finite(np.stack(each)), pooled, *each], axis=1)

        found = numbers(np.ones((1, len(self._groups))))[0]
        ends = statistic_intervals(numbers, len(self._groups), LEVEL, draws, SEED) if draws else [None] * len(found)
        own = self.whole.score(TITLES, found, ends)
        of_concepts, start = {}, len(TITLES)
        for name, concept in concepts.items():
            of_concepts[name] = concept.counts.score(OF_CONCEPTS, found[start:], ends[start:])
            start += len(OF_CONCEPTS)
        return InstanceScores(own=own, concepts=of_concepts, kind=kind)


def _mean_of_finite(values: Floats) -> Floats:
    """[n, K] from [concepts, n, K]; NaN where no concept has one."""
    kept = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(kept, values, 0).sum(axis=0) / kept.sum(axis=0)
