"""What preparing data sets says: Table 1 of what was found, and what is broken or not there."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

from medsam3.data.manifest import FILE_PARTS as PARTS
from medsam3.layouts.reader import Problem
from medsam3.registry.cards import DatasetCard, card_names, load_card
from medsam3.registry.spec import DatasetSpec

PROBLEMS_SHOWN = 10


@dataclass(frozen=True)
class Summary:
    """What was found of one data set: a row of Table 1."""

    name: str
    title: str
    images: int
    annotations: int  # instances, each once: of the concept "*" alone where there is one
    median_area_px: float  # of the instances
    parts: dict[str, int]  # images of each part
    empty: int  # images that show nothing of what was looked for
    excluded: int  # lines of the exclusions file
    split_hash: str
    remarks: tuple[str, ...]  # see remarks.py


def summary_table(summaries: list[Summary]) -> str:
    """Table 1 of what was found, with the paper's number in brackets where it has one, and remarks."""
    head = ["data set", "images", "empty", "annotations", "median area px", *PARTS, "left out", "split"]
    rows = [head]
    for found in summaries:
        card = _card(found.name)
        paper = card.paper if card else None
        rows.append(
            [
                found.title,
                _beside(found.images, paper.images if paper else None),
                f"{found.empty:,}",
                _beside(found.annotations, paper.annotations if paper else None),
                _beside(found.median_area_px, paper.median_area_px if paper else None),
                *(str(found.parts.get(part, "-")) for part in PARTS),
                str(found.excluded),
                found.split_hash[:8],
            ]
        )
    if len(summaries) > 1:
        rows.append(_total(summaries))
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if any(card is not None and card.paper.images for card in (_card(found.name) for found in summaries)):
        lines.append("(in brackets: Table 1 of the paper)")
    return "\n".join([*lines, *_differences(summaries), *(line for found in summaries for line in found.remarks)])


def _total(summaries: list[Summary]) -> list[str]:
    parts = [sum(found.parts.get(part, 0) for found in summaries) for part in PARTS]
    images, empty, annotations, excluded = (
        sum(getattr(found, name) for found in summaries) for name in ("images", "empty", "annotations", "excluded")
    )
    counts = [
        f"{images:,}",
        f"{empty:,}",
        f"{annotations:,}",
        "",
        *(f"{part:,}" for part in parts),
        f"{excluded:,}",
        "",
    ]
    return ["total", *counts]


def _differences(summaries: list[Summary]) -> list[str]:
    """For each data set that differs from Table 1, what its card says of how the paper's numbers arise."""
    lines = []
    for found in summaries:
        card = _card(found.name)
        if card is not None and card.paper.images is not None:
            paper = (card.paper.images, card.paper.annotations, card.paper.median_area_px)
            if paper != (found.images, found.annotations, round(found.median_area_px)):
                fewer = f": {found.images:,} of {paper[0]:,} images are there" if found.images < paper[0] else ""
                lines.append(f"{found.title} differs{fewer}. How the paper's numbers arise: {card.counts}")
    return lines


def _beside(found: float, paper: int | None) -> str:
    return f"{found:,g}" if found < 1e6 and paper is None else f"{found:,.0f}" + (f" ({paper:,})" if paper else "")


def problem_report(name: str, broken: list[Problem]) -> str:
    """The error for a data set with broken items: the first of them, and the way out."""
    lines = [f"{name}: {len(broken)} problem{'s' if len(broken) > 1 else ''}, so no split file was written:"]
    lines += [f"  {problem.item}: {problem.reason}" for problem in broken[:PROBLEMS_SHOWN]]
    if len(broken) > PROBLEMS_SHOWN:
        lines.append(f"  and {len(broken) - PROBLEMS_SHOWN} more")
    if any("image without" in problem.reason for problem in broken):
        lines.append(
            "Where no file means that nothing is there: options: {missing_mask: absent} in the data set's YAML"
        )
    lines.append("Repair the files, or leave these items out (they will be listed) with skip_broken=true")
    return "\n".join(lines)


def exclusions_csv(problems: list[Problem]) -> str:
    """One line per item that is left out."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["item", "reason"])
    writer.writerows(sorted((problem.item, problem.reason) for problem in problems))
    return buffer.getvalue()


def _card(name: str) -> DatasetCard | None:
    return load_card(name) if name in card_names() else None


def where_to_get(spec: DatasetSpec) -> str:
    """Home page, licence and access of a data set, as a clause that ends a sentence."""
    card = _card(spec.name)
    if card is None:
        return ""
    how = f"python scripts/get_data.py datasets={card.name}"
    return f" from {card.home[0]} (licence: {card.licence}; access: {card.access}; how: {how})"
