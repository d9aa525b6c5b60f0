"""Masks as PNG files, written by an evaluation (evaluation.save_masks) and read from any other model (predictions=).

One folder per data set:

    dataset.json                 as nnU-Net has it: file_ending, labels (concept -> value, or list of values)
    <case>.png                   label map: concepts that exclude each other, or nnU-Net's regions
or
    <concept>/<case>.png         0 = not there, all else = there; blanks of the concept as underscores
    <concept>/dataset.json       written, so that each concept is a folder of its own for nnU-Net's evaluator; not read

A case is an image's id as `prepare_data.py export=nnunet` writes it: what nnU-Net predicts for images of that export is
read as it is. nnU-Net's and MONAI's evaluators read both.
"""

from __future__ import annotations

import json
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
from medsam3.files import case_names, new_file, write_text
from medsam3.layouts.instances import Mask
from medsam3.layouts.pixels import read_mask
from medsam3.messages import listed
from medsam3.prediction.image import Answer, Prediction

LEGEND = "dataset.json"
ENDING = ".png"
MASKS = "masks"  # the mask rule of masks that came as files


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
        values, name = self.values[rows.dataset], self.cases[rows.dataset][rows.item] + ENDING
        for rule in predictions[0].answers:
            folder = self.folder / rule / rows.dataset
            masks = {prediction.concept: prediction.answers[rule].mask for prediction in predictions}
            if values is None:
                for concept, mask in masks.items():
                    own = folder / self.folders[rows.dataset][concept]
                    _write(own / name, mask.astype(np.uint8))
                    _write_legend(own, {concept: 1})
            else:
                labels = np.zeros(next(iter(masks.values())).shape, dtype=np.uint8)
                for concept, mask in masks.items():
                    labels[mask] = values[concept]
                _write(folder / name, labels)
                _write_legend(folder, values)


def _write(path: Path, values: NDArray[np.uint8]) -> None:
    with new_file(path) as temporary:
        Image.fromarray(values).save(temporary, format="PNG")


def _write_legend(folder: Path, values: Mapping[str, int]) -> None:
    if not (folder / LEGEND).exists():
        content = {"labels": {"background": 0, **values}, "file_ending": ENDING}
        write_text(folder / LEGEND, json.dumps(content, indent=2) + "\n")


@dataclass(frozen=True)
class _Folder:
    path: Path
    cases: dict[str, str]
    folders: dict[str, str]  # of the concepts
    values: dict[str, tuple[int, ...]] | None  # concept -> label values; None: a folder per concept

    def files(self, item: str, concepts: Iterable[str]) -> list[Path]:
        """Those that must be there for an image."""
        name = self.cases[item] + ENDING
        if self.values is not None:
            return [self.path / name]
        return [self.path / self.folders[concept] / name for concept in concepts]


class MaskFiles:
    """Answers that are read from files. There is no score: 1 where there is a mask, else 0."""

    def __init__(self, folder: Path, corpus: Corpus, asked: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        """
        Args:
            folder: of the only data set, or with a folder <data set> for each.
            asked: data set -> image -> concepts.

        Raises:
            ValueError: folders, concepts or files that are missing; names those of all data sets.
        """
        self.folders: dict[str, _Folder] = {}
        self.files: list[Path] = []
        problems: list[str] = []
        for name, images in asked.items():
            own = folder / name
            if not own.is_dir() and len(asked) == 1:
                own = folder
            concepts = {concept for asks in images.values() for concept in asks}
            folders = {c: own for c, own in case_names(corpus.specs[name].concept_names).items() if c in concepts}
            found = _Folder(own, _cases(corpus, name), folders, _legend(own, folders))
            files = dict.fromkeys(path for item, asks in images.items() for path in found.files(item, asks))
            missing = [str(path.relative_to(own)) for path in files if not path.is_file()]
            if missing:
                problems.append(f"{own}: {len(missing)} of {len(files)} files are missing: {listed(missing, 20)}")
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
                maps[path] = _read(path, size, folder.values)
            mask: Mask = maps[path] > 0 if folder.values is None else np.isin(maps[path], folder.values[concept])
            score = float(mask.any())
            found.append(Prediction(concept, score, {MASKS: Answer(score, mask)}))
        return found


def _legend(folder: Path, folders: Mapping[str, str]) -> dict[str, tuple[int, ...]] | None:
    """Values of concepts by dataset.json; None if there is a folder for each."""
    path = folder / LEGEND
    if not path.is_file():
        lacking = [name for name in folders.values() if not (folder / name).is_dir()]
        if lacking:
            raise ValueError(
                f"{folder}: no {LEGEND} that says which value is which concept, and no folder of a concept's own "
                f"masks: {listed(lacking)}"
            )
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        values = {
            name: tuple(value) if isinstance(value, list) else (value,) for name, value in content["labels"].items()
        }
        if not all(isinstance(v, int) for found in values.values() for v in found):
            raise TypeError("labels must be whole numbers or lists of them")
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'{path}: must hold "labels": {{"background": 0, "<concept>": 1, ...}} ({error!r})') from error
    lacking = [concept for concept in folders if concept not in values]
    if lacking:
        raise ValueError(f"{path}: labels have no {listed(lacking)}, only {listed(values)}")
    if content.get("file_ending", ENDING) != ENDING:
        raise ValueError(f"{path}: file_ending={content['file_ending']!r}: must be {ENDING}")
    return values


def _read(path: Path, size: tuple[int, ...], legend: dict[str, tuple[int, ...]] | None) -> NDArray[Any]:
    values = read_mask(path)
    if values.ndim != 2:
        raise ValueError(f"{path}: is in colour; a mask has one channel")
    if values.shape != size:
        raise ValueError(f"{path}: has {values.shape[1]} x {values.shape[0]} px, its image {size[1]} x {size[0]}")
    there = set(np.unique(values).tolist()) - {0}
    if legend is None and len(there) > 1:
        raise ValueError(f"{path}: values {listed(sorted(there))} of one concept; several need a {LEGEND}")
    unknown = sorted(there - {v for found in legend.values() for v in found}) if legend is not None else []
    if unknown:
        raise ValueError(f"{path}: value {listed(unknown)} is not in {LEGEND}")
    return values
