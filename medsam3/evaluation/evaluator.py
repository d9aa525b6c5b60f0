"""Evaluation of a model on images of data sets; the same code for validation in training and for scripts/evaluate.py.

Each rank takes every n-th image that is left to do; no image is done twice, and the findings of all ranks are sorted,
so that the result does not depend on their number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from medsam3 import distributed
from medsam3.config import EvaluationConfig
from medsam3.data.corpus import Corpus
from medsam3.data.manifest import ImageRows
from medsam3.evaluation.answers import Answers, Boxes
from medsam3.evaluation.asking import MARKED, PRESENT, concepts_asked, foreign_words, holds_any, wordings
from medsam3.evaluation.findings import Evaluation, Finding, Journal, merge
from medsam3.evaluation.mask_files import MaskWriter
from medsam3.evaluation.metrics import METRICS, Comparison, measure
from medsam3.evaluation.pictures import overlay
from medsam3.evaluation.scores import QueryResult
from medsam3.evaluation.swapped import Swapped, swapped_dice
from medsam3.layouts.instances import Instances, Mask
from medsam3.prediction.image import Prediction

MATRIX_CONCEPTS = 12  # a data set with more concepts gets no prompt matrix


@dataclass(frozen=True)
class Truth:
    """What is to be found of one concept."""

    mask: Mask  # [H, W], the union of its instances
    ceiling: float  # Dice of its largest instance with the union
    boxes: Boxes  # of its instances
    spacing: tuple[float, float]  # see Comparison

    @classmethod
    def of(cls, instances: Instances, spacing_mm: tuple[float, float] | None) -> Truth:
        mask = instances.union()
        largest, total = int(instances.areas_px.max(initial=0)), int(np.count_nonzero(mask))
        ceiling = 2 * largest / (largest + total) if total else 1.0
        return cls(mask, ceiling, instances.boxes_cxcywh, spacing_mm or (1.0, 1.0))


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
            concept: Truth.of(Instances.together([masks[part] for part in united]), spacing)
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
        taken = _evenly(found, config.images)
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
) -> Evaluation:
    """Ask for concepts in images, see `concepts_asked`.

    Args:
        answers: a model's, or read from files.
        asked: data set -> images, see `asked_images`.
        journal: keeps what is found; images that it holds already are not done again (but those that are pictured).
        writer: keeps the masks.

    Returns:
        The findings of all ranks, the same on every rank.
    """
    images = [rows for found in asked.values() for rows in found]
    pictured = {(rows.dataset, rows.item) for found in asked.values() for rows in _evenly(found, config.overlays)}
    before = journal.others_than(pictured) if journal else []
    done = {(finding.dataset, finding.item) for finding in before}
    left = [rows for rows in images if (rows.dataset, rows.item) not in done]
    truths = TruthImages(corpus, left[distributed.rank() :: distributed.world_size()], config)
    workers = distributed.loading_processes(config.workers)
    loader: Any = DataLoader(truths, batch_size=None, collate_fn=_as_is, num_workers=workers)
    findings: list[Finding] = []
    overlays: dict[str, Image.Image] = {}
    for rows, image, truth in tqdm(loader, unit="image", disable=not distributed.is_main(), leave=False, mininterval=2):
        foreign, phrases = foreign_words(corpus, rows, config), wordings(corpus, rows, config)
        boxes = {concept: own.boxes for concept, own in truth.items()}
        found = answers(rows, image, boxes, [*foreign, *phrases])
        predictions, others = found[: len(truth)], found[len(truth) :]
        if writer:
            writer.write(rows, predictions)
        findings.append(_finding(corpus, rows, predictions, truth, others, foreign, phrases, config.metrics))
        if journal:
            journal.add(findings[-1])
        if (rows.dataset, rows.item) in pictured:
            overlays |= _pictures(image, truth, predictions, findings[-1])
    gathered = distributed.gather_objects((findings, overlays))
    everything = [*before, *(finding for found, _ in gathered for finding in found)]
    return merge(everything, {name: picture for _, drawn in gathered for name, picture in drawn.items()}, list(asked))


def _as_is(value: Any) -> Any:
    """Keeps the loader from turning arrays into tensors."""
    return value


def _evenly(images: list[ImageRows], count: int | None) -> list[ImageRows]:
    """`count` images spread over the list; all of them for None."""
    if count is None or count >= len(images):
        return images
    return [images[i * len(images) // count] for i in range(count)]


def _finding(
    corpus: Corpus,
    rows: ImageRows,
    predictions: Sequence[Prediction],
    truths: Mapping[str, Truth],
    others: Sequence[Prediction],
    foreign: Mapping[str, str],
    phrases: Mapping[str, str],
    metrics: Sequence[str],
) -> Finding:
    """
    Args:
        predictions: of the concepts.
        others: of the words in `foreign` (-> kind) and then of those in `phrases` (-> concept).
    """
    results: list[QueryResult] = []
    for prediction in predictions:
        concept, truth = prediction.concept, truths[prediction.concept]
        kind = PRESENT if truth.mask.any() else MARKED
        results += _results(rows, concept, corpus.prompt(rows.dataset, concept), kind, prediction, truth, metrics)
    there = {p.concept: p.answer.mask for p in predictions if truths[p.concept].mask.any()}
    absent = [p.answer.mask for p in (*predictions, *others[: len(foreign)]) if p.concept not in there]
    cross_dice: list[tuple[str, str, float]] = []
    if len(there) > 1 or (there and absent):
        swapped, matrix = swapped_dice(there, {concept: truths[concept].mask for concept in there}, absent)
        results = [_with_swapped(result, swapped, predictions[0]) for result in results]
        if len(corpus.specs[rows.dataset].concepts) <= MATRIX_CONCEPTS:
            cross_dice = [(one, two, float(matrix[i, j])) for i, one in enumerate(there) for j, two in enumerate(there)]
    reworded: list[QueryResult] = []
    for (phrase, concept), prediction in zip(phrases.items(), others[len(foreign) :], strict=True):
        reworded += _results(rows, concept, phrase, PRESENT, prediction, truths[concept], metrics)
    nothing = Truth.of(Instances.separate([], next(iter(truths.values())).mask.shape), None)
    for (word, kind), prediction in zip(foreign.items(), others[: len(foreign)], strict=True):
        results += _results(rows, word, word, kind, prediction, nothing, metrics)
    return Finding(dataset=rows.dataset, item=rows.item, results=results, cross_dice=cross_dice, reworded=reworded)


def _results(
    rows: ImageRows, concept: str, prompt: str, kind: str, prediction: Prediction, truth: Truth, metrics: Sequence[str]
) -> list[QueryResult]:
    """One by each rule."""
    results = []
    for rule, answer in prediction.answers.items():
        masks = Comparison(answer.mask, truth.mask, truth.spacing)
        result = QueryResult(
            dataset=rows.dataset,
            item=rows.item,
            group=rows.group,
            part=rows.part,
            concept=concept,
            prompt=prompt,
            rule=rule,
            kind=kind,
            score=answer.score,
            presence=prediction.presence,
            values=measure(masks, metrics),
            ceiling=truth.ceiling,
            truth_px=masks.truth_px,
            prediction_px=masks.prediction_px,
        )
        results.append(result)
    return results


def _with_swapped(result: QueryResult, swapped: Mapping[str, Swapped], first: Prediction) -> QueryResult:
    if result.concept not in swapped or result.rule != next(iter(first.answers)):
        return result
    found = swapped[result.concept]
    return replace(result, swapped=found.answers, swapped_truths=found.truths, swapped_absent=found.absent)


def _pictures(
    image: np.ndarray, truths: Mapping[str, Truth], predictions: Iterable[Prediction], finding: Finding
) -> dict[str, Image.Image]:
    """By file name: each concept that is there, by the first rule."""
    pictures = {}
    shown = {result.concept: result for result in reversed(finding.results) if result.present}
    for prediction in predictions:
        if prediction.concept in shown:
            result = shown[prediction.concept]
            name = f"{result.dataset}_{result.item}_{result.concept}.png".replace("/", "_").replace(" ", "_")
            values = (f"{METRICS[name].title} {value:.3f}" for name, value in result.values.items())
            caption = "   ".join([result.prompt, f"score {result.score:.2f}", *values])
            mask = prediction.answer.mask
            pictures[name] = overlay(image, truths[result.concept].mask, mask, caption)
    return pictures
