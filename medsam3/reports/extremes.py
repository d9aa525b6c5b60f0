"""The best, the median and the worst query of each data set: which they are, and their pictures in the report."""

from __future__ import annotations

import base64
import math
import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from html import escape
from io import BytesIO

import numpy as np
from PIL import Image

from medsam3 import distributed
from medsam3.data.manifest import ImageRows
from medsam3.reports.beside import Pair, dice_of, key_of
from medsam3.reports.pictures import overlay_name, overlay_panels
from medsam3.results.findings import Evaluation
from medsam3.results.scores import QueryResult

EXTREMES = ("Best", "Worst", "Median")  # in the order in which few queries get these names
MAX_PICTURED = 20  # data sets
PANEL_PX = 240  # longest side


def extremes(cases: Iterable[QueryResult]) -> list[tuple[str, QueryResult]]:
    """The best, the median and the worst of these by Dice, as far as there are three; ties in the order of names."""
    finite = [case for case in cases if math.isfinite(dice_of(case))]
    ranked = sorted(finite, key=lambda case: (-round(dice_of(case), 6), key_of(case)))
    chosen: dict[int, str] = {}
    for word, place in _places(len(ranked)).items():
        chosen.setdefault(place, word)
    return [(chosen[place], ranked[place]) for place in sorted(chosen)] if ranked else []


def extreme_images(evaluation: Evaluation, asked: Mapping[str, list[ImageRows]]) -> dict[str, list[ImageRows]]:
    """The images of these queries, by the rule that chooses the model; the same on every rank."""
    items = distributed.from_main(lambda: _extreme_items(evaluation))
    return {name: [rows for rows in images if rows.item in items.get(name, ())] for name, images in asked.items()}


def _extreme_items(evaluation: Evaluation) -> dict[str, set[str]]:
    """As `extremes` would choose, on columns of numbers instead of all cases."""
    columns: dict[str, tuple[array[float], array[int], list[str]]] = {}  # -Dice, number of the finding, concept
    for number, finding in enumerate(evaluation.findings):
        for case in finding.results:
            if case.rule == evaluation.rule and case.present and math.isfinite(dice_of(case)):
                losses, numbers, concepts = columns.setdefault(case.dataset, (array("d"), array("q"), []))
                losses.append(-round(dice_of(case), 6))
                numbers.append(number)
                concepts.append(sys.intern(case.concept))
    wanted: set[int] = set()
    for losses, numbers, concepts in columns.values():
        names = {name: place for place, name in enumerate(sorted(set(concepts)))}
        ranked = np.lexsort(([names[concept] for concept in concepts], numbers, losses))
        wanted |= {numbers[ranked[place]] for place in _places(len(ranked)).values()}
    items: dict[str, set[str]] = {}
    for number, finding in enumerate(evaluation.findings):
        if number in wanted:
            items.setdefault(finding.dataset, set()).add(finding.item)
    return items


def _places(count: int) -> dict[str, int]:
    """Where in a ranking of so many the best, the worst and the median stand."""
    return dict(zip(EXTREMES, (0, count - 1, count // 2), strict=True))


def picture_section(results: Pair) -> str:
    """Image, truth, baseline and ours of each, as HTML."""
    ours = results.ours
    parts = []
    files = Counter(overlay_name(*names) for names in {key_of(case)[:3] for case in ours.cases})
    for name in ours.datasets[:MAX_PICTURED]:
        cases = ours.of(ours.rules[0], name)
        for word, case in [*extremes(cases), *_gains(results, cases)]:
            file = overlay_name(case.dataset, case.item, case.concept)
            parts.append(_panels(results, word, case, file if files[file] == 1 else None))
    words = "The queries of the best, the median and the worst Dice of each data set. Truth green, answers orange."
    if len(ours.datasets) > MAX_PICTURED:
        words += f" The first {MAX_PICTURED} of {len(ours.datasets)} data sets."
    return f"<h2>Best, median and worst</h2><p>{words}</p>{''.join(parts)}"


def _gains(results: Pair, cases: list[QueryResult]) -> list[tuple[str, QueryResult]]:
    """Of the queries that both results have a picture of, those that gain most and least on the baseline."""
    if results.baseline is None:
        return []
    folders = results.ours.folder / "overlays", results.baseline.folder / "overlays"
    gains = [
        (dice_of(case) - dice_of(results.before[key_of(case)]), case)
        for case in cases
        if all((folder / overlay_name(*key_of(case)[:3])).is_file() for folder in folders)
    ]
    ranked = sorted(((gain, case) for gain, case in gains if math.isfinite(gain)), key=lambda pair: pair[0])
    words = ("Largest gain of those that both have a picture of", "Smallest gain of these")
    return [(word, ranked[place][1]) for word, place in zip(words, (-1, 0), strict=True)] if len(ranked) > 1 else []


def _panels(results: Pair, word: str, case: QueryResult, file: str | None) -> str:
    """
    Args:
        file: name of its overlay picture; None: another query's has the same name, so nobody knows whose it is.
    """
    old = f"; of the baseline {dice_of(results.before[key_of(case)]):.3f}" if results.baseline else ""
    score = f"; score {case.score:.2f}" if math.isfinite(case.score) else ""
    caption = f"Dice {dice_of(case):.3f}{old}{score}; target {case.truth_px:,} px"
    panels: dict[str, Image.Image] = {}
    if file and (found := overlay_panels(results.ours.folder / "overlays" / file)):
        before = overlay_panels(results.baseline.folder / "overlays" / file) if results.baseline else None
        fits = before is not None and before[2].size == found[2].size
        panels = {"image": found[0], "truth": found[1], **({"baseline": before[2]} if before and fits else {})}
        panels["ours"] = found[2]
    if not panels or (results.baseline and "baseline" not in panels):
        caption += f". No picture of {'the baseline' if panels else 'it'} was kept"
    title = escape(f"{word}: {case.dataset}, {case.item}, {case.concept}")
    return f'<h3>{title}</h3><p class="note">{caption}</p>{picture_row(panels)}'


def picture_row(panels: Mapping[str, Image.Image]) -> str:
    """Pictures beside each other, each with its name below, as HTML."""
    shown = [f'<div><img alt="{key}" src="{_data_uri(panel)}">{key}</div>' for key, panel in panels.items()]
    return f'<div class="panels">{"".join(shown)}</div>'


def _data_uri(panel: Image.Image) -> str:
    panel.thumbnail((PANEL_PX, PANEL_PX))
    buffer = BytesIO()
    panel.save(buffer, "WEBP", quality=70)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
