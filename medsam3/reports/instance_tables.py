"""The measures of single instances as files and tables: instances.csv, table.md, report.html."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence

from medsam3.messages import listed, markdown_table
from medsam3.metrics.statistics import MIN_GROUPS
from medsam3.reports.charts import table
from medsam3.reports.tables import Lines
from medsam3.results.findings import Finding
from medsam3.results.instance_scores import (
    IMAGE_METRICS,
    OF_CONCEPTS,
    TITLES,
    InstanceScore,
    InstanceScores,
    average,
)
from medsam3.results.scores import LEVEL

CORRELATION = "il_mcc"  # from -1 to 1, not in percent
NOT_ASKED = "0 (no absent)"
COLUMNS = (
    *("dataset", "item", "group", "part", "concept", "truths", "predictions", "shown"),
    *("true_positives", "false_positives", "false_negatives", *IMAGE_METRICS),
)


def instances_csv(findings: Iterable[Finding]) -> Iterator[str]:
    """The lines of instances.csv, one per image and concept: true instances, predictions looked at, those shown (of at
    least prediction.union_threshold), how many of them are right at an IoU of 0.5, and F1 and PQ of this image alone
    (1 where nothing is and nothing is shown)."""
    writer = csv.writer(Lines(), lineterminator="\n")
    yield writer.writerow(COLUMNS)
    for finding in findings:
        for own in finding.instances:
            counts = own.f1.true_positives, own.f1.false_positives, own.f1.false_negatives
            row = [own.dataset, own.item, own.group, own.part, own.concept, own.truths, len(own.scores)]
            alone = (f"{metric.of(own):.6f}" for metric in IMAGE_METRICS.values())
            yield writer.writerow([*row, sum(counts[:2]), *counts, *alone])


def instance_table(
    scores: Mapping[str, InstanceScores], titles: Mapping[str, str], baseline: Mapping[str, InstanceScores]
) -> str:
    """Markdown: a line per data set, above it that of the baseline if it has one, and their unweighted mean."""
    printed = markdown_table(["Dataset", *_heads()], _lines(scores, titles, baseline, "**Avg.**"))
    return f"Single instances, whatever the mask rule.\n\n{printed}\n{_words(scores)}\n"


def _lines(
    scores: Mapping[str, InstanceScores],
    titles: Mapping[str, str],
    baseline: Mapping[str, InstanceScores],
    mean: str,
) -> list[list[str]]:
    lines = []
    for name, own in scores.items():
        if name in baseline:
            lines.append([f"{titles.get(name, name)}, baseline", *_row(baseline[name])])
        lines.append([titles.get(name, name), *_row(own)])
    if len(scores) > 1:
        lines.append([mean, *map(_printed, TITLES, average(scores).values()), *[""] * 6])
    return lines


def _heads() -> list[str]:
    heads = [title if name == CORRELATION else f"{title} (%)" for name, title in TITLES.items()]
    return [*heads, "an instance is", "true", "shown", "queries", "absent", "groups"]


def _row(scores: InstanceScores) -> list[str]:
    counts = (scores.own.truths, scores.own.predictions, scores.own.queries, scores.own.absent, scores.own.groups)
    cells = [_cell(name, scores.values[name], scores.own) for name in TITLES]
    return [*cells, scores.kind, *(f"{count:,}" for count in counts)]


def _cell(name: str, value: float | None, score: InstanceScore) -> str:
    interval = score.intervals[name]
    if value is None:
        return NOT_ASKED if name not in OF_CONCEPTS and score.values[name] is not None else "–"
    ends = " [{}, {}]".format(*(_printed(name, end) for end in interval)) if interval else ""
    return _printed(name, value) + ends


def _printed(name: str, value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}" if name == CORRELATION else f"{100 * value:.1f}"


def _words(scores: Mapping[str, InstanceScores]) -> str:
    parts = [
        "AP, F1 and PQ are means over the concepts that have a true instance here, each over all images where it was "
        "asked; cgF1 = pmF1 x IL_MCC is of all pairs of image and concept together, foreign words too.",
        f"In brackets the {100 * LEVEL:.0f} % interval, groups drawn and ranked again; none below {MIN_GROUPS} groups "
        "with a true instance.",
    ]
    if silent := [name for name, own in scores.items() if not own.own.absent]:
        parts.append(
            f"No absent concept was asked of {listed(silent)}, so IL_MCC and cgF1 are 0 by definition, however good "
            "the masks: quote pmF1 (evaluation.ask=all or evaluation.foreign ask for what is not there)."
        )
    if unranked := [name for name, own in scores.items() if own.own.values["ap"] is None]:
        parts.append(f"Masks of {listed(unranked)} came without scores, so there is no AP.")
    if partly := {name: own.own.not_exhaustive for name, own in scores.items() if own.own.not_exhaustive}:
        told = listed(f"{count} of {name}" for name, count in partly.items())
        parts.append(f"Left out of cgF1, as the concept is marked in places only: {told}.")
    return " ".join(parts)


def instance_section(scores: Mapping[str, InstanceScores], baseline: Mapping[str, InstanceScores], how: str) -> str:
    """For report.html: data sets, and their concepts; empty if single instances were not looked at."""
    if not scores:
        return ""
    heads = [TITLES[name] + " (%)" for name in OF_CONCEPTS]
    concepts: list[Sequence[str]] = [
        [
            name,
            concept,
            *(_cell(measure, score.values[measure], score) for measure in OF_CONCEPTS),
            *(f"{count:,}" for count in (score.truths, score.predictions, score.queries, score.absent, score.groups)),
        ]
        for name, own in scores.items()
        for concept, score in own.concepts.items()
    ]
    return (
        f"<h2>Single instances</h2><p>Is each instance found, and nothing twice? Whatever the mask rule: {how}. "
        f"{_words(scores)}</p>"
        + table(["data set", *_heads()], _lines(scores, {}, baseline, "mean over data sets"), words=1)
        + "<h3>By concept</h3>"
        + table(["data set", "concept", *heads, "true", "shown", "queries", "absent", "groups"], concepts, words=2)
    )
