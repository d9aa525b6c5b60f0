"""Masks as files, written by an evaluation (evaluation.save_masks) and read from any other model (predictions=).

One folder per data set:

    dataset.json                 as nnU-Net has it: file_ending, labels (concept -> value, or list of values)
    <case>.png                   label map: concepts that exclude each other, or nnU-Net's regions
or
    <concept>/<case>.png         0 = not there, all else = there; blanks of the concept as underscores
    <concept>/dataset.json       written, so that each concept is a folder of its own for nnU-Net's evaluator; not read

A case is an image's id as `prepare_data.py export=nnunet` writes it: what nnU-Net predicts for images of that export is
read as it is. Of slices of volumes a case is the volume, <case>.nii.gz with its geometry (see volume_masks.py); PNG
files of slices are read too. nnU-Net's and MONAI's evaluators read both.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medsam3.data.corpus import Corpus
from medsam3.data.manifest import ImageRows
from medsam3.evaluation.answers import Boxes
from medsam3.evaluation.volume_masks import ENDING as VOLUME_ENDING
from medsam3.evaluation.volume_masks import (
    SLICES,
    join_slices,
    read_pictures,
    slices_of,
    volume_cases,
    volume_of,
)
from medsam3.files import case_names, new_file, write_text
from medsam3.layouts.instances import Instances, Mask
from medsam3.layouts.packed_masks import pack_instances
from medsam3.layouts.pixels import read_mask
from medsam3.messages import listed, one_of
from medsam3.prediction.answer import Answer, Prediction
from medsam3.prediction.detections import ScoredInstances
from medsam3.results.question import MASKS

LEGEND = "dataset.json"
ENDING = ".png"
TRUTH = "truth"  # beside the rules, of volumes
SOME_ALONE = "; evaluation.concepts=[...] asks for some concepts alone"
Asked = Mapping[str, Mapping[str, Sequence[str]]]  # data set -> image -> concepts


def _cases(corpus: Corpus, dataset: str) -> dict[str, str]:
    """Image id -> name of its file, unique in the whole data set."""
    return case_names([rows.item for rows in corpus.images(dataset, "all")])


class MaskWriter:
    """Writes <folder>/<rule>/<data set>/..., see above; <folder>/<rule> is what predictions= takes."""

    def __init__(self, folder: Path, corpus: Corpus, datasets: Iterable[str], resolved: bool) -> None:
        """
        Args:
            resolved: exclusive concepts do not overlap (prediction.resolve_overlaps).
        """
        self.folder = folder
        self.corpus = corpus
        self.cases = {name: _cases(corpus, name) for name in datasets}
        self.values: dict[str, dict[str, int] | None] = {}  # None: a folder per concept
        self.folders: dict[str, dict[str, str]] = {}
        for name in self.cases:
            concepts = corpus.specs[name].concept_names
            there = {concept for rows in corpus.images(name, "all") for concept in rows.present}
            order = sorted(concepts, key=lambda concept: concept not in there)  # as export=nnunet numbers them
            apart = len(concepts) == 1 or (resolved and set(concepts) <= set(corpus.exclusive(name)))
            self.values[name] = {concept: n for n, concept in enumerate(order, start=1)} if apart else None
            self.folders[name] = case_names(concepts)

    def write(self, rows: ImageRows, predictions: Sequence[Prediction]) -> None:
        """All masks of an image, by each rule."""
        for rule in predictions[0].answers:
            masks = {prediction.concept: prediction.answers[rule].mask for prediction in predictions}
            self._write(self.folder / rule / rows.dataset, rows, masks)

    def _write(self, folder: Path, rows: ImageRows, masks: Mapping[str, Mask]) -> None:
        values, name = self.values[rows.dataset], self.cases[rows.dataset][rows.item] + ENDING
        if values is None:
            for concept, mask in masks.items():
                own = folder / self.folders[rows.dataset][concept]
                _write(own / name, mask.astype(np.uint8))
                _write_legend(own, {concept: 1})
        elif masks:
            labels = np.zeros(next(iter(masks.values())).shape, dtype=np.uint8)
            for concept, mask in masks.items():
                labels[mask] = values[concept]
            _write(folder / name, labels)
            _write_legend(folder, values)

    def join(self, asked: Asked) -> list[str]:
        """When all slices are written: put those of volumes into <case>.nii.gz, and the same of the truth.

        Returns:
            Lines that say which slices of the volumes are empty because nobody asked for them.
        """
        lines = []
        for name, images in asked.items():
            places = slices_of(self.corpus.readers[name], images)
            if places:
                self._write_truth(name, images)
                for folder in sorted(path.parent for path in self.folder.glob(f"*/{name}/**/{LEGEND}")):
                    files = {item: folder / (self.cases[name][item] + ENDING) for item in images}
                    if _file_ending(folder) == ENDING:  # else a restart after they were put there
                        join_slices(folder, places, files)
                        _write_legend(folder, _content(folder / LEGEND)["labels"], VOLUME_ENDING)
                    for path in files.values():
                        path.unlink(missing_ok=True)
                volumes = len({volume_of(item) for item in places})
                lines.append(
                    f"{name}: {len(places)} slices of {volumes} volume{'s' * (volumes > 1)} were asked; the others are "
                    f"0 in {self.folder}/<rule>/{name} as in {self.folder}/{TRUTH}/{name}, see {SLICES}"
                )
        return lines

    def _write_truth(self, name: str, images: Mapping[str, Sequence[str]]) -> None:
        reader = self.corpus.readers[name]
        for rows in self.corpus.images(name, "all"):
            if rows.item in images:
                found = reader.masks(reader.item(rows.item))
                masks = {concept: found[concept].union() for concept in images[rows.item]}
                self._write(self.folder / TRUTH / name, rows, masks)


def _write(path: Path, values: NDArray[np.uint8]) -> None:
    with new_file(path) as temporary:
        Image.fromarray(values).save(temporary, format="PNG")


def _write_legend(folder: Path, values: Mapping[str, int], ending: str = ENDING) -> None:
    if ending != ENDING or not (folder / LEGEND).exists():
        content = {"labels": {"background": 0, **values}, "file_ending": ending}
        write_text(folder / LEGEND, json.dumps(content, indent=2) + "\n")


@dataclass(frozen=True)
class _Folder:
    path: Path
    names: dict[str, str]  # image -> file
    folders: dict[str, str]  # of the concepts
    values: dict[str, tuple[int, ...]] | None  # concept -> label values; None: a folder per concept

    def files(self, item: str, concepts: Iterable[str]) -> list[Path]:
        """Those that must be there for an image."""
        if self.values is not None:
            return [self.path / self.names[item]]
        return [self.path / self.folders[concept] / self.names[item] for concept in concepts]


class MaskFiles:
    """Answers that are read from files. They have no score: NaN, so that no number is made of it."""

    def __init__(self, folder: Path, corpus: Corpus, asked: Asked, instances: str | None = None) -> None:
        """
        Args:
            folder: of the only data set, or with a folder <data set> for each.
            asked: data set -> image -> concepts; what else the files hold does not count.
            instances: what one instance is, components | labels (the values of a concept's file); None: not wanted.

        Raises:
            ValueError: folders, concepts or files that are missing; names those of all data sets.
        """
        self.corpus = corpus
        self.instances = instances
        self.folders: dict[str, _Folder] = {}
        self.files: list[Path] = []
        self._volumes: dict[Path, NDArray[Any]] = {}  # those of the last slice, cut into pictures
        problems: list[str] = []
        for name, images in asked.items():
            own = folder / name
            if not own.is_dir() and len(asked) == 1:
                own = folder
            concepts = {concept for asks in images.values() for concept in asks}
            folders = {c: own for c, own in case_names(corpus.specs[name].concept_names).items() if c in concepts}
            found = _Folder(own, _names(own, folders.values(), corpus, name), folders, _legend(own, folders))
            files = dict.fromkeys(path for item, asks in images.items() for path in found.files(item, asks))
            missing = [str(path.relative_to(own)) for path in files if not path.is_file()]
            if missing:
                problems.append(f"{own}: {len(missing)} of {len(files)} files are missing: {listed(missing, 20)}")
            if instances == "labels" and found.values is not None:
                problems.append(f"{own / LEGEND}: predicted_instances=labels needs <concept>/<case>{ENDING} instead")
            self.folders[name] = found
            self.files += files
        if problems:
            raise ValueError(f"predictions={folder}:\n  " + "\n  ".join(problems))

    def __call__(
        self, rows: ImageRows, image: NDArray[np.uint8], boxes: Mapping[str, Boxes], words: Sequence[str] = ()
    ) -> list[Prediction]:
        """See `Answers`. Raises a ValueError for a file of another size, or with values that nothing explains."""
        assert not words
        folder, size = self.folders[rows.dataset], image.shape[:2]
        found = []
        maps: dict[Path, NDArray[Any]] = {}
        for concept in boxes:
            (path,) = folder.files(rows.item, [concept])
            if path not in maps:
                values = read_mask(path) if path.name.endswith(ENDING) else self._slice(path, rows)
                maps[path] = _checked(path, values, size, folder.values, self.instances == "labels")
            mask: Mask = maps[path] > 0 if folder.values is None else np.isin(maps[path], folder.values[concept])
            single = None
            if self.instances is not None:
                parts = self._parts(rows.dataset, concept, mask, maps[path])
                single = ScoredInstances(np.ones(len(parts)), pack_instances(parts), shown_from=1, ranked=False)
            found.append(Prediction(concept, math.nan, {MASKS: Answer(math.nan, mask)}, detections=single))
        return found

    def _parts(self, dataset: str, concept: str, mask: Mask, values: NDArray[Any]) -> Instances:
        """Single instances; of a concept that is one instance in any case, the whole; components as the truth's are."""
        spec = self.corpus.specs[dataset]
        if spec.instances_of(concept) == "whole":
            return Instances.whole(mask)
        return Instances.labels(values) if self.instances == "labels" else Instances.components(mask, spec.min_area_px)

    def _slice(self, path: Path, rows: ImageRows) -> NDArray[Any]:
        reader = self.corpus.readers[rows.dataset]
        place = reader.slice_of(reader.item(rows.item))
        assert place is not None, rows.item  # see _names
        if path not in self._volumes:
            self._volumes = {own: kept for own, kept in self._volumes.items() if own.name == path.name}
            self._volumes[path] = read_pictures(path, place)
        return self._volumes[path][place.index]


def _names(folder: Path, concepts: Iterable[str], corpus: Corpus, name: str) -> dict[str, str]:
    """Image -> file: that of its volume, if its slices belong to volumes and there are files of volumes."""
    cases = _cases(corpus, name)
    first = next(iter(cases))
    reader = corpus.readers[name]
    endings = {_file_ending(own) for own in (folder, *(folder / concept for concept in concepts)) if own.is_dir()}
    if VOLUME_ENDING not in endings:
        return {item: case + ENDING for item, case in cases.items()}
    if reader.slice_of(reader.item(first)) is None:
        raise ValueError(f"{folder}: files {VOLUME_ENDING}, but images of {name} are no slices: needs {ENDING}")
    volumes = volume_cases(cases)
    return {item: volumes[volume_of(item)] + VOLUME_ENDING for item in cases}


def _file_ending(folder: Path) -> str:
    """As its legend says, else that of its files."""
    if (folder / LEGEND).is_file():
        return str(_content(folder / LEGEND).get("file_ending", ENDING))
    return VOLUME_ENDING if any(folder.glob(f"*{VOLUME_ENDING}")) else ENDING


def _content(path: Path) -> dict[str, Any]:
    """Of a legend. Raises a ValueError if it is none."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        content["labels"].items()
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'{path}: must hold "labels": {{"background": 0, "<concept>": 1, ...}} ({error!r})') from error
    return content


def _legend(folder: Path, folders: Mapping[str, str]) -> dict[str, tuple[int, ...]] | None:
    """Values of concepts by dataset.json; None if there is a folder for each."""
    path = folder / LEGEND
    if not path.is_file():
        lacking = [name for name in folders.values() if not (folder / name).is_dir()]
        if lacking:
            raise ValueError(
                f"{folder}: no {LEGEND} that says which value is which concept, and no folder of a concept's own "
                f"masks: {listed(lacking)}{SOME_ALONE}"
            )
        return None
    content = _content(path)
    labels = content["labels"].items()
    values = {name: tuple(value) if isinstance(value, list) else (value,) for name, value in labels}
    if not all(isinstance(v, int) for found in values.values() for v in found):
        raise ValueError(f'{path}: must hold "labels" that are whole numbers or lists of them: {content["labels"]}')
    lacking = [concept for concept in folders if concept not in values]
    if lacking:
        raise ValueError(f"{path}: labels have no {listed(lacking)}, only {listed(values)}{SOME_ALONE}")
    one_of(f"{path}: file_ending", content.get("file_ending", ENDING), (ENDING, VOLUME_ENDING))
    return values


def _checked(
    path: Path, values: NDArray[Any], size: tuple[int, ...], legend: dict[str, tuple[int, ...]] | None, numbered: bool
) -> NDArray[Any]:
    if values.ndim != 2:
        raise ValueError(f"{path}: is in colour; a mask has one channel")
    if values.shape != size:
        raise ValueError(f"{path}: has {values.shape[1]} x {values.shape[0]} px, its image {size[1]} x {size[0]}")
    there = set(np.unique(values).tolist()) - {0}
    if legend is None and len(there) > 1 and not numbered:
        raise ValueError(f"{path}: values {listed(sorted(there))} of one concept; several need a {LEGEND}")
    unknown = sorted(there - {v for found in legend.values() for v in found}) if legend is not None else []
    if unknown:
        raise ValueError(f"{path}: value {listed(unknown)} is not in {LEGEND}")
    return values
