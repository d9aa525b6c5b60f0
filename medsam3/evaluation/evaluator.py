"""Evaluation of a model on parts of data sets; the same code for validation in training and for scripts/evaluate.py.

Each rank takes every n-th image; the results of all ranks are sorted, so that the tables do not depend on their number.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from medsam3 import distributed
from medsam3.config import EvaluateConfig, EvaluationConfig
from medsam3.data.corpus import Corpus, open_corpus
from medsam3.data.manifest import ImageRows, split_file
from medsam3.evaluation.honesty import refuse_training_rows
from medsam3.evaluation.metrics import dice, iou
from medsam3.evaluation.pictures import overlay
from medsam3.evaluation.scores import QueryResult, Score, summarise
from medsam3.evaluation.tables import (
    prompt_table,
    read_baseline,
    results_csv,
    results_json,
    score_table,
)
from medsam3.files import writable_folder, write_text
from medsam3.layouts.instances import Mask
from medsam3.model.detector import TextDetector
from medsam3.model.load import load_sam3
from medsam3.prediction.image import ImagePredictor, Prediction
from medsam3.registry.spec import load_specs

MATRIX_CONCEPTS = 12  # a data set with more concepts gets no prompt matrix


@dataclass
class Evaluation:
    results: list[QueryResult]
    scores: dict[str, Score]
    prompt_dice: dict[str, dict[tuple[str, str], float]]  # data set -> (prompt, truth) -> mean Dice
    overlays: dict[str, Image.Image]  # file name -> picture


@dataclass
class _Findings:
    """What one rank has found."""

    results: list[QueryResult] = field(default_factory=list)
    cross_dice: list[tuple[str, str, str, float]] = field(default_factory=list)  # data set, prompt, truth, Dice
    overlays: dict[str, Image.Image] = field(default_factory=dict)


class TruthImages(Dataset[tuple[ImageRows, np.ndarray, dict[str, Mask]]]):
    """Images at their own size with the union mask of each present concept."""

    def __init__(self, corpus: Corpus, images: list[ImageRows]) -> None:
        self.corpus = corpus
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[ImageRows, np.ndarray, dict[str, Mask]]:
        rows = self.images[index]
        reader = self.corpus.readers[rows.dataset]
        item = reader.item(rows.item)
        masks = reader.masks(item)
        return rows, reader.image(item), {concept: masks[concept].union() for concept in rows.present}


def run_evaluation(
    predictor: ImagePredictor, corpus: Corpus, parts: dict[str, str], config: EvaluationConfig
) -> Evaluation:
    """Ask the model for every concept that is present in every image of the given part of each data set.

    Args:
        parts: data set -> part (train | val | external | all).

    Returns:
        The findings of all ranks, the same on every rank.

    Raises:
        ValueError: a part holds no image with a mask.
    """
    images: list[ImageRows] = []
    pictured: set[tuple[str, str]] = set()
    for name, part in parts.items():
        found = [rows for rows in corpus.images(name, part) if rows.present]
        if not found:
            raise ValueError(f"{name}: no image with a mask in part {part!r} of {corpus.split_file(name)}")
        found = _evenly(found, config.images)
        images += found
        pictured |= {(rows.dataset, rows.item) for rows in _evenly(found, config.overlays)}
    mine = images[distributed.rank() :: distributed.world_size()]
    workers = distributed.loading_processes(config.workers)
    loader: Any = DataLoader(TruthImages(corpus, mine), batch_size=None, collate_fn=_as_is, num_workers=workers)
    findings = _Findings()
    for rows, image, truths in tqdm(
        loader, unit="image", disable=not distributed.is_main(), leave=False, mininterval=2
    ):
        _evaluate_image(predictor, corpus, rows, image, truths, (rows.dataset, rows.item) in pictured, findings)
    return _merge(distributed.gather_objects(findings), list(parts))


def _as_is(value: Any) -> Any:
    """Keeps the loader from turning arrays into tensors."""
    return value


def _evenly(images: list[ImageRows], count: int | None) -> list[ImageRows]:
    """`count` images spread over the list; all of them for None."""
    if count is None or count >= len(images):
        return images
    return [images[i * len(images) // count] for i in range(count)]


def _evaluate_image(
    predictor: ImagePredictor,
    corpus: Corpus,
    rows: ImageRows,
    image: np.ndarray,
    truths: dict[str, Mask],
    pictured: bool,
    findings: _Findings,
) -> None:
    concepts = list(truths)
    prompts = [corpus.prompt(rows.dataset, concept) for concept in concepts]
    predictions = predictor.predict(image, concepts, corpus.exclusive(rows.dataset), prompts)
    for prompt, prediction in zip(prompts, predictions, strict=True):
        truth = truths[prediction.concept]
        result = QueryResult(
            rows.dataset,
            rows.item,
            prediction.concept,
            prompt,
            prediction.score,
            dice(prediction.mask, truth),
            iou(prediction.mask, truth),
            int(truth.sum()),
            int(prediction.mask.sum()),
        )
        findings.results.append(result)
        if pictured:
            name = f"{rows.dataset}_{rows.item}_{prediction.concept}.png".replace("/", "_").replace(" ", "_")
            caption = f"{prompt}   score {result.score:.2f}   Dice {result.dice:.3f}   IoU {result.iou:.3f}"
            findings.overlays[name] = overlay(image, truth, prediction.mask, caption)
    if len(corpus.specs[rows.dataset].concepts) <= MATRIX_CONCEPTS:
        findings.cross_dice += _cross_dice(rows.dataset, predictions, truths)


def _cross_dice(
    dataset: str, predictions: Iterable[Prediction], truths: dict[str, Mask]
) -> list[tuple[str, str, str, float]]:
    """Dice of each prediction against the truth of every concept in the image: does the prompt matter?"""
    return [
        (dataset, prediction.concept, concept, dice(prediction.mask, truth))
        for prediction in predictions
        for concept, truth in truths.items()
    ]


def _merge(findings: list[_Findings], datasets: list[str]) -> Evaluation:
    order = {name: i for i, name in enumerate(datasets)}
    results = sorted((r for f in findings for r in f.results), key=lambda r: (order[r.dataset], r.item, r.concept))
    cells: dict[str, dict[tuple[str, str], list[float]]] = {}
    for name, prompt, truth, value in sorted(c for f in findings for c in f.cross_dice):
        cells.setdefault(name, {}).setdefault((prompt, truth), []).append(value)
    return Evaluation(
        results=results,
        scores=summarise(results),
        prompt_dice={
            name: {pair: float(np.mean(values)) for pair, values in matrix.items()}
            for name, matrix in cells.items()
            if len(matrix) > 1
        },
        overlays=dict(sorted((name, picture) for f in findings for name, picture in f.overlays.items())),
    )


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Measure a checkpoint on a split and write results.csv, results.json, table.md, prompts.md and overlays/.

    Raises:
        ValueError: unknown split, no prepared data set, a checkpoint that cannot be loaded or that was trained on the
            rows asked for, an output folder that cannot be written to.
    """
    device = distributed.select_device(config.device)
    with distributed.process_group(device):
        folder = writable_folder(config.output_dir, "output_dir", "output_root")
        baseline = read_baseline(Path(config.baseline)) if config.baseline else None
        parts, missing = _parts_of_split(config)
        corpus = open_corpus(config.data, list(parts))
        if not config.allow_training_rows:
            refuse_training_rows(config.checkpoint, corpus, parts)
        torch.manual_seed(config.seed)  # the weights of `tiny`
        loaded = load_sam3(config.checkpoint, config.image_size)
        detector = TextDetector(loaded.model).to(device)
        say = print if distributed.is_main() else lambda *_: None
        say(f"model    {loaded.report}")
        say(f"data     {corpus.describe()}")
        for name in missing:
            say(f"missing  {name}: not prepared, left out (python scripts/prepare_data.py datasets={name})")
        predictor = ImagePredictor(detector, loaded.tokenizer, config.image_size, config.evaluation, config.bf16)
        evaluation = run_evaluation(predictor, corpus, parts, config.evaluation)
        if distributed.is_main():
            titles = {name: spec.title for name, spec in corpus.specs.items()}
            table = score_table(evaluation.scores, titles, baseline)
            write_text(folder / "table.md", table)
            write_text(folder / "results.json", results_json(config.checkpoint, config.split, evaluation.scores))
            write_evaluation(folder, evaluation)
            say(f"\n{table}\nresults.csv, results.json, table.md, prompts.md and overlays/ lie in {folder}")
        distributed.barrier()
        return evaluation


def write_evaluation(folder: Path, evaluation: Evaluation) -> None:
    """Write results.csv, prompts.md and overlays/*.png; pictures of an earlier evaluation are removed."""
    write_text(folder / "results.csv", results_csv(evaluation.results))
    write_text(folder / "prompts.md", prompt_table(evaluation.prompt_dice))
    pictures = folder / "overlays"
    pictures.mkdir(exist_ok=True)
    for old in pictures.glob("*.png"):
        old.unlink()
    for name, picture in evaluation.overlays.items():
        picture.save(pictures / name)


def _parts_of_split(config: EvaluateConfig) -> tuple[dict[str, str], list[str]]:
    """The part to evaluate of each prepared data set of a split, and the data sets that are not prepared."""
    use = {"train": "train", "val": "train", "internal": "internal", "external": "external"}
    named = [config.split] if isinstance(config.split, str) else list(config.split)
    if len(named) == 1 and named[0] in use:
        specs = load_specs(use[named[0]])
    else:
        specs = load_specs(named)
    prepared = {name for name in specs if split_file(config.data.splits, name).exists()}
    if not prepared:
        raise ValueError(
            f"split={config.split}: none of its data sets is prepared in data.splits={config.data.splits}; "
            f"run python scripts/prepare_data.py datasets={named[0]}"
        )
    parts = {}
    for name in specs:
        if name in prepared:
            external = specs[name].used_for == ("external",)
            parts[name] = "external" if external else "train" if named == ["train"] else "val"
    return parts, [name for name in specs if name not in prepared]
