"""The report of an evaluation: one HTML file that holds all it shows and asks nothing of the network.

It is made from the folders of the results alone, says nothing of time or machine, and so comes out the same each time.
All means are over queries whose concept is in the image, as in table.md; percent but in the list of cases.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any

from medsam3.files import write_text
from medsam3.messages import listed
from medsam3.metrics.concept_f1 import SCORE_THRESHOLD
from medsam3.metrics.masks import METRICS, measure_distances, one_unit
from medsam3.metrics.refusals import mean_by_coverage, reliability
from medsam3.metrics.statistics import MIN_GROUPS
from medsam3.reports import charts
from medsam3.reports.beside import Mean, Pair, Side, dice_of, key_of, read_pair
from medsam3.reports.extremes import picture_section
from medsam3.reports.instance_tables import instance_section
from medsam3.reports.obedience_tables import obedience_section
from medsam3.reports.protocol import protocol_section
from medsam3.reports.tables import silences
from medsam3.reports.volume_report import volume_page, volume_section
from medsam3.results.folder import VOLUME_FILES, is_of_volumes
from medsam3.results.obedience import BINS, achieved, refusal_means
from medsam3.results.scores import LEVEL, QueryResult

MAX_ROWS = 20_000  # of the list of cases
MAX_BARS = 40
CEILING, WITH_ABSENT = "ceiling Dice (%)", "Dice with absent (%)"


def write_report(folder: Path, baseline: Path | None = None) -> Path:
    """Write report.html into the folder of a result.

    Args:
        baseline: the folder of another result on the same queries; None: the one that results.json names.

    Raises:
        ValueError: a folder holds no result that can be read, or the baseline was not asked alike.
    """
    path = folder / "report.html"
    if is_of_volumes(folder):
        if baseline:
            raise ValueError(f"baseline={baseline}: of volumes scripts/compare.py shows two results; leave it out")
        write_text(path, _report_on_volumes(folder))
    else:
        write_text(path, report(read_pair(folder, baseline)))
    return path


def _report_on_volumes(folder: Path) -> str:
    page, rest = _template().split("<!--BODY-->")
    return page + volume_page(folder) + rest[rest.index("</body>") :]


def _template() -> str:
    return Path(__file__).with_name("report_template.html").read_text(encoding="utf-8")


def report(results: Pair) -> str:
    """The page."""
    parts = [_top(results), _overview(results), _means(results), picture_section(results), _curves(results)]
    parts += [_classes(results), _instances(results), obedience_section(results)]
    folder = results.ours.folder
    parts += [volume_section(folder)] if (folder / VOLUME_FILES[0]).is_file() else []
    parts.append(protocol_section(results))
    note, data = _cases(results)
    fill = {"BODY": "\n".join(parts), "CASES": note, "DATA": data}
    return re.sub("<!--(BODY|CASES|DATA)-->", lambda mark: fill[mark.group(1)], _template())


def _instances(results: Pair) -> str:
    before = results.baseline.results.instances if results.baseline else {}
    how = results.ours.question.get("instances") or ""
    return instance_section(results.ours.results.instances, before, how)


def _top(results: Pair) -> str:
    ours = results.ours
    rule = ours.rules[0]
    numbers = []
    for name in [name for name in ("dice", "iou") if name in ours.metrics]:
        new, *gain = _triple(results, name, *(results.average(rule, name, side) for side in (False, True)))
        words = f"; baseline {gain[0]}, Δ {gain[1]}" if gain else ""
        numbers.append((new, f"mean {METRICS[name].heading}{words}"))
    numbers.append((f"{len({(case.dataset, case.item) for case in ours.cases}):,}", "images"))
    numbers.append((f"{len(ours.of(rule)):,}", "queries: a concept asked of an image that holds it"))
    means = refusal_means(ours.everything, rule)
    absent = Counter(case.kind for case in ours.everything if case.rule == rule and not case.present)
    for kind, count in absent.items():
        answered, fired = means[f"{kind}/answered"], means.get(f"{kind}/fired")
        words = f"score {SCORE_THRESHOLD} or more, {100 * answered:.1f} % got a mask"  # top1 answers always
        number = f"{100 * (answered if fired is None else fired):.1f}"  # masks from files have no score
        words = f"% of {count:,} absent concepts ({kind}) {'got a mask' if fired is None else words}; 0 at best"
        numbers.append((number, words))
    cells = "".join(f"<div><b>{escape(number)}</b>{escape(words)}</div>" for number, words in numbers)
    warnings = [*results.warnings, *silences(ours.cases, ours.question.get("prediction") or {})]
    if "box" in ours.question.get("prompt", ""):
        warnings.append(f"Asked with prompt={ours.question['prompt']}: the model was shown where the truth lies.")
    if ours.question.get("training_rows_allowed"):
        warnings.append("allow_training_rows=true: rows that the model was trained on were not refused.")
    if chosen := ours.results.chosen_on:
        warnings.append(
            f"Chosen on these rows: those of {listed(chosen)} picked this checkpoint from several, so its numbers are "
            "a little too good. Quote those of rows that chose nothing."
        )
    return (
        f"<h1>Evaluation of {escape(str(ours.question.get('checkpoint', '')))}</h1>"
        f"<p>Mask rule <b>{escape(rule)}</b>, where no other one is named. Means over several data sets count each set "
        f'once.</p><div class="numbers">{cells}</div>'
        + "".join(f'<p class="warn">{escape(warning)}</p>' for warning in warnings)
    )


def _triple(results: Pair, metric: str, new: Mean, old: Mean) -> list[str]:
    """A value as tables print it; where there is a baseline, its own and the difference too."""
    values = [METRICS[metric].printed(mean.found.mean) if mean.found else None for mean in (new, old)]
    cells = ["–" if value is None else f"{value:.1f}" for value in values]
    same = not new.left_out and not old.left_out  # else they are not of the same queries
    gain = f"{values[0] - values[1]:+.1f}" if same and values[0] is not None and values[1] is not None else "–"
    return [*cells, gain] if results.baseline else cells[:1]


def _cells(results: Pair, metric: str, new: Mean, old: Mean) -> list[str]:
    """Likewise, with intervals and the number of values that are left out."""
    printed = _triple(results, metric, new, old)
    for i, mean in enumerate((new, old)[: len(printed)]):
        if mean.found and mean.found.interval:
            printed[i] += " [{:.1f}, {:.1f}]".format(*map(METRICS[metric].printed, mean.found.interval))
        if mean.left_out:
            printed[i] += f" ({mean.left_out} left out)"
    return printed


def _row(results: Pair, cases: list[QueryResult]) -> list[str]:
    """Cells of every metric, then queries, images, groups."""
    cells = []
    for name in results.ours.metrics:
        cells += _cells(results, name, *(results.mean(cases, name, side) for side in (False, True)))
    cells += [one_unit(case.unit for case in cases)] if measure_distances(results.ours.metrics) else []
    groups = {(case.dataset, case.group) for case in cases}
    images = {(case.dataset, case.item) for case in cases}
    return [*cells, f"{len(cases):,}", f"{len(images):,}", f"{len(groups):,}"]


def _heads(results: Pair) -> list[str]:
    heads = []
    for name in results.ours.metrics:
        heads += [METRICS[name].heading, *([f"{METRICS[name].title} baseline", "Δ"] if results.baseline else [])]
    heads += ["distances in"] if measure_distances(results.ours.metrics) else []
    return [*heads, "queries", "images", "groups"]


def _means(results: Pair) -> str:
    ours = results.ours
    rows = []
    for rule in ours.rules:
        found = [(name, cases) for name in ours.datasets if (cases := ours.of(rule, name))]
        rows += [[name, rule, *_row(results, cases), *_further(results.ours, rule, [name])] for name, cases in found]
        if len(found) > 1:
            cells = []
            for name in ours.metrics:
                cells += _cells(results, name, *(results.average(rule, name, side) for side in (False, True)))
            cells += [""] * (len(_heads(results)) - len(cells))
            rows.append(["mean over data sets", rule, *cells, *_further(ours, rule, [name for name, _ in found])])
    return (
        f"<h2>Means</h2><p>In square brackets the {100 * LEVEL:.0f} % interval of the mean, drawn by group (patient, "
        f"video or volume) within each data set; none where a data set has fewer than {MIN_GROUPS} groups. Higher "
        "is better, but for HD95.</p>"
        + charts.table(["data set", "mask rule", *_heads(results), *_further_heads(ours)], rows, words=2)
    )


def _further_heads(ours: Side) -> list[str]:
    absent = any(not case.present for case in ours.cases)
    return [CEILING] * ("top1" in ours.rules) + [WITH_ABSENT] * absent


def _further(ours: Side, rule: str, names: Sequence[str]) -> list[str]:
    """By `_further_heads`, means of these data sets' means: what a perfect instance model would score by top1; and Dice
    over all queries, where those of absent concepts count as 1 if nothing is answered, else as 0."""
    present = [ours.of(rule, name) for name in names]
    every = [[*own, *ours.of(rule, name, present=False)] for name, own in zip(names, present, strict=True)]
    means = {WITH_ABSENT: fmean(fmean(map(dice_of, cases)) for cases in every)}
    if rule == "top1":
        means[CEILING] = fmean(fmean(case.ceiling for case in cases) for cases in present)
    return [f"{100 * means[name]:.1f}" if name in means else "" for name in _further_heads(ours)]


def _overview(results: Pair) -> str:
    """Bars and radar by data set, or by concept where there is one data set."""
    ours = results.ours
    several = len(ours.datasets) > 1
    cases: dict[str, list[QueryResult]] = {}
    for case in ours.of(ours.rules[0]):
        cases.setdefault(case.dataset if several else case.concept, []).append(case)
    figures = []
    for metric in [name for name in ("dice", "iou") if name in ours.metrics]:
        rows = []
        for name, own in list(cases.items())[:MAX_BARS]:
            new, old = results.mean(own, metric).found, results.mean(own, metric, of_baseline=True).found
            if new:
                groups = f", {new.groups:,} groups" if new.interval else ""
                note = f"n = {new.rows:,}{groups}"
                rows.append(charts.Bar(name, note, new.mean, new.interval, old.mean if old else None))
        title = f"{METRICS[metric].title} by {'data set' if several else 'concept'}"
        legend = charts.legend(results.baseline is not None)
        words = "Mean over n queries; longer is better. The dark line: its interval, where there are 10 groups."
        more = f" The first {MAX_BARS} of {len(cases)}." if len(cases) > MAX_BARS else ""
        figures.append(_figure(f"{title}, %", charts.bars(rows), words + more, legend))
        if 3 <= len(rows) <= charts.MAX_AXES:
            old_means = [row.baseline for row in rows if row.baseline is not None]
            before = old_means if len(old_means) == len(rows) else None
            shape = charts.radar([row.label for row in rows], [row.ours for row in rows], before)
            words = "The same means as a shape, as in the paper's Figure 3; the rim is 100 %. Larger is better."
            figures.append(_figure(f"{title}, radar", shape, words, legend))
    return f'<h2>Overview</h2><div class="charts two">{"".join(figures)}</div>'


def _figure(title: str, svg: str, words: str, legend: str = "") -> str:
    return f"<figure><h3>{escape(title)}</h3>{legend}{svg}<figcaption>{escape(words)}</figcaption></figure>"


def _curves(results: Pair) -> str:
    ours = results.ours
    cases = [case for case in ours.of(ours.rules[0]) if math.isfinite(dice_of(case))]
    figures = []
    if cases:
        old = [dice_of(results.before[key_of(case)]) for case in cases] if results.baseline else [math.nan]
        before = old if all(map(math.isfinite, old)) else None
        chart = charts.by_size([case.truth_px for case in cases], [dice_of(case) for case in cases], before)
        words = (
            "A dot is a query of ours; the line joins the means of eighths of the queries, from the smallest targets "
            "to the largest. A line that falls to the left: small targets are found less well."
        )
        figures.append(_figure("Dice against the size of the target", chart, words, charts.legend(before is not None)))
    answers = [case for case in ours.cases if case.rule == ours.rules[0] and math.isfinite(case.score)]
    if answers and "iou" in ours.metrics and all(math.isfinite(case.values["iou"]) for case in answers):
        found = reliability([case.score for case in answers], achieved(answers), BINS)
        words = (
            "Are the scores worth what they say? On the dashed line a score of 70 % comes with an IoU of 70 %; below "
            "it the model is too sure, above it too modest. ECE is the mean distance from that line, 0 at best. An "
            "absent concept of the data set counts as IoU 0: a good model gives it a low score."
        )
        figures.append(_figure("Reliability of the score", charts.calibration(found), words))
    scored = [case for case in cases if math.isfinite(case.score)]
    if scored:
        shares, means = mean_by_coverage([case.score for case in scored], [dice_of(case) for case in scored])
        words = (
            "What if only the answers of the highest scores are kept, and a person looks at the others? A curve that "
            "rises to the left: the score tells good answers from bad ones. The dot: all are kept."
        )
        figures.append(_figure("Dice against coverage", charts.coverage(shares.tolist(), means.tolist()), words))
    return f'<h2>When is it right?</h2><div class="charts">{"".join(figures)}</div>'


def _classes(results: Pair) -> str:
    by_concept: dict[tuple[str, str], list[QueryResult]] = {}
    for case in results.ours.of(results.ours.rules[0]):
        by_concept.setdefault((case.dataset, case.concept), []).append(case)
    rows = [[*names, *_row(results, cases)] for names, cases in by_concept.items()]
    return "<h2>By concept</h2>" + charts.table(["data set", "concept", *_heads(results)], rows, words=2)


def _cases(results: Pair) -> tuple[str, str]:
    """The words above the list of cases, and its rows as JSON."""
    ours = results.ours
    cases = [*ours.cases, *ours.foreign]  # foreign words last: few of them would fill the list with Dice 0
    cases.sort(key=lambda c: (c.foreign, dice_of(c) if math.isfinite(dice_of(c)) else -1.0, key_of(c)))
    always, some = ["dataset", "item", "concept"], ["group", "part", "rule"]
    some += ["unit"] if measure_distances(ours.metrics) else []
    texts = [*always, *(name for name in some if any(vars(case)[name] for case in cases))]
    columns = [*texts, "kind", "score", *(METRICS[name].title for name in ours.metrics)]
    columns += ["Dice baseline", "Δ Dice"] if results.baseline else []
    rows = []
    for case in cases[:MAX_ROWS]:
        row: list[Any] = [*(vars(case)[name] for name in texts), case.kind]
        numbers = [case.score, *case.values.values()]
        if results.baseline:
            old = dice_of(results.before[key_of(case)]) if key_of(case) in results.before else math.nan
            numbers += [old, dice_of(case) - old]
        row += [round(number, 4) if math.isfinite(number) else None for number in numbers]
        rows.append([*row, case.truth_px, case.prediction_px])
    note = "Click a heading to sort, again to turn the order round. Fractions from 0 to 1; –: no finite value."
    if len(cases) > MAX_ROWS:
        note += f" These are the {MAX_ROWS:,} of {len(cases):,} rows with the lowest Dice; all are in results.csv."
    content = {"columns": [*columns, "target px", "answer px"], "words": len(texts) + 1, "counts": 2, "rows": rows}
    data = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return f"<p>{note}</p>", data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
