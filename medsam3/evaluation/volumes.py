"""Volumes of data sets measured in three dimensions: evaluate.py volumes=true.

A volume is put together from its slices in the part that is asked for, images and truth alike; a concept that any of
them holds is asked of all of them, so what is found beyond its ends counts as false. Where slices lie in other parts,
the volume is incomplete, which stands in its row and in the table. Each stretch of neighbouring slices is predicted by
itself; Dice is over all of them. The surface Dice is measured where there is one stretch, without the faces at which
the part ends; other distances only of complete volumes.

Shapes: C concepts, D slices of H x W px.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from medsam3 import distributed
from medsam3.config import EvaluationConfig
from medsam3.data.corpus import Corpus
from medsam3.data.manifest import ImageRows
from medsam3.evaluation.evaluator import evenly
from medsam3.evaluation.volume_masks import volume_of
from medsam3.layouts.instances import Mask
from medsam3.layouts.reader import Reader, SliceOf
from medsam3.messages import listed
from medsam3.metrics.masks import METRICS, Overlap
from medsam3.metrics.surfaces import hd95, nsd
from medsam3.prediction.volume_predictor import VolumePredictor
from medsam3.reports.volume_report import draw_slices
from medsam3.results.asking import concepts_asked
from medsam3.results.findings import Journal

NOT_MEASURED = math.nan


@dataclass(frozen=True)
class VolumeRows:
    """The slices of one volume in a part, in order."""

    dataset: str
    volume: str
    slices: list[SliceOf]
    images: list[ImageRows]
    asked: dict[str, tuple[str, ...]]  # concept -> concepts of the data set that it unites
    spacing_mm: tuple[float, ...] | None  # from slice to slice, row to row, column to column; None: not known

    @property
    def stretches(self) -> list[range]:
        """Places of slices without a gap between them."""
        steps = np.diff([own.index for own in self.slices])
        ends = [0, *(np.flatnonzero(steps > 1) + 1).tolist(), len(self.slices)]
        return [range(first, last) for first, last in pairwise(ends)]

    @property
    def missing(self) -> str:
        """What of it lies in other parts or is left out of the data set; empty: nothing."""
        if len(self.slices) == self.slices[0].count:
            return ""
        numbers = [f"{self.slices[s[0]].index}-{self.slices[s[-1]].index}" for s in self.stretches]
        return f"{len(self.slices)} of {self.slices[0].count} slices ({listed(numbers)})"


@dataclass(frozen=True, kw_only=True)
class VolumeResult:
    """What one concept asked of one volume gave: a row of results_volumes.csv."""

    dataset: str
    volume: str
    group: str
    part: str
    concept: str
    prompt: str
    rule: str
    mode: str
    present: bool
    score: float  # the best of its slices
    values: dict[str, float]  # by name; NaN: not measured
    slices: int
    slices_in_file: int
    stretches: int
    spacing_mm: Sequence[float] | None
    truth_voxels: int
    prediction_voxels: int


@dataclass(frozen=True)
class VolumeFinding:
    """What all concepts asked of one volume gave."""

    results: list[VolumeResult]
    drift: list[float] | None  # see `TrackedVolume`

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> VolumeFinding:
        results = [VolumeResult(**own) for own in content["results"]]
        return cls(results, content["drift"])


class VolumePictures:
    """Slices as pictures, read when asked for."""

    def __init__(self, reader: Reader, images: Sequence[ImageRows]) -> None:
        self.reader = reader
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        return self.reader.image(self.reader.item(self.images[index].item))


def find_volumes(
    corpus: Corpus, parts: Mapping[str, str], config: EvaluationConfig
) -> tuple[dict[str, list[VolumeRows]], list[str]]:
    """The volumes of each data set, `config.images` of them spread evenly; and what is left out, in words.

    Raises:
        ValueError: there is none.
    """
    found: dict[str, list[VolumeRows]] = {}
    left_out = []
    for name, part in parts.items():
        volumes: dict[str, list[tuple[SliceOf, ImageRows]]] = {}
        reader = corpus.readers[name]
        for rows in corpus.images(name, part):
            own = reader.slice_of(reader.item(rows.item))
            if own is not None:
                volumes.setdefault(volume_of(rows.item), []).append((own, rows))
        single = [volume for volume, slices in volumes.items() if len(slices) == 1]
        chosen = [
            _volume(corpus, name, volume, slices, config)
            for volume, slices in sorted(volumes.items())
            if len(slices) > 1
        ]
        chosen = [volume for volume in chosen if volume.asked]
        if not volumes:
            left_out.append(f"{name}: its images are no slices of volumes")
        elif single:
            left_out.append(f"{name}: {len(single)} volumes with one slice in part {part!r} ({listed(single, 3)})")
        if chosen:
            found[name] = evenly(chosen, config.images)
    if not found:
        raise ValueError(f"volumes=true: no volume of several slices to ask about ({'; '.join(left_out)})")
    return found, left_out


def _volume(
    corpus: Corpus, dataset: str, volume: str, slices: list[tuple[SliceOf, ImageRows]], config: EvaluationConfig
) -> VolumeRows:
    slices.sort(key=lambda pair: pair[0].index)
    asked: dict[str, tuple[str, ...]] = {}
    for _, rows in slices:
        for concept, united in concepts_asked(rows, corpus.specs[dataset], config).items():
            asked[concept] = tuple(dict.fromkeys((*asked.get(concept, ()), *united)))
    order = [name for name in (*corpus.specs[dataset].concept_names, *asked) if name in asked]
    reader, (first, rows) = corpus.readers[dataset], slices[0]
    affine = None if reader.spacing_mm(reader.item(rows.item)) is None else first.affine
    return VolumeRows(
        dataset,
        volume,
        [own for own, _ in slices],
        [rows for _, rows in slices],
        {concept: asked[concept] for concept in order},
        None if affine is None else tuple(np.linalg.norm(affine[:3, :3], axis=0).tolist()),
    )


def measure_volumes(
    corpus: Corpus,
    found: Mapping[str, Sequence[VolumeRows]],
    volumes: VolumePredictor,
    metrics: Sequence[str],
    tolerances_mm: Sequence[float],
    journal: Journal | None = None,
    overlays: Path | None = None,
    pictured: int = 0,
) -> tuple[list[VolumeResult], dict[str, list[float]]]:
    """The results of all ranks, of which each takes every n-th volume; by volume the drift (see `TrackedVolume`).

    Args:
        journal: of `VolumeFinding`s; volumes that it holds already are not done again. None: with one process.
        overlays: folder for pictures of slices.
        pictured: of how many volumes of each data set there are any, spread evenly.

    Raises:
        ValueError: masks or scores that are not finite; a concept that is marked in some slices only.
    """
    journal = journal or Journal(from_json=VolumeFinding.from_json)
    everything = [volume for own in found.values() for volume in own]
    shown = {(own.dataset, own.volume) for some in found.values() for own in evenly(list(some), pictured)}
    left = [number for number in range(len(everything)) if number not in journal.finished]
    mine = left[distributed.rank() :: distributed.world_size()]
    for number in tqdm(mine, unit="volume", disable=not distributed.is_main(), leave=False, mininterval=2):
        volume = everything[number]
        drawn = overlays if (volume.dataset, volume.volume) in shown else None
        try:
            journal.add(number, _measure(corpus, volume, volumes, metrics, tolerances_mm, drawn))
        except ValueError as error:
            raise ValueError(f"{volume.dataset}/{volume.volume}: {error}") from error
    journal.sync()
    distributed.barrier()
    results: list[VolumeResult] = []
    drifts: dict[str, list[float]] = {}
    for volume, finding in zip(everything, journal.findings(range(len(everything))), strict=True):
        results += finding.results
        if finding.drift is not None:
            drifts[f"{volume.dataset}/{volume.volume}"] = finding.drift
    return results, drifts


def _measure(
    corpus: Corpus,
    rows: VolumeRows,
    volumes: VolumePredictor,
    metrics: Sequence[str],
    tolerances_mm: Sequence[float],
    overlays: Path | None,
) -> VolumeFinding:
    concepts = list(rows.asked)
    prompts = [corpus.prompt(rows.dataset, concept) for concept in concepts]
    reader, spacing = corpus.readers[rows.dataset], rows.spacing_mm
    exclusive = corpus.exclusive(rows.dataset) if volumes.predictor.config.resolve_overlaps else ()
    masks, scores, drift = [], [], None
    for stretch in rows.stretches:
        pictures = VolumePictures(reader, [rows.images[i] for i in stretch])
        predicted = volumes.predict(pictures, concepts, prompts, spacing)
        masks.append(predicted.prediction.resolved(exclusive))
        scores.append(predicted.prediction.scores)
        drift = predicted.drift or drift
    answer, best = np.concatenate(masks, axis=1), np.concatenate(scores, axis=1).max(axis=1)
    truth = _truth(reader, rows)
    results = []
    for number, concept in enumerate(concepts):
        pair = answer[number], truth[number]
        if overlays:
            names, slices = (rows.dataset, rows.volume, concept), [own.index for own in rows.slices]
            draw_slices(overlays, names, slices, VolumePictures(reader, rows.images), *pair)
        voxels = Overlap(*(int(np.count_nonzero(mask)) for mask in (*pair, pair[0] & pair[1])))
        results.append(
            VolumeResult(
                dataset=rows.dataset,
                volume=rows.volume,
                group=rows.images[0].group,
                part=rows.images[0].part,
                concept=concept,
                prompt=prompts[number],
                rule=volumes.predictor.config.rules[0],
                mode=volumes.config.mode,
                present=voxels.truth_px > 0,
                score=float(best[number]),
                values=_counted(voxels, metrics) | _distances(*pair, metrics, tolerances_mm, rows),
                slices=len(rows.slices),
                slices_in_file=rows.slices[0].count,
                stretches=len(rows.stretches),
                spacing_mm=spacing,
                truth_voxels=voxels.truth_px,
                prediction_voxels=voxels.prediction_px,
            )
        )
    return VolumeFinding(results, drift)


def _counted(voxels: Overlap, metrics: Sequence[str]) -> dict[str, float]:
    return {name: METRICS[name].of(voxels) for name in metrics if not METRICS[name].of_outlines}


def _distances(
    answer: Mask, truth: Mask, metrics: Sequence[str], tolerances_mm: Sequence[float], rows: VolumeRows
) -> dict[str, float]:
    names = [f"nsd_{tolerance:g}mm" for tolerance in tolerances_mm] + ["hd95"] * ("hd95" in metrics)
    values = dict.fromkeys(names, NOT_MEASURED)
    if rows.spacing_mm is None or len(rows.stretches) > 1:
        return values
    first, last = rows.slices[0], rows.slices[-1]
    cut = (first.index > 0, last.index < last.count - 1)
    for name, tolerance in zip(names, tolerances_mm, strict=False):
        values[name] = nsd(answer, truth, tolerance, rows.spacing_mm, cut)
    if "hd95" in metrics and not any(cut):
        values["hd95"] = hd95(answer, truth, rows.spacing_mm)
    return values


def _truth(reader: Reader, rows: VolumeRows) -> Mask:
    """[C, D, H, W]"""
    truth: list[Any] = []
    for image in rows.images:
        masks = reader.masks(reader.item(image.item))
        planes = []
        for concept, united in rows.asked.items():
            marked = [masks[part].union() for part in united if part in masks]
            if not marked:
                raise ValueError(f"{concept!r} is marked in some slices only, not in {image.item}")
            planes.append(np.any(marked, axis=0))
        truth.append(np.stack(planes))
    return np.stack(truth, axis=1)
