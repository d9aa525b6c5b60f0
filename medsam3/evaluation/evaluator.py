"""Evaluation of a model on images of data sets; the same code for validation in training and for scripts/evaluate.py.

Each rank takes every n-th image that is left to do; no image is done twice, and the findings of all ranks are sorted,
so that the result does not depend on their number.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from medsam3 import distributed
from medsam3.config import EvaluationConfig
from medsam3.data.corpus import Corpus
from medsam3.data.manifest import ImageRows
from medsam3.evaluation.answers import Answers
from medsam3.evaluation.judgement import Judgement, Truth, judge, words_asked
from medsam3.evaluation.mask_files import MaskWriter
from medsam3.evaluation.outline_workers import OutlineWorkers
from medsam3.evaluation.stopwatch import Stopwatch
from medsam3.layouts.instances import Instances
from medsam3.metrics.masks import METRICS
from medsam3.prediction.answer import Prediction
from medsam3.reports.pictures import overlay, overlay_name
from medsam3.results.asking import concepts_asked, foreign_words, holds_any, wordings
from medsam3.results.findings import Evaluation, Finding, Journal, summary


class TruthImages(Dataset[tuple[ImageRows, np.ndarray, dict[str, Truth]]]):
    """Images at their own size with the truth of each concept to ask for."""

    def __init__(self, corpus: Corpus, images: list[ImageRows], config: EvaluationConfig) -> None:
        self.corpus = corpus
        self.images = images
        self.config = config

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[ImageRows, np.ndarray, dict[str, Truth]]:
        rows = self.images[index]
        reader = self.corpus.readers[rows.dataset]
        item = reader.item(rows.item)
        masks, spacing = reader.masks(item), reader.spacing_mm(item)
        asked = concepts_asked(rows, self.corpus.specs[rows.dataset], self.config)
        truths = {
            concept: Truth.of(Instances.together([masks[part] for part in united]), spacing, self.config.instances)
            for concept, united in asked.items()
        }
        return rows, reader.image(item), truths


def asked_images(corpus: Corpus, parts: Mapping[str, str], config: EvaluationConfig) -> dict[str, list[ImageRows]]:
    """The images of each data set to evaluate, `config.images` of them spread evenly: those of its part that hold a
    concept, with ask=all also those without any.

    Args:
        parts: data set -> part (train | val | external | all).

    Raises:
        ValueError: a part holds no image with a mask, or none of those taken has one.
    """
    chosen = {}
    for name, part in parts.items():
        spec = corpus.specs[name]
        found = [rows for rows in corpus.images(name, part) if concepts_asked(rows, spec, config)]
        taken = evenly(found, config.images)
        if not any(holds_any(rows, concepts_asked(rows, spec, config)) for rows in taken):
            some = f" among the {len(taken)} that evaluation.images takes" if len(taken) < len(found) else ""
            raise ValueError(f"{name}: no image with a mask in part {part!r} of {corpus.split_file(name)}{some}")
        chosen[name] = taken
    return chosen


def run_evaluation(
    answers: Answers,
    corpus: Corpus,
    asked: Mapping[str, list[ImageRows]],
    config: EvaluationConfig,
    journal: Journal | None = None,
    writer: MaskWriter | None = None,
    clock: Stopwatch | None = None,
) -> Evaluation:
    """Ask for concepts in images, see `concepts_asked`.

    Args:
        answers: a model's, or read from files.
        asked: data set -> images, see `asked_images`.
        journal: keeps what is found; images that it holds already are not done again (but those that are pictured).
        writer: keeps the masks.
        clock: is told where the time goes.

    Returns:
        The findings of all ranks, the same on every rank.
    """
    journal, clock = journal or Journal(), clock or Stopwatch()
    images = [rows for found in asked.values() for rows in found]
    pictured = {(rows.dataset, rows.item) for found in asked.values() for rows in evenly(found, config.overlays)}
    left = [
        number
        for number, rows in enumerate(images)
        if number not in journal.finished or (rows.dataset, rows.item) in pictured
    ]
    mine = left[distributed.rank() :: distributed.world_size()]
    workers = distributed.loading_processes(config.workers)
    overlays: dict[str, Image.Image] = {}
    with OutlineWorkers(config.metrics, workers) as outlines:
        judgements = _judgements(answers, TruthImages(corpus, images, config), mine, workers, outlines, writer, clock)
        for number, judgement, draw in _delayed(judgements, outlines.ahead):
            with clock("outlines"):
                finding = judgement.complete()
            with clock("writing"):
                journal.add(number, finding)
                if (finding.dataset, finding.item) in pictured:
                    overlays |= draw(finding)
    drawn = distributed.gather_objects(overlays)
    evaluation = collected(journal, images, list(asked))
    evaluation.overlays |= dict(sorted(pair for pictures in drawn for pair in pictures.items()))
    return evaluation


def collected(journal: Journal, images: Sequence[ImageRows], datasets: Sequence[str]) -> Evaluation:
    """The findings of all ranks, sorted by data set and image, whoever made them."""
    journal.sync()
    distributed.barrier()
    places = {name: place for place, name in enumerate(datasets)}
    order = sorted(range(len(images)), key=lambda number: (places[images[number].dataset], images[number].item))
    findings = journal.findings(array("q", order))
    scores, prompt_dice, instances = distributed.from_main(lambda: summary(findings))
    return Evaluation(findings, scores, prompt_dice, {}, instances)


Drawing = Callable[[Finding], dict[str, Image.Image]]


def _judgements(
    answers: Answers,
    truth_images: TruthImages,
    numbers: list[int],
    workers: int,
    outlines: OutlineWorkers,
    writer: MaskWriter | None,
    clock: Stopwatch,
) -> Iterator[tuple[int, Judgement, Drawing]]:
    """Of the images of these numbers; with each, what draws its pictures once its values are there."""
    corpus, config = truth_images.corpus, truth_images.config
    bar = tqdm(numbers, unit="image", disable=not distributed.is_main(), leave=False, mininterval=2)
    options: Any = {"num_workers": workers, "collate_fn": _as_is, "worker_init_fn": distributed.heed_parent_alone}
    images = distributed.loaded(DataLoader(truth_images, batch_size=None, sampler=numbers, **options))
    for number in bar:
        with clock("reading"):
            rows, image, truths = next(images)
        foreign, phrases = foreign_words(corpus, rows, config), wordings(corpus, rows, config)
        with clock("model"):
            boxes = {concept: truth.boxes for concept, truth in truths.items()}
            found = answers(rows, image, boxes, [*foreign, *phrases])
        predictions = found[: len(truths)]
        if writer:
            with clock("writing"):
                writer.write(rows, predictions)
        with clock("metrics"):
            words = words_asked(corpus, rows, truths, found, foreign, phrases)
            judgement = judge(corpus, rows, list(truths.values()), words, config, outlines)
        clock.images += 1
        yield number, judgement, partial(_pictures, image, truths, predictions)


T = TypeVar("T")


def _delayed(items: Iterable[T], count: int) -> Iterator[T]:
    """The same, each when `count` further ones have been made."""
    waiting: deque[T] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > count:
            yield waiting.popleft()
    yield from waiting


def _as_is(value: Any) -> Any:
    """Keeps the loader from turning arrays into tensors."""
    return value


def evenly(images: list[T], count: int | None) -> list[T]:
    """`count` images, or volumes, spread over the list; all of them for None."""
    if count is None or count >= len(images):
        return images
    return [images[i * len(images) // count] for i in range(count)]


def _pictures(
    image: np.ndarray, truths: Mapping[str, Truth], predictions: Iterable[Prediction], finding: Finding
) -> dict[str, Image.Image]:
    """By file name: each concept that is there, by the first rule."""
    pictures = {}
    shown = {result.concept: result for result in reversed(finding.results) if result.present}
    for prediction in predictions:
        if prediction.concept in shown:
            result = shown[prediction.concept]
            name = overlay_name(result.dataset, result.item, result.concept)
            values = (f"{METRICS[name].named(result.unit)} {value:.3f}" for name, value in result.values.items())
            score = [f"score {result.score:.2f}"] if math.isfinite(result.score) else []
            caption = "   ".join([result.prompt, *score, *values])
            mask = prediction.answer.mask
            pictures[name] = overlay(image, truths[result.concept].mask, mask, caption)
    return pictures
