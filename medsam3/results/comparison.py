"""Is one model better than another? Results of the same questions, paired row by row, tested by patients.

A contestant is one evaluation, or those of several runs of one configuration: then its value of a row is the mean over
the runs, and the spread over the runs has a table of its own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medsam3.checks import differing_keys
from medsam3.messages import listed, one_of
from medsam3.metrics.masks import METRICS, Metric, has_mean, one_unit
from medsam3.metrics.statistics import PairedComparison, compare_paired, holm
from medsam3.results.asking import MARKED, PRESENT
from medsam3.results.folder import NSD_MM, Results
from medsam3.results.instance_scores import IMAGE_METRICS
from medsam3.results.question import MASKS

# may differ, and are named; answers to other words change nothing in the rows that are compared
COMPARED = ("checkpoint", "weights_sha256", "own_image_size", "code", "versions", "foreign", "synonyms", "instances")
COMPARABLE = METRICS | IMAGE_METRICS
SINGLE = "single instances"  # in place of a mask rule
Key = tuple[str, str, str, str]  # item, concept, size of its truth ("" where the file has none), group
MODELS_OWN = ("image_size", "precision", "prediction", "prompt", "box_noise", "prompts", "seed")  # no matter for files


@dataclass(frozen=True)
class Contestant:
    """A name and one evaluation, or several of one configuration."""

    name: str
    runs: list[Results]


@dataclass(frozen=True)
class Duel:
    """One data set, mask rule and metric: a contestant against the first one."""

    dataset: str
    rule: str
    metric: str
    name: str
    means: tuple[float, float]  # of the first one and of this one
    paired: PairedComparison
    left_out: int  # pairs without a finite value on both sides
    unit: str  # of distances
    permutation_holm: float
    wilcoxon_holm: float


@dataclass(frozen=True)
class Spread:
    """Means of the runs of a contestant."""

    dataset: str
    rule: str
    metric: str
    name: str
    means: list[float]


@dataclass(frozen=True)
class Settings:
    metrics: Sequence[str]
    rule: str | None  # None: all that all have
    absent: bool  # also the queries whose concept is not there
    allow: Collection[str]  # keys of the question that may differ, or the first words of them
    level: float
    draws: int
    seed: int


def comparable(name: str) -> Metric:
    """What a column is. ValueError: it is none that can be compared."""
    if tolerance := NSD_MM.fullmatch(name):
        return Metric(f"NSD {tolerance[1]} mm", lambda _: math.nan)
    one_of("metric", name, [*COMPARABLE, "nsd_<tolerance>mm of volumes"])
    return COMPARABLE[name]


def question_differences(first: Results, second: Results, allow: Collection[str]) -> list[str]:
    """Lines "key: first -> second" of what may differ and does.

    Raises:
        ValueError: what may not differ does; names all of it.
    """
    questions = [dict(results.question) for results in (first, second)]
    for question in questions:  # the rules come from one forward pass; a question holds none of the others
        question["prediction"] = {k: v for k, v in (question.get("prediction") or {}).items() if k != "rules"}
    free = {*COMPARED, *allow, *(f"rows.{name}.foreign_sha256" for name in questions[0]["rows"])}
    if any(question.get("prompt") == MASKS for question in questions):
        free |= {*MODELS_OWN, *(f"rows.{name}.prompts" for question in questions for name in question["rows"])}
    lines = differing_keys(questions[0], questions[1])
    wrong = [line for line in lines if not _starts(line.partition(":")[0], free)]
    if wrong:
        keys = sorted({line.partition(":")[0] for line in wrong})
        raise ValueError(
            f"{first.folder} and {second.folder} were not asked alike, so a difference would not be the models':\n  "
            + "\n  ".join(wrong)
            + f"\nEvaluate one of them again, or say --allow {listed(keys).replace(', ', ' ')} if that is what you "
            "compare; --datasets picks data sets that both have"
        )
    return lines


def _starts(key: str, words: Collection[str]) -> bool:
    return any(key == word or key.startswith(f"{word}.") for word in words)


def compare(contestants: Sequence[Contestant], settings: Settings) -> tuple[list[Duel], list[Spread], list[str]]:
    """Every contestant against the first one, by data set, mask rule and metric, and the spread over runs.

    p values are adjusted (Holm) over all data sets and contestants of one mask rule and metric.

    Returns:
        duels, spreads, and lines of what was different between the questions.

    Raises:
        ValueError: fewer than two contestants; questions or rows that differ; no mask rule that all have; an unknown
            metric; runs of one contestant with the same weights.
    """
    if len(contestants) < 2:
        raise ValueError(f"{listed(c.name for c in contestants)}: give two results or more")
    for metric in settings.metrics:
        comparable(metric)
    first = contestants[0].runs[0]
    notes: list[str] = []
    for contestant in contestants:
        _check_runs(contestant)
        for run in contestant.runs:
            lines = question_differences(first, run, settings.allow) if run is not first else []
            notes += [f"{first.folder} -> {run.folder}: {line}" for line in lines]
    duels: list[Duel] = []
    spreads: list[Spread] = []
    single = [metric for metric in settings.metrics if metric in IMAGE_METRICS]
    if single and settings.absent:
        raise ValueError(f"--absent: not for {', '.join(single)}, which are compared where there is something to find")
    of_masks = [metric for metric in settings.metrics if metric not in single]
    rules = _rules(contestants, settings.rule) if of_masks else []
    for rule, metrics in [*((rule, of_masks) for rule in rules), *([(SINGLE, single)] if single else [])]:
        for metric in metrics:
            tables = [{d: _table(c, d, rule, metric, settings) for d in first.question["rows"]} for c in contestants]
            duels += _adjusted(_duels(contestants, tables, rule, metric, settings))
            spreads += [
                Spread(dataset, rule, metric, contestant.name, [float(np.nanmean(run)) for run in table.runs])
                for contestant, found in zip(contestants, tables, strict=True)
                for dataset, table in found.items()
                if len(contestant.runs) > 1
            ]
    return duels, spreads, notes


def _check_runs(contestant: Contestant) -> None:
    weights = [run.question.get("weights_sha256") for run in contestant.runs]
    if len(set(weights)) < len(weights):
        raise ValueError(
            f"{contestant.name}: two of its {len(weights)} runs have the same weights, so they are one run"
        )


def _rules(contestants: Sequence[Contestant], wanted: str | None) -> list[str]:
    """Rules that all have; masks from files have none and stand beside each."""
    having = [[rule for rule in run.rows if rule != MASKS] for c in contestants for run in c.runs]
    having = [rules for rules in having if rules] or [[MASKS]]
    common = [rule for rule in having[0] if all(rule in rules for rules in having)]
    if wanted is not None:
        one_of("rule", wanted, common)
        return [wanted]
    if not common:
        raise ValueError(f"no mask rule that all results have: {'; '.join(', '.join(rules) for rules in having)}")
    return common


@dataclass(frozen=True)
class _Table:
    keys: list[Key]
    unit: str  # of distances
    runs: NDArray[np.float64]  # [runs, N], NaN where a value is not finite

    @property
    def values(self) -> NDArray[np.float64]:
        """[N] mean over runs; NaN if any run has none."""
        return self.runs.mean(axis=0)


def _table(contestant: Contestant, dataset: str, rule: str, metric: str, settings: Settings) -> _Table:
    """The values of a contestant, rows in the order of their keys."""
    columns: list[NDArray[np.float64]] = []
    keys: list[Key] = []
    units: set[str] = set()
    for run in contestant.runs:
        of_rule = run.single if rule == SINGLE else run.rows.get(rule, run.rows.get(MASKS, {}))
        own = of_rule.get(dataset)
        if own is None and rule == SINGLE:
            raise ValueError(
                f"{run.folder}: no {metric} of {dataset}; evaluate it again with evaluation.instances=true"
            )
        if own is None or metric not in own.values:
            raise ValueError(f"{run.folder}: no {metric} of {dataset} by {rule}; evaluate it again")
        kinds = (PRESENT, MARKED) if settings.absent else (PRESENT,)
        order = [i for i in sorted(range(len(own.keys)), key=own.keys.__getitem__) if own.kinds[i] in kinds]
        truths = own.others.get("truth_px") or own.others.get("truth_voxels") or [""] * len(own.keys)
        found = [(*own.keys[i], str(truths[i]), own.groups[i]) for i in order]
        if columns:
            _check_same(contestant.runs[0], run, dataset, keys, found)
        keys = found
        units |= {own.others["unit"][i] for i in order}
        values = own.values[metric][order]
        columns.append(np.where(np.isfinite(values), values, np.nan))
    if not keys:
        raise ValueError(f"{contestant.runs[0].folder}: {dataset} has no row of a concept that is there")
    if not has_mean(metric, one_unit(units)):
        raise ValueError(f"{contestant.runs[0].folder}: {metric} of {dataset} in {one_unit(units)}: cannot be averaged")
    return _Table(keys, one_unit(units), np.stack(columns))


def _check_same(first: Results, second: Results, dataset: str, one: list[Key], two: list[Key]) -> None:
    different = sorted(set(one) ^ set(two))
    if different:
        raise ValueError(
            f"{first.folder} and {second.folder} have not the same rows of {dataset}: {len(different)} are in one of "
            f"them only, or their truth has another size: {listed(' / '.join(map(str, key)) for key in different)}"
        )


def _duels(
    contestants: Sequence[Contestant], tables: list[dict[str, _Table]], rule: str, metric: str, settings: Settings
) -> list[Duel]:
    duels = []
    for contestant, found in zip(contestants[1:], tables[1:], strict=True):
        for dataset, ours in found.items():
            base = tables[0][dataset]
            runs = contestants[0].runs[0], contestant.runs[0]
            _check_same(*runs, dataset, base.keys, ours.keys)
            finite = np.isfinite(base.values) & np.isfinite(ours.values)
            if not finite.any():
                raise ValueError(f"{runs[1].folder}: {dataset} has no pair with a finite {metric}")
            pair = base.values[finite], ours.values[finite]
            groups = [key[-1] for key, kept in zip(ours.keys, finite, strict=True) if kept]
            paired = compare_paired(*pair, groups, settings.level, settings.draws, settings.seed)
            means = float(pair[0].mean()), float(pair[1].mean())
            left_out = int((~finite).sum())
            place = (dataset, rule, metric, contestant.name)
            duels.append(Duel(*place, means, paired, left_out, ours.unit, math.nan, math.nan))
    return duels


def _adjusted(duels: list[Duel]) -> list[Duel]:
    permutation = holm([duel.paired.permutation_p for duel in duels])
    wilcoxon = holm([duel.paired.wilcoxon_p for duel in duels])
    return [
        dataclasses.replace(duel, permutation_holm=p, wilcoxon_holm=w)
        for duel, p, w in zip(duels, permutation, wilcoxon, strict=True)
    ]
