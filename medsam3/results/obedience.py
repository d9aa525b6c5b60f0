"""Does the model hear its words? Numbers over the rows of an evaluation: what it answers to what is not there, what it
returns for one concept where another one is, how it takes synonyms, and what its scores are worth.

Every number has its interval by groups, see `mean_interval`. Fractions in 0..1; none: no row to tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from medsam3.metrics.concept_f1 import SCORE_THRESHOLD, ImageLevel
from medsam3.metrics.refusals import auroc_interval, mean_by_coverage, presence_auroc, rate_interval, reliability
from medsam3.metrics.statistics import MeanInterval, mean_interval
from medsam3.results.asking import FOREIGN, MARKED, PRESENT
from medsam3.results.scores import DRAWS, LEVEL, SEED, QueryResult

BINS = 10  # of the reliability diagram
COVERAGES = (0.5, 0.8, 1.0)
ABSENT = (MARKED, *FOREIGN)
K = TypeVar("K")


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Answers to absent concepts of one kind (ABSENT), by one mask rule."""

    rule: str
    dataset: str
    kind: str
    present: int  # queries whose concept is there; those with a score count in AUROC and IL_MCC
    answered: MeanInterval  # share that got a mask: false positives at the thresholds of the rule
    fired: MeanInterval | None  # share whose score reaches 0.5
    score: MeanInterval | None  # mean
    auroc: MeanInterval | None  # of the score: present against absent
    mcc: float | None  # IL_MCC of "the score reaches 0.5"


@dataclass(frozen=True, kw_only=True)
class Swap:
    """Dice with the truth of a concept in the image, by the first rule."""

    dataset: str
    among: str  # present: other concepts in the image; absent: what is not there
    asked: MeanInterval  # of the answer to the concept's own prompt
    swapped: MeanInterval  # of the answers to the others
    perfect: MeanInterval  # of the others' truths: what a model gives that makes no mistake


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean Dice of a concept that is there, by the words that asked for it; overlaps are not resolved here."""

    rule: str
    dataset: str
    concept: str
    prompt: str  # the words of the evaluation
    asked: MeanInterval  # with these
    by_phrase: dict[str, float]  # with each of the phrases, these among them

    @property
    def worst(self) -> str:
        return min(self.by_phrase, key=self.by_phrase.__getitem__)

    @property
    def best(self) -> str:
        return max(self.by_phrase, key=self.by_phrase.__getitem__)

    @property
    def deviation(self) -> float:
        """Standard deviation over the phrases."""
        return float(np.std(list(self.by_phrase.values()), ddof=1)) if len(self.by_phrase) > 1 else 0.0


@dataclass(frozen=True, kw_only=True)
class Worth:
    """What a score promises, and whether it tells good answers from bad ones; concepts of the data set alone."""

    rule: str
    dataset: str
    answers: int
    ece: float | None  # of the score against the IoU achieved (0 where nothing is there); None without IoU
    dice_by_coverage: dict[str, float]  # share kept, those of the highest scores -> mean Dice of present queries


@dataclass(frozen=True)
class Obedience:
    refusals: list[Refusal]
    swaps: list[Swap]
    spreads: list[Spread]
    worths: list[Worth]


def obedience(results: Iterable[QueryResult], reworded: Iterable[QueryResult]) -> Obedience:
    """All that the rows of an evaluation tell; those of one data set at a time are in memory.

    Args:
        results: sorted by data set.
        reworded: see `Finding`; likewise.
    """
    found = Obedience([], [], [], [])
    prompts: dict[tuple[str, str], str] = {}
    for _, rows in groupby(results, key=lambda row: row.dataset):
        own = list(rows)
        prompts |= {(row.dataset, row.concept): row.prompt for row in own}
        found.refusals.extend(refusals(own))
        found.swaps.extend(swaps(own))
        found.worths.extend(worths(own))
    for _, rows in groupby(reworded, key=lambda row: row.dataset):
        found.spreads.extend(spreads(rows, prompts))
    return found


def word_scalars(found: Obedience) -> dict[str, float]:
    """Named numbers of all tables but the single words, as fractions; what has no value is left out."""
    values: dict[str, float] = {}
    for row in found.refusals:
        means = {"answered": row.answered, "fired": row.fired, "score": row.score, "auroc": row.auroc}
        place = f"{row.rule}/{row.dataset}/absent/{row.kind}"
        values |= {f"{place}/{name}": mean.mean for name, mean in means.items() if mean}
    for swap in found.swaps:
        values[f"swapped/{swap.dataset}/{swap.among}"] = swap.swapped.mean
    for spread in found.spreads:
        place = f"{spread.rule}/{spread.dataset}/synonyms/{spread.concept}"
        values |= {f"{place}/lowest": spread.by_phrase[spread.worst], f"{place}/deviation": spread.deviation}
    for worth in found.worths:
        values |= {} if worth.ece is None else {f"{worth.rule}/{worth.dataset}/ece": worth.ece}
    return values


def refusals(results: Iterable[QueryResult]) -> list[Refusal]:
    """By mask rule, data set and kind, as far as any was asked."""
    found = []
    for (rule, dataset), rows in _cells(results, lambda row: (row.rule, row.dataset)).items():
        there = [row for row in rows if row.kind == PRESENT]
        for kind in ABSENT:
            if absent := [row for row in rows if row.kind == kind]:
                found.append(_refusal(rule, dataset, kind, there, absent))
    return found


def _refusal(rule: str, dataset: str, kind: str, there: list[QueryResult], absent: list[QueryResult]) -> Refusal:
    known, scored = _scored(there), _scored(absent)  # masks from files have no scores
    yes, no = ([row.score for row in rows] for rows in (known, scored))
    hits, alarms = (sum(score >= SCORE_THRESHOLD for score in scores) for scores in (yes, no))
    answered = rate_interval([row.prediction_px > 0 for row in absent], _groups(absent), LEVEL, DRAWS, SEED)
    fired = score = None
    if scored:
        fired = rate_interval([row.score >= SCORE_THRESHOLD for row in scored], _groups(scored), LEVEL, DRAWS, SEED)
        score = mean_interval(no, _groups(scored), LEVEL, DRAWS, SEED)
    return Refusal(
        rule=rule,
        dataset=dataset,
        kind=kind,
        present=len(there),
        answered=answered,
        fired=fired,
        score=score,
        auroc=auroc_interval(yes, _groups(known), no, _groups(scored), LEVEL),
        mcc=ImageLevel(hits, alarms, len(no) - alarms, len(yes) - hits).mcc if yes and no else None,
    )


def swaps(results: Iterable[QueryResult]) -> list[Swap]:
    """By data set, as far as anything else was asked of an image that holds a concept."""
    found = []
    for dataset, rows in _cells(results, lambda row: row.dataset).items():
        if own := [row for row in rows if row.swapped is not None]:
            found.append(_swap(dataset, "present", own, _values(own, "swapped"), _values(own, "swapped_truths")))
        if own := [row for row in rows if row.swapped_absent is not None]:
            found.append(_swap(dataset, "absent", own, _values(own, "swapped_absent"), [0.0] * len(own)))
    return found


def _swap(dataset: str, among: str, rows: list[QueryResult], swapped: ArrayLike, perfect: ArrayLike) -> Swap:
    own, others, best = (
        mean_interval(values, _groups(rows), LEVEL, DRAWS, SEED) for values in (_dice(rows), swapped, perfect)
    )
    return Swap(dataset=dataset, among=among, asked=own, swapped=others, perfect=best)


def spreads(reworded: Iterable[QueryResult], prompts: Mapping[tuple[str, str], str]) -> list[Spread]:
    """
    Args:
        prompts: data set and concept -> the words of the evaluation.
    """
    found = []
    for (rule, dataset, concept), rows in _cells(reworded, lambda row: (row.rule, row.dataset, row.concept)).items():
        phrases = _cells(rows, lambda row: row.prompt)
        prompt = prompts[dataset, concept]
        asked = phrases[prompt]
        found.append(
            Spread(
                rule=rule,
                dataset=dataset,
                concept=concept,
                prompt=prompt,
                asked=mean_interval(_dice(asked), _groups(asked), LEVEL, DRAWS, SEED),
                by_phrase={phrase: float(np.mean(_dice(own))) for phrase, own in phrases.items()},
            )
        )
    return found


def worths(results: Iterable[QueryResult]) -> list[Worth]:
    """By mask rule and data set, where there are scores."""
    found = []
    own = _scored(row for row in results if row.kind not in FOREIGN)
    for (rule, dataset), rows in _cells(own, lambda row: (row.rule, row.dataset)).items():
        there = [row for row in rows if row.kind == PRESENT and math.isfinite(row.values["dice"])]
        ece, kept = None, {}
        if "iou" in rows[0].values and all(map(math.isfinite, outcomes := achieved(rows))):
            ece = reliability([row.score for row in rows], outcomes, BINS).error
        if there:
            shares, means = mean_by_coverage([row.score for row in there], _dice(there))
            kept = {f"{share:g}": float(means[np.searchsorted(shares, share)]) for share in COVERAGES}
        found.append(Worth(rule=rule, dataset=dataset, answers=len(rows), ece=ece, dice_by_coverage=kept))
    return found


def refusal_means(results: Iterable[QueryResult], rule: str) -> dict[str, float]:
    """Per kind the shares answered and fired and the AUROC, "<kind>/<which>", as unweighted means over data sets.

    Without intervals, which take longer than a validation between two epochs may.
    """
    values: dict[str, list[float]] = {}
    for rows in _cells((row for row in results if row.rule == rule), lambda row: row.dataset).values():
        there = [row.score for row in _scored(rows) if row.kind == PRESENT]
        for kind in ABSENT:
            if absent := [row for row in rows if row.kind == kind]:
                values.setdefault(f"{kind}/answered", []).append(float(np.mean([r.prediction_px > 0 for r in absent])))
            if scores := [row.score for row in _scored(absent)]:  # masks from files have none
                values.setdefault(f"{kind}/fired", []).append(float(np.mean(np.asarray(scores) >= SCORE_THRESHOLD)))
                if there:
                    values.setdefault(f"{kind}/auroc", []).append(presence_auroc(there, scores))
    return {name: float(np.mean(found)) for name, found in values.items()}


def achieved(rows: Iterable[QueryResult]) -> list[float]:
    """The IoU that the scores of answers should foretell: 0 where nothing is there, whatever was answered."""
    return [row.values["iou"] if row.kind == PRESENT else 0.0 for row in rows]


def _cells(rows: Iterable[QueryResult], key: Callable[[QueryResult], K]) -> dict[K, list[QueryResult]]:
    cells: dict[K, list[QueryResult]] = {}
    for row in rows:
        cells.setdefault(key(row), []).append(row)
    return cells


def _scored(rows: Iterable[QueryResult]) -> list[QueryResult]:
    return [row for row in rows if math.isfinite(row.score)]


def _dice(rows: Sequence[QueryResult]) -> list[float]:
    return [row.values["dice"] for row in rows]


def _values(rows: Sequence[QueryResult], name: str) -> list[float]:
    return [getattr(row, name) for row in rows]


def _groups(rows: Sequence[QueryResult]) -> list[str]:
    return [row.group for row in rows]
