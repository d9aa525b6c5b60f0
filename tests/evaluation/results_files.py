"""Folders of finished evaluations, written by hand."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medsam3.reports.beside import OTHERS, SWAPPED

QUESTION: dict[str, Any] = {
    "checkpoint": "runs/a",
    "image_size": 1008,
    "prediction": {"rules": ["top1", "union"], "score_threshold": 0.0},
    "prompt": "text",
    "code": "abc",
}
Row = tuple[str, str, str, float]  # item, group, concept, Dice


def write_results(
    folder: Path,
    datasets: Mapping[str, Sequence[Row]],
    weights: str = "00",
    rules: Sequence[str] = ("top1",),
    present: Sequence[int] = (),
    kinds: Sequence[str] = (),
    **question: Any,
) -> Path:
    """results.csv and results.json of an evaluation in which IoU is Dice / 2.

    Args:
        present: a 0 or 1 for each row, over all data sets; empty: all 1.
        kinds: the same in the words of QueryResult.
    """
    folder.mkdir(parents=True)
    names = ("dataset", "item", "group", "part", "concept", "rule", "present", "kind", "dice", "iou")
    names += (*OTHERS[1:], *SWAPPED)
    asked = {name: {"images_sha256": "1", "prompts": {}} for name in datasets}
    content: dict[str, Any] = {
        "question": QUESTION | {"weights_sha256": weights, "rows": asked} | question,
        "rules": {rule: {"datasets": {}} for rule in rules},
    }
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        number = 0
        for name, rows in datasets.items():
            kept = []
            for item, group, concept, dice in rows:
                kind = kinds[number] if kinds else "present" if not present or present[number] else "marked"
                there = int(kind == "present")
                number += 1
                for rule in rules:
                    numbers = f"{dice:.6f}", f"{dice / 2:.6f}"
                    others = (concept, 0.5, 0.5, 1.0, 9 * there, 9, "px", "", "", "")
                    writer.writerow([name, item, group, "val", concept, rule, there, kind, *numbers, *others])
                kept += [dice] if there else []
            for rule in rules:
                mean = float(np.mean([value for value in kept if np.isfinite(value)]))
                content["rules"][rule]["datasets"][name] = {"values": {"dice": mean, "iou": mean / 2}}
    (folder / "results.json").write_text(json.dumps(content))
    return folder
