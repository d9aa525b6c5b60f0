"""From one result per query to results.csv, results.json, the paper's Table 3, and pictures.

Dice and IoU are fractions in 0..1 everywhere but in tables, which print percent.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from medsam3.evaluation.metrics import Mask

TRUTH_COLOUR = (40, 200, 80)
PREDICTION_COLOUR = (255, 120, 30)
PANEL_PX = 320  # longest side of a panel in an overlay picture


@dataclass(frozen=True)
class QueryResult:
    """One concept asked of one image: a row of results.csv."""

    dataset: str
    item: str
    concept: str
    prompt: str
    score: float
    dice: float
    iou: float
    truth_px: int
    prediction_px: int


@dataclass(frozen=True)
class Score:
    """Means over the queries of a data set; the mean over data sets is unweighted, as in Table 3."""

    dice: float
    iou: float
    queries: int
    images: int


def summarise(results: Iterable[QueryResult]) -> dict[str, Score]:
    """Score of each data set, in the order of first appearance."""
    by_dataset: dict[str, list[QueryResult]] = {}
    for result in results:
        by_dataset.setdefault(result.dataset, []).append(result)
    return {
        name: Score(
            dice=float(np.mean([r.dice for r in rows])),
            iou=float(np.mean([r.iou for r in rows])),
            queries=len(rows),
            images=len({r.item for r in rows}),
        )
        for name, rows in by_dataset.items()
    }


def mean_score(scores: dict[str, Score]) -> Score:
    """Unweighted mean over data sets (the row "Avg." of Table 3)."""
    return Score(
        dice=float(np.mean([s.dice for s in scores.values()])),
        iou=float(np.mean([s.iou for s in scores.values()])),
        queries=sum(s.queries for s in scores.values()),
        images=sum(s.images for s in scores.values()),
    )


def writable_folder(path: str) -> Path:
    """Create a folder for results.

    Raises:
        ValueError: it cannot be created or written to.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe_{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"output_dir={path}: cannot write there ({error.strerror}); set output_root=<folder>"
        ) from error
    return folder


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that it is there in full or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


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
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def prompt_table(prompt_dice: dict[str, dict[tuple[str, str], float]]) -> str:
    """Markdown, one table per data set: mean Dice of what each prompt (row) returned against each truth (column)."""
    parts = []
    for name, matrix in prompt_dice.items():
        concepts = sorted({prompt for prompt, _ in matrix})
        lines = [[f"{name}: prompt \\ truth", *concepts], ["---", *["---:"] * len(concepts)]]
        for prompt in concepts:
            cells = [matrix.get((prompt, truth)) for truth in concepts]
            lines.append([prompt, *("" if value is None else f"{value:.3f}" for value in cells)])
        parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n")
    return "\n".join(parts)


def _cells(score: Score, baseline: Score | None) -> list[str]:
    if baseline is None:
        return [f"{100 * score.dice:.1f}", f"{100 * score.iou:.1f}", str(score.queries), str(score.images)]
    pairs = ((baseline.dice, score.dice), (baseline.iou, score.iou))
    columns = [(100 * old, 100 * new) for old, new in pairs]
    return [text for old, new in columns for text in (f"{old:.1f}", f"{new:.1f}", f"{new - old:+.1f}")]


def overlay(image: np.ndarray, truth: Mask, prediction: Mask, caption: str) -> Image.Image:
    """Three panels side by side: the image, the truth in green, the prediction in orange; the caption below.

    Args:
        image: [H, W, 3] uint8.
        truth, prediction: [H, W].
    """
    panels = [_panel(image, None, ()), _panel(image, truth, TRUTH_COLOUR), _panel(image, prediction, PREDICTION_COLOUR)]
    width, height = panels[0].size
    labels = ("image", "truth", "prediction")
    canvas = Image.new("RGB", (3 * width + 16, height + 44), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=13)
    for i, (panel, label) in enumerate(zip(panels, labels, strict=True)):
        canvas.paste(panel, (i * (width + 8), 20))
        draw.text((i * (width + 8), 2), label, fill="black", font=font)
    draw.text((0, height + 24), caption, fill="black", font=font)
    return canvas


def _panel(image: np.ndarray, mask: Mask | None, colour: tuple[int, ...]) -> Image.Image:
    scale = PANEL_PX / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    pixels = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR), dtype=np.float32)
    if mask is not None:
        covered = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)) > 100
        pixels[covered] = 0.55 * pixels[covered] + 0.45 * np.asarray(colour, dtype=np.float32)
    return Image.fromarray(pixels.astype(np.uint8))
