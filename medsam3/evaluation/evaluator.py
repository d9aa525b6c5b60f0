"""Evaluation of a model on parts of data sets; the same code for validation in training and for scripts/evaluate.py.

Each rank takes every n-th image; the results of all ranks are sorted, so that the tables do not depend on their number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from medsam3 import distributed
from medsam3.config import EvaluationConfig
from medsam3.data.corpus import Corpus
from medsam3.data.manifest import ImageRows
from medsam3.evaluation.metrics import METRICS, Comparison, dice, measure
from medsam3.evaluation.pictures import overlay
from medsam3.evaluation.scores import QueryResult, Score, summarise
from medsam3.layouts.instances import Mask
from medsam3.prediction.image import ImagePredictor, Prediction

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


def asked_images(corpus: Corpus, parts: Mapping[str, str], count: int | None) -> dict[str, list[ImageRows]]:
    """The images to evaluate of each data set: those of its part that hold a concept, `count` of them spread evenly.

    Args:
        parts: data set -> part (train | val | external | all).
        count: None: all.

    Raises:
        ValueError: a part holds no image with a mask.
    """
    chosen = {}
    for name, part in parts.items():
        found = [rows for rows in corpus.images(name, part) if rows.present]
        if not found:
            raise ValueError(f"{name}: no image with a mask in part {part!r} of {corpus.split_file(name)}")
        chosen[name] = _evenly(found, count)
    return chosen


def run_evaluation(
    predictor: ImagePredictor, corpus: Corpus, asked: Mapping[str, list[ImageRows]], config: EvaluationConfig
) -> Evaluation:
    """Ask the model for every concept that is present in every image.

    Args:
        asked: data set -> images, see `asked_images`.

    Returns:
        The findings of all ranks, the same on every rank.
    """
    images = [rows for found in asked.values() for rows in found]
    pictured = {(rows.dataset, rows.item) for found in asked.values() for rows in _evenly(found, config.overlays)}
    mine = images[distributed.rank() :: distributed.world_size()]
    workers = distributed.loading_processes(config.workers)
    loader: Any = DataLoader(TruthImages(corpus, mine), batch_size=None, collate_fn=_as_is, num_workers=workers)
    findings = _Findings()
    for rows, image, truths in tqdm(
        loader, unit="image", disable=not distributed.is_main(), leave=False, mininterval=2
    ):
        _evaluate_image(predictor, corpus, rows, image, truths, (rows.dataset, rows.item) in pictured, findings)
    return _merge(distributed.gather_objects(findings), list(asked))


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
    try:
        predictions = predictor.predict(image, concepts, corpus.exclusive(rows.dataset), prompts)
    except ValueError as error:
        raise ValueError(f"{rows.dataset}/{rows.item}: {error}") from error
    for prompt, prediction in zip(prompts, predictions, strict=True):
        truth = truths[prediction.concept]
        masks = Comparison(prediction.mask, truth)
        result = QueryResult(
            dataset=rows.dataset,
            item=rows.item,
            concept=prediction.concept,
            prompt=prompt,
            score=prediction.score,
            values=measure(masks),
            truth_px=masks.truth_px,
            prediction_px=masks.prediction_px,
        )
        findings.results.append(result)
        if pictured:
            name = f"{rows.dataset}_{rows.item}_{prediction.concept}.png".replace("/", "_").replace(" ", "_")
            values = (f"{metric.title} {result.values[key]:.3f}" for key, metric in METRICS.items())
            caption = "   ".join([prompt, f"score {result.score:.2f}", *values])
            findings.overlays[name] = overlay(image, truth, prediction.mask, caption)
    if len(corpus.specs[rows.dataset].concepts) <= MATRIX_CONCEPTS:
        findings.cross_dice += _cross_dice(rows.dataset, predictions, truths)


def _cross_dice(
    dataset: str, predictions: Iterable[Prediction], truths: dict[str, Mask]
) -> list[tuple[str, str, str, float]]:
    """Dice of each prediction against the truth of every concept in the image: does the prompt matter?"""
    return [
        (dataset, prediction.concept, concept, dice(Comparison(prediction.mask, truth)))
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
