"""Volumes in the report of an evaluation: means, a row per volume and concept, pictures of some of their slices."""

from __future__ import annotations

import glob
import json
import math
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from medsam3.files import file_hash
from medsam3.layouts.instances import Mask
from medsam3.metrics.statistics import MIN_GROUPS
from medsam3.reports.charts import table
from medsam3.reports.extremes import picture_row
from medsam3.reports.pictures import overlay, overlay_name, overlay_panels
from medsam3.reports.protocol import model_lines
from medsam3.results.comparison import comparable
from medsam3.results.folder import NSD_MM, VOLUME_FILES, Results, read_volumes
from medsam3.results.scores import LEVEL

OVERLAYS = "overlays_volumes"  # folder of the pictures
MAX_ROWS = 500
WARNINGS = ("TRAINED", "Chosen", "Incomplete")  # how lines of volumes.md begin that nobody may miss
COUNTS = {
    "slices": "slices",
    "slices_in_file": "of",
    "spacing_mm": "voxel in mm",
    "truth_voxels": "target voxels",
    "prediction_voxels": "answer voxels",
}  # columns of results_volumes.csv


def heading(metric: str) -> str:
    """Of a column of results_volumes.csv, in tables."""
    return ("" if NSD_MM.fullmatch(metric) else "3D ") + comparable(metric).heading


def with_interval(metric: str, mean: float, interval: Sequence[float] | None) -> str:
    """A mean as tables show it, with its interval if it has one."""
    printed = comparable(metric).printed
    ends = " [{:.1f}, {:.1f}]".format(*map(printed, interval)) if interval else ""
    return f"{printed(mean):.1f}{ends}"


def draw_slices(
    folder: Path,
    names: tuple[str, str, str],
    numbers: Sequence[int],
    pictures: Any,
    answer: Mask,
    truth: Mask,
) -> None:
    """Write pictures of the slice with most of the target and of the one with most wrong voxels.

    Args:
        names: data set, volume, concept.
        numbers: of the slices in the file, [D].
        pictures: slices by their place, see `prediction.volume.Pictures`.
        answer, truth: [D, H, W].
    """
    folder.mkdir(parents=True, exist_ok=True)
    most = (int(np.count_nonzero(mask, axis=(1, 2)).argmax()) for mask in (truth, answer != truth))
    for place in sorted(set(most)):
        picture = overlay(pictures[place], truth[place], answer[place], f"slice {numbers[place]}")
        picture.save(folder / f"{_stem(*names)}_slice_{numbers[place]}.png")


def _stem(dataset: str, volume: str, concept: str) -> str:
    return overlay_name(dataset, volume, concept).removesuffix(".png")


def volume_page(folder: Path) -> str:
    """The body of a report on volumes alone. Raises as `volume_section`."""
    asked = json.loads((folder / VOLUME_FILES[0]).read_text(encoding="utf-8"))["question"]
    hashes = {name: file_hash(folder / name) for name in VOLUME_FILES}
    tracker = {key: asked[key] for key in ("tracker_sha256", "tracker_vision") if key in asked}  # as it was in the end
    volume = ", ".join(f"{key} {value}" for key, value in (asked["volume"] | tracker).items())
    lines = [*model_lines(asked, hashes), ["Volumes", volume]]
    return (
        f"<h1>Evaluation of {escape(str(asked['checkpoint']))} on volumes</h1>{volume_section(folder)}"
        "<h2>How this was measured</h2>" + table(["asked", "answer"], lines, words=2, kind="words")
    )


def volume_section(folder: Path) -> str:
    """What results_volumes.csv, results_volumes.json, volumes.md and the pictures tell, as HTML.

    Raises:
        ValueError: see `read_volumes`.
    """
    results = read_volumes(folder)
    content = json.loads((folder / VOLUME_FILES[0]).read_text(encoding="utf-8"))
    rule, rows = next(iter(results.rows.items()))
    metrics = list(next(iter(rows.values())).values)
    means = [
        [name, concept, *(_mean(metric, own.get(metric)) for metric in metrics)]
        for name, concepts in content["means"].items()
        for concept, own in concepts.items()
    ]
    said = folder / "volumes.md"
    lines = said.read_text(encoding="utf-8").splitlines() if said.is_file() else []
    notes = [line.removeprefix("- ") for line in lines if line.startswith("- ")]
    return (
        f"<h2>Volumes</h2><p>Mode <b>{escape(content['question']['volume']['mode'])}</b>, mask rule "
        f"<b>{escape(rule)}</b>. Means are over the volumes that hold the concept; in square brackets the "
        f"{LEVEL:.0%} interval, drawn by group, from {MIN_GROUPS} groups on; in round ones of how many values. Higher "
        "is better, but for HD95.</p>"
        + table(["data set", "concept", *map(heading, metrics)], means, words=2)
        + "".join(f'<p class="{"warn" * note.startswith(WARNINGS)}">{escape(note)}</p>' for note in notes)
        + _every(results, rule, metrics)
        + _pictures(results, rule)
    )


def _mean(metric: str, mean: dict[str, Any] | None) -> str:
    if mean is None:
        return "–"
    return f"{with_interval(metric, mean['mean'], mean['interval'])} ({mean['rows']})"


def _every(results: Results, rule: str, metrics: Sequence[str]) -> str:
    """A row per volume and concept."""
    lines: list[tuple[float, list[str]]] = []
    for name, rows in results.rows[rule].items():
        for i, (volume, concept) in enumerate(rows.keys):
            values = [float(rows.values[metric][i]) for metric in metrics]
            shown = [
                with_interval(m, v, None) if math.isfinite(v) else "–" for m, v in zip(metrics, values, strict=True)
            ]
            shown += [f"{float(rows.others['score'][i]):.2f}", *(rows.others[column][i] or "–" for column in COUNTS)]
            lines.append((values[0], [name, volume, concept, "yes" if rows.present[i] else "no", *shown]))
    lines.sort(key=lambda line: (not math.isfinite(line[0]), line[0]))
    more = f" The first {MAX_ROWS} of {len(lines):,}; all are in {VOLUME_FILES[1]}." if len(lines) > MAX_ROWS else ""
    head = ["data set", "volume", "concept", "there", *map(heading, metrics), "score", *COUNTS.values()]
    words = f"The lowest {heading(metrics[0])} first; –: not measured.{more}"
    return f"<h3>Every volume</h3><p>{words}</p>" + table(head, [cells for _, cells in lines[:MAX_ROWS]], words=4)


def _pictures(results: Results, rule: str) -> str:
    keys = [(name, *key) for name, rows in results.rows[rule].items() for key in rows.keys]
    stems = [_stem(*key) for key in keys]
    parts = []
    for key, stem in zip(keys, stems, strict=True):
        found = (results.folder / OVERLAYS).glob(f"{glob.escape(stem)}_slice_*.png")
        numbered = {int(match.group(1)): path for path in found if (match := re.search(r"_slice_(\d+)$", path.stem))}
        for number, path in sorted(numbered.items()):
            if stems.count(stem) == 1 and (panels := overlay_panels(path)):
                title = escape(f"{', '.join(key)}, slice {number}")
                shown = picture_row(dict(zip(("image", "truth", "ours"), panels, strict=True)))
                parts.append(f"<div><h4>{title}</h4>{shown}</div>")
    words = (
        "Of some volumes, the slice with most of the target and the one with most wrong voxels (there may be one that "
        "is both). Truth green, answers orange."
    )
    return f'<h3>Slices</h3><p>{words}</p><div class="charts three">{"".join(parts)}</div>' if parts else ""
