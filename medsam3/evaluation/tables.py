"""From one result per query to results.csv, results.json and the paper's Table 3.

Dice and IoU are fractions in 0..1 everywhere but in tables, which print percent.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from io import StringIO
from pathlib import Path
from typing import Any

from medsam3.evaluation.scores import QueryResult, Score, mean_score
from medsam3.messages import markdown_table


def results_csv(results: Sequence[QueryResult]) -> str:
    buffer = StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = [f.name for f in fields(QueryResult)]
    writer.writerow(names)
    for result in results:
        values = [getattr(result, name) for name in names]
        writer.writerow([f"{v:.6f}" if isinstance(v, float) else v for v in values])
    return buffer.getvalue()


def results_json(checkpoint: str, split: Any, scores: dict[str, Score]) -> str:
    mean = mean_score(scores)
    content = {
        "checkpoint": checkpoint,
        "split": split,
        "datasets": {name: asdict(score) for name, score in scores.items()},
        "mean": {"dice": mean.dice, "iou": mean.iou},
    }
    return json.dumps(content, indent=2) + "\n"


def read_baseline(path: Path) -> dict[str, Score]:
    """Scores of an earlier results.json.

    Raises:
        ValueError: no such file, or not a results.json of this project.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {name: Score(**score) for name, score in content["datasets"].items()}
    except FileNotFoundError as error:
        raise ValueError(f"baseline={path}: no such file; give the results.json of an earlier evaluation") from error
    except (json.JSONDecodeError, KeyError, TypeError, IsADirectoryError) as error:
        raise ValueError(f"baseline={path}: not a results.json of scripts/evaluate.py ({error})") from error


def score_table(
    scores: dict[str, Score],
    titles: dict[str, str],
    baseline: dict[str, Score] | None = None,
    names: tuple[str, str] = ("baseline", "ours"),
) -> str:
    """Markdown in the form of Table 3: Dice and IoU in percent, with baseline and difference where one is given."""
    if baseline is None:
        head = ["Dataset", "Dice (%)", "IoU (%)", "queries", "images"]
    else:
        head = ["Dataset", *(f"{metric} {name}" for metric in ("Dice", "IoU") for name in (*names, "Δ"))]
        missing = sorted(scores.keys() - baseline.keys())
        if missing:
            raise ValueError(f"baseline has no data set {', '.join(missing)}; it has {', '.join(sorted(baseline))}")
    rows = [
        [titles.get(name, name), *_cells(score, baseline[name] if baseline else None)] for name, score in scores.items()
    ]
    if len(scores) > 1:
        mean_baseline = mean_score({name: baseline[name] for name in scores}) if baseline else None
        rows.append(["**Avg.**", *_cells(mean_score(scores), mean_baseline)])
    return markdown_table(head, rows)


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


def _cells(score: Score, baseline: Score | None) -> list[str]:
    if baseline is None:
        return [f"{100 * score.dice:.1f}", f"{100 * score.iou:.1f}", str(score.queries), str(score.images)]
    pairs = ((baseline.dice, score.dice), (baseline.iou, score.iou))
    columns = [(100 * old, 100 * new) for old, new in pairs]
    return [text for old, new in columns for text in (f"{old:.1f}", f"{new:.1f}", f"{new - old:+.1f}")]
