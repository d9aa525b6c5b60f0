"""From one result per query to results.csv, results.json and the paper's Table 3; tables print fractions in percent."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medsam3.checks import differing_keys
from medsam3.files import strict_json
from medsam3.messages import listed, markdown_table
from medsam3.metrics.masks import METRICS, NSD_TOLERANCE, measure_distances
from medsam3.metrics.statistics import MIN_GROUPS, MeanInterval
from medsam3.prediction.rules import RULE_WORDS, THRESHOLDS
from medsam3.results.instance_scores import InstanceScores
from medsam3.results.obedience import Obedience
from medsam3.results.question import Question
from medsam3.results.scores import AVERAGE, LEVEL, QueryResult, Score, mean_score


@dataclass(frozen=True)
class Baseline:
    """An earlier result, to stand beside the present one."""

    path: Path
    question: dict[str, Any]  # as its results.json has it
    scores: dict[str, dict[str, Score]]  # rule -> data set
    instances: dict[str, InstanceScores] = field(default_factory=dict)  # by data set, if it has them

    def differences(self, question: Question) -> list[str]:
        """Lines "key: its value -> ours" of all that was asked differently.

        Raises:
            ValueError: it lacks a data set, or was asked on other images or for other concepts.
        """
        for rule in question.prediction.rules:
            if rule not in self.scores:
                raise ValueError(
                    f"baseline={self.path} was not measured by the mask rule {rule}, only by {', '.join(self.scores)}: "
                    f"evaluate it again with prediction.rules=[{','.join(question.prediction.rules)}]"
                )
            lacking = sorted(
                {m for score in self.scores[rule].values() for m in {*question.metrics} - score.values.keys()}
            )
            if lacking:
                raise ValueError(
                    f"baseline={self.path} has no {', '.join(lacking)}: evaluate it again, or leave them out"
                )
            missing = sorted(question.rows.keys() - self.scores[rule].keys())
            if missing:
                there = ", ".join(sorted(self.scores[rule]))
                raise ValueError(f"baseline={self.path} has no data set {', '.join(missing)}; it has {there}")
        own, theirs = dataclasses.asdict(question), dict(self.question)
        theirs["rows"] = {name: theirs["rows"][name] for name in question.rows}
        for side in (own, theirs):  # what is compared, not how
            side.pop("checkpoint", None)
            side.pop("weights_sha256", None)
        lines = differing_keys(theirs, own)
        if any(theirs["rows"][name].get("images_sha256") != rows.images_sha256 for name, rows in question.rows.items()):
            raise ValueError(
                f"baseline={self.path} was asked on other images or for other concepts, so a difference would mean "
                "nothing (baseline -> now):\n  " + "\n  ".join(lines)
            )
        return lines


BEFORE_METRICS = (
    "dataset", "item", "group", "part", "concept", "prompt", "rule", "present", "kind", "score", "presence",
)  # fmt: skip
RANKED = ("score", "presence")  # written exactly: six digits would make ties of the scores of a model that is sure
AFTER_METRICS = ("ceiling", "truth_px", "prediction_px", "unit", "swapped", "swapped_truths", "swapped_absent")


def results_csv(results: Iterable[QueryResult]) -> Iterator[str]:
    """The lines of results.csv, one per query and mask rule: scores exactly, other numbers that are not whole with six
    digits, `present` as 0 or 1, None empty."""
    writer = csv.writer(Lines(), lineterminator="\n")
    columns: tuple[str, ...] = ()
    for result in results:
        if not columns:
            columns = (*BEFORE_METRICS, *result.values, *AFTER_METRICS)
            yield writer.writerow(columns)
        values = vars(result) | result.values | {"present": int(result.present)}
        cells = ((name, values[name]) for name in columns)
        yield writer.writerow([f"{v:.6f}" if isinstance(v, float) and name not in RANKED else v for name, v in cells])


class Lines:
    """A file that hands back what is written to it."""

    def write(self, text: str) -> str:
        return text


def results_json(
    split: Any,
    question: Question,
    scores: dict[str, dict[str, Score]],
    baseline: str | None = None,
    obedience: Obedience | None = None,
    instances: Mapping[str, InstanceScores] | None = None,
    chosen_on: Sequence[str] = (),
    files: Mapping[str, str] | None = None,
) -> str:
    """What was asked, and by each mask rule the scores per data set and their mean; null: there is none.

    Args:
        baseline: the results.json beside which the report shows this one, as seen from the folder of this one.
        chosen_on: data sets on whose rows asked for the checkpoint was chosen.
        files: tables beside it that it is of -> their SHA-256.
    """
    content = {
        "checkpoint": question.checkpoint,
        "split": split,
        "baseline": baseline,
        "chosen_on": list(chosen_on),
        "files": dict(files or {}),
        "question": dataclasses.asdict(question),
        "rules": {
            rule: {
                "datasets": {name: dataclasses.asdict(score) for name, score in found.items()},
                "mean": dataclasses.asdict(mean_score(found)),
            }
            for rule, found in scores.items()
        },
        "obedience": dataclasses.asdict(obedience) if obedience else {},
        "instances": {name: dataclasses.asdict(own) for name, own in (instances or {}).items()},
    }
    return strict_json(content)


def read_baseline(path: Path) -> Baseline:
    """An earlier results.json.

    Raises:
        ValueError: no such file, or not a results.json of this version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        scores: dict[str, dict[str, Score]] = {}
        for rule, found in content["rules"].items():
            scores[rule] = {name: _score(score) for name, score in found["datasets"].items()}
            for name in scores[rule]:
                if name not in content["question"]["rows"]:
                    raise KeyError(f"rows of {name}")
        single = {name: InstanceScores.from_json(own) for name, own in content.get("instances", {}).items()}
        return Baseline(path, content["question"], scores, single)
    except FileNotFoundError as error:
        raise ValueError(f"baseline={path}: no such file; give the results.json of an earlier evaluation") from error
    except (ValueError, KeyError, TypeError, AttributeError, IsADirectoryError) as error:
        raise ValueError(
            f"baseline={path}: not a results.json of this version of scripts/evaluate.py ({error!r}); evaluate it again"
        ) from error


def _score(content: dict[str, Any]) -> Score:
    means = ("values", "with_absent")
    return Score(**content | {key: {m: math.nan if v is None else v for m, v in content[key].items()} for key in means})


def rule_tables(
    scores: dict[str, dict[str, Score]],
    titles: dict[str, str],
    baseline: dict[str, dict[str, Score]] | None = None,
    intervals: dict[str, dict[str, MeanInterval]] | None = None,
) -> str:
    """A Markdown table per mask rule, under the rule's name; for top1 with its ceiling."""
    parts = []
    for rule, found in scores.items():
        table = score_table(
            found,
            titles,
            baseline[rule] if baseline else None,
            with_ceiling=rule == "top1",
            intervals=intervals[rule] if intervals else None,
        )
        left_out = mean_score(found).left_out
        before = mean_score({name: baseline[rule][name] for name in found}).left_out if baseline else {}
        notes = [
            f"{METRICS[name].title}: {count} queries left out{whose}"
            for counts, whose in ((left_out, ""), (before, " of the baseline"))
            for name, count in counts.items()
            if count and name in left_out
        ]
        note = f"\n{'; '.join(notes)}: prediction or truth is empty.\n" if notes else ""
        if measure_distances(left_out):
            note += "\nDistances are in mm where the files say how large a pixel is, else in px; "
            note += f"NSD within {NSD_TOLERANCE:g} of them.\n"
        note += few_groups(intervals[rule]) if intervals else ""
        parts.append(f"Mask rule **{rule}**: {RULE_WORDS[rule]}.\n\n{table}{note}")
    return "\n".join(parts)


def silences(results: Iterable[QueryResult], prediction: Mapping[str, Any]) -> list[str]:
    """A line for each mask rule that found nothing in a data set, though it was there: all its masks are empty.

    Args:
        prediction: the thresholds, as in `question`; nothing is said of a rule that has none there.
    """
    highest: dict[tuple[str, str], float] = {}
    found = set()
    for result in results:
        if result.present:
            place = result.rule, result.dataset
            highest[place] = max(highest.get(place, -math.inf), result.score)
            found |= {place} if result.prediction_px else set()
    return [
        f"Not one mask by {rule} in {dataset}: the highest score where something is there is {score:.2f}, "
        f"prediction.{THRESHOLDS[rule]} is {prediction[THRESHOLDS[rule]]}."
        for (rule, dataset), score in highest.items()
        if (rule, dataset) not in found and THRESHOLDS.get(rule) in prediction
    ]


def few_groups(intervals: Mapping[str, MeanInterval]) -> str:
    """A line that says why a mean has no interval, if one has none."""
    few = [name for name, found in intervals.items() if found.interval is None and name != AVERAGE]
    also = "; so the mean over data sets has none either" if AVERAGE in intervals else ""
    return f"\nNo interval below {MIN_GROUPS} groups: {listed(few)}{also}.\n" if few else ""


def score_table(
    scores: dict[str, Score],
    titles: dict[str, str],
    baseline: dict[str, Score] | None = None,
    names: tuple[str, str] = ("baseline", "ours"),
    with_ceiling: bool = False,
    intervals: dict[str, MeanInterval] | None = None,
) -> str:
    """Markdown in the form of Table 3: every metric, with baseline and difference where one is given.

    Means are over queries whose concept is in the image. Where others were asked too, further columns tell the Dice
    over all queries (1 where nothing is there and nothing is answered) and how many of the others got a mask.

    Args:
        titles: of the data sets; the name where there is none.
        baseline: of the same data sets.
        intervals: of the mean Dice; a data set of fewer than 10 groups has none.
        with_ceiling: what a perfect instance model would score by top1, see QueryResult.
    """
    asked_absent = any(score.absent for score in scores.values())
    head = ["Dataset", *_headings(next(iter(scores.values())).values, names if baseline else None)]
    distances = measure_distances(next(iter(scores.values())).values)
    head += ["distances in"] if distances else []
    head += ["ceiling Dice (%)"] if with_ceiling else []
    head += ["Dice with absent (%)", "absent answered (%)"] if asked_absent else []
    head += [f"Dice, {100 * LEVEL:.0f} % interval", "groups"] if intervals else []
    head += ["queries", "absent", "images"] if asked_absent else ["queries", "images"]
    columns = {name: (score, baseline[name] if baseline else None) for name, score in scores.items()}
    if len(scores) > 1:
        mean_baseline = mean_score({name: baseline[name] for name in scores}) if baseline else None
        columns[AVERAGE] = (mean_score(scores), mean_baseline)
    lines = []
    for name, (score, old) in columns.items():
        cells = [titles.get(name, name), *_values(score, old)]
        cells += [score.unit] if distances else []
        cells += [_percent(score.ceiling)] if with_ceiling else []
        cells += [_percent(score.with_absent["dice"]), _percent(score.answered)] if asked_absent else []
        cells += _interval(intervals[name]) if intervals else []
        cells += [str(score.queries), *([str(score.absent)] if asked_absent else []), str(score.images)]
        lines.append(cells)
    return markdown_table(head, lines)


def _headings(metrics: Iterable[str], names: tuple[str, str] | None) -> list[str]:
    if names is None:
        return [METRICS[metric].heading for metric in metrics]
    return [f"{METRICS[metric].title} {name}" for metric in metrics for name in (*names, "Δ")]


def _values(score: Score, baseline: Score | None) -> list[str]:
    cells = []
    for name in score.values:
        sides = [score] if baseline is None else [baseline, score]
        printed = [METRICS[name].printed(side.values[name]) for side in sides]
        told = [f"{number:.1f}" if math.isfinite(number) else "-" for number in printed]
        if len(sides) > 1:  # no difference of means over other queries
            same = "-" not in told and not any(side.left_out[name] for side in sides)
            told.append(f"{printed[1] - printed[0]:+.1f}" if same else "-")
        cells += told
    return cells


def _interval(found: MeanInterval) -> list[str]:
    low, high = found.interval or (None, None)
    return ["-" if low is None else f"{_percent(low)} to {_percent(high)}", str(found.groups)]


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def prompt_table(prompt_dice: dict[str, dict[tuple[str, str], float]]) -> str:
    """Markdown, one table per data set: mean Dice of what each prompt (row) returned against each truth (column)."""
    parts = []
    for name, matrix in prompt_dice.items():
        concepts = sorted({prompt for prompt, _ in matrix})
        rows = []
        for prompt in concepts:
            cells = [matrix.get((prompt, truth)) for truth in concepts]
            rows.append([prompt, *("" if value is None else f"{value:.3f}" for value in cells)])
        parts.append(markdown_table([f"{name}: prompt \\ truth", *concepts], rows))
    return "\n".join(parts)
