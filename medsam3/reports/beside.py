"""A result and a baseline on the same queries beside each other, for the report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from medsam3.checks import differing_keys
from medsam3.files import file_hash
from medsam3.messages import listed
from medsam3.metrics.masks import has_mean, one_unit
from medsam3.metrics.statistics import MeanInterval, average_interval
from medsam3.results.folder import FILES, Results, Rows, read_results
from medsam3.results.scores import DRAWS, LEVEL, SEED, QueryResult

OTHERS = ("part", "prompt", "score", "presence", "ceiling", "truth_px", "prediction_px", "unit")
SWAPPED = ("swapped", "swapped_truths", "swapped_absent")
Key = tuple[str, str, str, str]


def key_of(case: QueryResult) -> Key:
    return case.dataset, case.item, case.concept, case.rule


def dice_of(case: QueryResult) -> float:
    return case.values["dice"]


@dataclass(frozen=True)
class Side:
    """One evaluation: its rows as the evaluator made them."""

    results: Results
    cases: list[QueryResult]  # of the data sets' own concepts
    foreign: list[QueryResult]  # of evaluation.foreign
    hashes: dict[str, str]  # file -> SHA-256

    @property
    def folder(self) -> Path:
        return self.results.folder

    @property
    def question(self) -> dict[str, Any]:
        return self.results.question

    @property
    def metrics(self) -> list[str]:
        return list(self.cases[0].values)

    @property
    def rules(self) -> list[str]:
        """The first one chooses the model."""
        return list(self.results.rows)

    @property
    def everything(self) -> list[QueryResult]:
        return [*self.cases, *self.foreign]

    @cached_property
    def by_key(self) -> dict[Key, QueryResult]:
        return {key_of(case): case for case in self.everything}

    @cached_property
    def datasets(self) -> list[str]:
        return list(dict.fromkeys(case.dataset for case in self.cases))

    @cached_property
    def _parts(self) -> dict[tuple[str, str, bool], list[QueryResult]]:
        found: dict[tuple[str, str, bool], list[QueryResult]] = {}
        for case in self.cases:
            found.setdefault((case.rule, case.dataset, case.present), []).append(case)
        return found

    def of(self, rule: str, dataset: str | None = None, present: bool = True) -> list[QueryResult]:
        """The cases of a rule, in one data set or all, whose concept is in the image (or is not)."""
        names = self.datasets if dataset is None else [dataset]
        return [case for name in names for case in self._parts.get((rule, name, present), [])]


@dataclass(frozen=True)
class Mean:
    """A metric over cases."""

    found: MeanInterval | None  # None: no value is finite, or of one of the data sets none
    left_out: int  # values that are not finite


@dataclass(frozen=True)
class Pair:
    """A result, and perhaps a baseline."""

    ours: Side
    baseline: Side | None
    before: dict[Key, QueryResult]  # of the baseline
    differences: list[str]  # "key: of the baseline -> ours" of all that was asked differently, checkpoints apart
    warnings: list[str]

    def mean(self, cases: Sequence[QueryResult], metric: str, of_baseline: bool = False) -> Mean:
        """Of these cases of ours, or of the same of the baseline; groups of two data sets are never the same."""
        return _mean([self._of_baseline(cases) if of_baseline else cases], metric)

    def average(self, rule: str, metric: str, of_baseline: bool = False) -> Mean:
        """Likewise the unweighted mean of the data sets' means."""
        parts = [found for name in self.ours.datasets if (found := self.ours.of(rule, name))]
        return _mean([self._of_baseline(part) for part in parts] if of_baseline else parts, metric)

    def _of_baseline(self, cases: Sequence[QueryResult]) -> list[QueryResult]:
        return [self.before[key_of(case)] for case in cases] if self.baseline else []


def _mean(parts: Sequence[Sequence[QueryResult]], metric: str) -> Mean:
    finite = [[case for case in part if math.isfinite(case.values[metric])] for part in parts]
    left_out = sum(map(len, parts)) - sum(map(len, finite))
    unit = one_unit(case.unit for part in parts for case in part)
    if not finite or not all(finite) or not has_mean(metric, unit):
        return Mean(None, left_out)
    sets = [
        ([case.values[metric] for case in part], [f"{case.dataset}/{case.group}" for case in part]) for part in finite
    ]
    return Mean(average_interval(sets, LEVEL, DRAWS, SEED), left_out)


def side_of(results: Results) -> Side:
    """
    Raises:
        ValueError: a column of the evaluator is missing.
    """
    folder = results.folder
    try:
        cases = [
            QueryResult(
                dataset=dataset,
                item=item,
                concept=concept,
                group=rows.groups[i],
                rule=rule,
                kind=rows.kinds[i],
                values={name: float(values[i]) for name, values in rows.values.items()},
                **{name: rows.others[name][i] for name in OTHERS},
                **_swapped(rows, i),
            )
            for rule, found in results.rows.items()
            for dataset, rows in found.items()
            for i, (item, concept) in enumerate(rows.keys)
        ]
        cases[0].values["dice"]
    except KeyError as error:
        raise ValueError(f"{folder}/results.csv: no column {error.args[0]}; evaluate it again") from error
    except IndexError as error:
        raise ValueError(f"{folder}/results.csv: no result in it") from error
    own, foreign = ([case for case in cases if case.foreign is wanted] for wanted in (False, True))
    return Side(results, own, foreign, {name: file_hash(results.folder / name) for name in FILES})


def _swapped(rows: Rows, i: int) -> dict[str, Any]:
    values = {name: rows.others[name][i] for name in SWAPPED}
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def check_truth(cases: Iterable[QueryResult], other: Side, baseline: Path) -> None:
    """Raises a ValueError if the baseline lacks a query of the data sets' own concepts, or has another truth for it."""
    own, before = [case for case in cases if not case.foreign], other.by_key
    lacking = [case for case in own if key_of(case) not in before or before[key_of(case)].truth_px != case.truth_px]
    if lacking:
        raise ValueError(
            f"baseline={baseline} lacks {len(lacking)} of the {len(own)} queries, or has another truth: "
            f"{listed(' | '.join(key_of(case)) for case in lacking)}. Evaluate both alike"
        )


def read_pair(folder: Path, baseline: Path | None = None) -> Pair:
    """Read a result and its baseline.

    Args:
        baseline: folder or one of its files; None: the one that results.json names, if it is still there.

    Raises:
        ValueError: see `read_results`, `side_of`; or the baseline lacks a query, has another truth, fewer metrics.
    """
    ours = side_of(read_results(folder))
    named = ours.results.baseline
    if baseline is None and named and (ours.folder / named).with_name("results.csv").is_file():
        baseline = ours.folder / named
    if baseline is None:
        words = f"No results.csv lies beside the baseline {named}, so it is not shown; baseline=<folder> names another."
        return Pair(ours, None, {}, [], [words] if named else [])
    other = side_of(read_results(baseline))
    check_truth(ours.everything, other, baseline)
    if fewer := [name for name in ours.metrics if name not in other.metrics]:
        raise ValueError(f"baseline={baseline} has no {', '.join(fewer)}: evaluate it again")
    return Pair(ours, other, other.by_key, differing_keys(_comparable(other, ours), _comparable(ours, ours)), [])


def _comparable(side: Side, ours: Side) -> dict[str, Any]:
    """What was asked, without what is to be compared."""
    question = {key: value for key, value in side.question.items() if key not in ("checkpoint", "weights_sha256")}
    return question | {"rows": {name: rows for name, rows in question["rows"].items() if name in ours.datasets}}
