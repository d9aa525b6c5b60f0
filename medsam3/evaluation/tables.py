"""From one result per query to results.csv, results.json and the paper's Table 3; tables print fractions in percent."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from medsam3.config import differing_keys
from medsam3.evaluation.metrics import METRICS
from medsam3.evaluation.question import Question
from medsam3.evaluation.scores import QueryResult, Score, mean_score
from medsam3.messages import markdown_table


@dataclass(frozen=True)
class Baseline:
    """An earlier result, to stand beside the present one."""

    path: Path
    question: dict[str, Any]  # as its results.json has it
    scores: dict[str, Score]

    def differences(self, question: Question) -> list[str]:
        """Lines "key: its value -> ours" of all that was asked differently.

        Raises:
            ValueError: it lacks a data set, or was asked on other images or for other concepts.
        """
        missing = sorted(question.rows.keys() - self.scores.keys())
        if missing:
            there = ", ".join(sorted(self.scores))
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


def results_csv(results: Sequence[QueryResult]) -> str:
    """One row per query; numbers that are not whole with six digits."""
    buffer = StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    columns = ("dataset", "item", "concept", "prompt", "score", *METRICS, "truth_px", "prediction_px")
    writer.writerow(columns)
    for result in results:
        values = vars(result) | result.values
        writer.writerow([f"{v:.6f}" if isinstance(v, float) else v for v in (values[name] for name in columns)])
    return buffer.getvalue()


def results_json(split: Any, question: Question, scores: dict[str, Score]) -> str:
    """What was asked, and the means per data set and over all."""
    content = {
        "checkpoint": question.checkpoint,
        "split": split,
        "question": dataclasses.asdict(question),
        "datasets": {
            name: score.values | {"queries": score.queries, "images": score.images} for name, score in scores.items()
        },
        "mean": mean_score(scores).values,
    }
    return json.dumps(content, indent=2) + "\n"


def read_baseline(path: Path) -> Baseline:
    """An earlier results.json.

    Raises:
        ValueError: no such file, or not a results.json of this version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        scores = {}
        for name, score in content["datasets"].items():
            values = {metric: score[metric] for metric in METRICS}
            scores[name] = Score(values=values, queries=score["queries"], images=score["images"])
            content["question"]["rows"][name]  # KeyError where it is not there
        return Baseline(path, content["question"], scores)
    except FileNotFoundError as error:
        raise ValueError(f"baseline={path}: no such file; give the results.json of an earlier evaluation") from error
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError, IsADirectoryError) as error:
        raise ValueError(
            f"baseline={path}: not a results.json of this version of scripts/evaluate.py ({error!r}); evaluate it again"
        ) from error


def score_table(
    scores: dict[str, Score],
    titles: dict[str, str],
    baseline: dict[str, Score] | None = None,
    names: tuple[str, str] = ("baseline", "ours"),
) -> str:
    """Markdown in the form of Table 3: every metric, with baseline and difference where one is given.

    Args:
        titles: of the data sets; the name where there is none.
        baseline: of the same data sets.
    """
    if baseline is None:
        head = ["Dataset", *(metric.heading for metric in METRICS.values()), "queries", "images"]
    else:
        head = ["Dataset", *(f"{metric.title} {name}" for metric in METRICS.values() for name in (*names, "Δ"))]
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
    cells = []
    for name, metric in METRICS.items():
        new = metric.printed(score.values[name])
        if baseline is None:
            cells.append(f"{new:.1f}")
        else:
            old = metric.printed(baseline.values[name])
            cells += [f"{old:.1f}", f"{new:.1f}", f"{new - old:+.1f}"]
    return cells if baseline else [*cells, str(score.queries), str(score.images)]
