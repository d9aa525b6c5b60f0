"""Results of volumes as files: results_volumes.csv (a row per volume and concept), volumes.md, results_volumes.json."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import math
from collections.abc import Iterable, Sequence
from io import StringIO
from typing import Any

from medsam3.evaluation.volumes import VolumeResult, VolumeRows
from medsam3.files import strict_json
from medsam3.messages import listed, markdown_table
from medsam3.metrics.statistics import MIN_GROUPS, MeanInterval, mean_interval
from medsam3.reports.volume_report import heading, with_interval
from medsam3.results.scores import DRAWS, LEVEL, SEED

BEFORE = ("dataset", "volume", "group", "part", "concept", "prompt", "rule", "mode", "present", "score")
AFTER = ("slices", "slices_in_file", "stretches", "spacing_mm", "truth_voxels", "prediction_voxels")
ALL = "all"  # concepts of a data set

Cell = tuple[str, str]  # data set, concept


def volumes_csv(results: Sequence[VolumeResult]) -> str:
    """Numbers that are not whole with six digits, what was not measured empty, spacings as 3 x 0.7 x 0.7."""
    buffer = StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    columns = (*BEFORE, *results[0].values, *AFTER)
    writer.writerow(columns)
    for result in results:
        spacing = " x ".join(f"{edge:.6g}" for edge in result.spacing_mm or ())
        values = vars(result) | result.values | {"present": int(result.present), "spacing_mm": spacing}
        writer.writerow([_cell(values[name]) for name in columns])
    return buffer.getvalue()


def _cell(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else f"{value:.6f}"


def volume_means(results: Iterable[VolumeResult]) -> dict[Cell, dict[str, MeanInterval]]:
    """Of each data set and concept, and of all its concepts, the mean of each value over the volumes that hold it, with
    its interval by group; values that are not finite are left out, and a mean without any is missing."""
    cells: dict[Cell, list[VolumeResult]] = {}
    for result in results:
        if result.present:
            cells.setdefault((result.dataset, result.concept), []).append(result)
            cells.setdefault((result.dataset, ALL), []).append(result)
    means: dict[Cell, dict[str, MeanInterval]] = {}
    for cell, rows in sorted(cells.items(), key=lambda entry: (entry[0][0], entry[0][1] == ALL)):
        means[cell] = {}
        for name in rows[0].values:
            finite = [row for row in rows if math.isfinite(row.values[name])]
            if finite:
                values, groups = [row.values[name] for row in finite], [row.group for row in finite]
                means[cell][name] = mean_interval(values, groups, LEVEL, DRAWS, SEED)
    return means


def volumes_markdown(results: Sequence[VolumeResult], asked: Iterable[VolumeRows], left_out: Sequence[str]) -> str:
    """Means of each concept, and below them what they do not tell."""
    first, means = results[0], volume_means(results)
    head = ["Data set", "Concept", "Volumes", *(heading(name) for name in first.values)]
    rows = []
    for (dataset, concept), values in means.items():
        held = [r.volume for r in results if r.present and r.dataset == dataset and concept in (r.concept, ALL)]
        shown = (_shown(name, values.get(name), len(held)) for name in first.values)
        rows.append([dataset, concept, str(len(set(held))), *shown])
    lines = [
        f"Volumes by mode {first.mode}, rule {first.rule}. In brackets the {LEVEL:.0%} interval, groups drawn "
        f"together, from {MIN_GROUPS} groups on.",
        "",
        markdown_table(head, rows).rstrip("\n"),
        "",
    ]
    absent = [result for result in results if not result.present]
    if absent:
        answered = sum(result.prediction_voxels > 0 for result in absent)
        lines.append(f"- Asked for what is not there: {len(absent)} questions, {answered} of them got a mask.")
    incomplete = [f"{own.dataset}/{own.volume}: {own.missing}" for own in asked if own.missing]
    if incomplete:
        lines.append(
            f"- Incomplete: {listed(incomplete, 20)}. Only these slices count; the faces at which they end are no "
            "surface, and there is no HD95."
        )
    gaps = sorted({f"{result.dataset}/{result.volume}" for result in results if result.stretches > 1})
    if gaps:
        lines.append(
            f"- With gaps between their slices, and so without distances: {listed(gaps, 20)}. "
            "data.split.by=group keeps volumes in one part."
        )
    unknown = sorted({result.dataset for result in results if result.spacing_mm is None})
    if unknown:
        lines.append(f"- The files do not say how large a voxel is, so there are no distances: {listed(unknown)}.")
    lines += [f"- Left out: {clause}." for clause in left_out]
    return "\n".join(lines) + "\n"


def _shown(name: str, mean: MeanInterval | None, count: int) -> str:
    if mean is None:
        return "-"
    return with_interval(name, mean.mean, mean.interval) + (f" (of {mean.rows})" if mean.rows < count else "")


def volumes_json(question: dict[str, Any], results: Sequence[VolumeResult], drifts: dict[str, list[float]]) -> str:
    """What was asked, and the means.

    Args:
        drifts: see `measure_volumes`.
    """
    means: dict[str, dict[str, Any]] = {}
    for (dataset, concept), values in volume_means(results).items():
        means.setdefault(dataset, {})[concept] = {name: dataclasses.asdict(mean) for name, mean in values.items()}
    files = {"results_volumes.csv": hashlib.sha256(volumes_csv(results).encode()).hexdigest()}
    content = {"question": question, "means": means, "tracker_drift": drifts, "files": files}
    return strict_json(content)
