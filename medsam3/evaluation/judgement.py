"""One image judged: all that was asked of it, and what came back, held against the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from medsam3.config import EvaluationConfig
from medsam3.data.corpus import Corpus
from medsam3.data.manifest import ImageRows
from medsam3.evaluation.answers import Boxes
from medsam3.evaluation.outline_workers import OutlineWorkers
from medsam3.layouts.instances import Instances, Mask
from medsam3.layouts.packed_masks import PackedMasks, pack_instances
from medsam3.metrics.counting import PixelCounter
from medsam3.metrics.masks import MM, PX, MaskPair, Overlap, measure
from medsam3.metrics.swapped import NOT_SWAPPED, Swapped, swapped_dice
from medsam3.prediction.answer import Prediction
from medsam3.results.asking import MARKED, PRESENT, is_exhaustive
from medsam3.results.findings import Finding
from medsam3.results.instance_records import InstanceRecord
from medsam3.results.scores import QueryResult

MATRIX_CONCEPTS = 12  # a data set with more concepts gets no prompt matrix


@dataclass(frozen=True)
class Truth:
    """What is to be found of one concept."""

    mask: Mask  # [H, W], the union of its instances
    ceiling: float  # Dice of its largest instance with the union
    boxes: Boxes  # of its instances
    spacing: tuple[float, float]  # see MaskPair
    unit: str  # of distances, mm or px
    single: PackedMasks | None  # its instances, if they are asked for

    @classmethod
    def of(cls, instances: Instances, spacing_mm: tuple[float, float] | None, single: bool) -> Truth:
        mask = instances.union()
        largest, total = int(instances.areas_px.max(initial=0)), int(np.count_nonzero(mask))
        ceiling = 2 * largest / (largest + total) if total else 1.0
        unit, packed = MM if spacing_mm else PX, pack_instances(instances) if single else None
        return cls(mask, ceiling, instances.boxes_cxcywh, spacing_mm or (1.0, 1.0), unit, packed)


@dataclass(frozen=True)
class Words:
    """What was asked of an image in one way, and the answer."""

    concept: str
    prompt: str
    kind: str  # see QueryResult
    prediction: Prediction
    own: int  # place of its truth; behind all of them: there is none
    reworded: bool = False


def words_asked(
    corpus: Corpus,
    rows: ImageRows,
    truths: Mapping[str, Truth],
    found: Sequence[Prediction],
    foreign: Mapping[str, str],
    phrases: Mapping[str, str],
) -> list[Words]:
    """
    Args:
        found: for the concepts of `truths`, the words in `foreign` (-> kind) and those in `phrases` (-> concept).
    """
    places = {concept: place for place, concept in enumerate(truths)}
    named = [
        (name, corpus.prompt(rows.dataset, name), PRESENT if truth.mask.any() else MARKED, places[name], False)
        for name, truth in truths.items()
    ]
    named += [(word, word, kind, len(truths), False) for word, kind in foreign.items()]
    named += [(concept, phrase, PRESENT, places[concept], True) for phrase, concept in phrases.items()]
    return [
        Words(concept, prompt, kind, prediction, own, reworded)
        for (concept, prompt, kind, own, reworded), prediction in zip(named, found, strict=True)
    ]


@dataclass(frozen=True)
class Judgement:
    finding: Finding
    waiting: list[tuple[dict[str, float], Future[dict[str, float]]]]  # values, and those of outlines that they lack

    def complete(self) -> Finding:
        """With all values; raises what went wrong with an outline."""
        for values, outlined in self.waiting:
            values |= outlined.result()
        return self.finding


def judge(
    corpus: Corpus,
    rows: ImageRows,
    truths: Sequence[Truth],
    words: Sequence[Words],
    config: EvaluationConfig,
    outlines: OutlineWorkers,
) -> Judgement:
    nothing = Truth.of(Instances.separate([], truths[0].mask.shape), None, config.instances)
    truths = [*truths, nothing]
    counter = PixelCounter([truth.mask for truth in truths], words[0].prediction.answer.device)
    own = [asked.own for asked in words]
    first, *further = words[0].prediction.answers
    pairs = counter.pairs([asked.prediction.answers[first].pixels for asked in words])
    overlaps = {first: pairs.overlaps(own)}
    for rule in further:
        overlaps[rule] = counter.overlaps([asked.prediction.answers[rule].pixels for asked in words], own)
    there = np.flatnonzero(counter.truth_px).tolist()
    absent = [place for place, asked in enumerate(words) if asked.kind != PRESENT]
    dice = pairs.dice[:, there]
    perfect = counter.truth_pairs().dice[np.ix_(there, there)]
    swapped = dict(zip(there, swapped_dice(dice[there], perfect, dice[absent]), strict=True))
    results: list[QueryResult] = []
    reworded: list[QueryResult] = []
    waiting = []
    for place, asked in enumerate(words):
        for rule, counted in overlaps.items():
            beside = swapped.get(place, NOT_SWAPPED) if rule == first else NOT_SWAPPED
            truth = truths[asked.own]
            result = _result(rows, asked, rule, counted[place], truth, beside, config.metrics)
            (reworded if asked.reworded else results).append(result)
            if outlines.names:
                mask = asked.prediction.answers[rule].mask
                waiting.append((result.values, outlines.submit(MaskPair(mask, truth.mask, truth.spacing))))
    spec = corpus.specs[rows.dataset]
    few = len(spec.concepts) <= MATRIX_CONCEPTS
    finding = Finding(
        dataset=rows.dataset,
        item=rows.item,
        results=results,
        reworded=reworded,
        concepts=[words[place].concept for place in there] if few else [],
        cross_dice=dice[there].tolist() if few else [],
        instances=[
            InstanceRecord.of(rows, own.concept, is_exhaustive(own.concept, spec, config), detections, single)
            for own in words
            for detections, single in [(own.prediction.detections, truths[own.own].single)]
            if detections is not None and single is not None and not own.reworded
        ],
    )
    return Judgement(finding, waiting)


def _result(
    rows: ImageRows, asked: Words, rule: str, pixels: Overlap, truth: Truth, swapped: Swapped, metrics: Sequence[str]
) -> QueryResult:
    answer = asked.prediction.answers[rule]
    return QueryResult(
        dataset=rows.dataset,
        item=rows.item,
        group=rows.group,
        part=rows.part,
        concept=asked.concept,
        prompt=asked.prompt,
        rule=rule,
        kind=asked.kind,
        score=answer.score,
        presence=asked.prediction.presence,
        values=measure(pixels, metrics),
        ceiling=truth.ceiling,
        truth_px=pixels.truth_px,
        prediction_px=pixels.prediction_px,
        unit=truth.unit,
        swapped=swapped.answers,
        swapped_truths=swapped.truths,
        swapped_absent=swapped.absent,
    )
