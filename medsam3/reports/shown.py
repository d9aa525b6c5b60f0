"""The same numbers, tables and pictures in Weights & Biases."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from medsam3.config import EvaluateConfig
from medsam3.dashboard import start_wandb, wandb_mode
from medsam3.metrics.masks import METRICS
from medsam3.results.findings import Evaluation
from medsam3.results.instance_scores import scalars
from medsam3.results.obedience import Obedience, word_scalars
from medsam3.results.scores import Score, mean_score

MEAN = "mean over data sets"


def show_in_wandb(config: EvaluateConfig, folder: Path, evaluation: Evaluation, words: Obedience) -> None:
    """Means as scalars (<rule>/<data set>/<metric>) and as a table, those of `word_scalars` and of instances,
    overlays, and report.html; nothing if it is off.

    Args:
        folder: of the evaluation, where report.html lies and W&B keeps its own files.
    """
    mode = wandb_mode(config.wandb.mode)
    if mode == "disabled":
        return
    import wandb

    run = start_wandb(folder, config.name, config.wandb.project, mode, dataclasses.asdict(config))
    rows = [
        (rule, name, score)
        for rule, found in evaluation.scores.items()
        for name, score in (found | ({MEAN: mean_score(found)} if len(found) > 1 else {})).items()
    ]
    metrics = list(rows[0][2].values)
    table = wandb.Table(columns=["mask rule", "data set", *metrics, "distances in", "queries", "images"])
    for rule, name, score in rows:
        values = [_finite(score, metric) for metric in metrics]
        table.add_data(rule, name, *values, score.unit, score.queries, score.images)
        run.summary.update({f"{rule}/{name}/{metric}": value for metric, value in zip(metrics, values, strict=True)})
    run.summary.update({f"instances/{name}": value for name, value in scalars(evaluation.instances).items()})
    run.summary.update(word_scalars(words))
    pictures = {f"overlay/{name}": wandb.Image(picture) for name, picture in evaluation.overlays.items()}
    page = wandb.Html((folder / "report.html").read_text(encoding="utf-8"))
    run.log({"scores": table, "report": page, **pictures})
    run.finish()


def _finite(score: Score, metric: str) -> float | None:
    value = score.values[metric]
    return value if metric in METRICS and math.isfinite(value) else None
