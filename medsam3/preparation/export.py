"""A prepared data set in nnU-Net's raw layout, with our parts as its folds: the baseline that reviewers ask for.

    <folder>/nnUNet_raw/Dataset701_drive/imagesTr/<case>_0000.png   RGB, train and val
                                         labelsTr/<case>.png        0 = background
                                         imagesTs/ labelsTs/        test and external
                                         dataset.json
    <folder>/nnUNet_preprocessed/Dataset701_drive/splits_final.json one fold: our train against our val

Concepts that lie within each other become regions (nnU-Net's region-based training); a pixel holds a set of concepts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medsam3.config import PrepareConfig
from medsam3.data.corpus import Corpus, open_corpus
from medsam3.files import case_names, new_file, writable_folder, write_text
from medsam3.layouts.reader import Reader
from medsam3.messages import listed, one_of
from medsam3.preparation.parallel import each
from medsam3.registry.spec import SPEC_FOLDER

FILE_ENDING = ".png"
MOST_CONCEPTS = 63  # bits of the sets that pixels hold


@dataclass(frozen=True)
class Coding:
    """Which label value stands for which set of concepts (a bit each), and how nnU-Net is told."""

    concepts: tuple[str, ...]  # containers before what lies in them
    value_of: dict[int, int]  # set -> value in the label map
    labels: dict[str, Any]  # of dataset.json
    order: list[int] | None  # regions_class_order of dataset.json; None: no concept lies in another


def export_nnunet(config: PrepareConfig, folders: Iterable[Path] = (SPEC_FOLDER,)) -> list[Path]:
    """Write prepared data sets in nnU-Net's layout and return their folders in nnUNet_raw.

    Images in which not all concepts are annotated are left out and counted, as nnU-Net takes 0 for background.

    Raises:
        ValueError: a data set that is not prepared, an unknown concept, concepts whose overlaps no label map can hold.
    """
    root = writable_folder(config.export_folder, "export_folder", "export_folder")
    corpus = open_corpus(config.data, config.datasets, folders)
    written = []
    for number, name in enumerate(corpus.specs, start=config.export_id):
        concepts = tuple(config.export_concepts or corpus.specs[name].concept_names)
        for concept in concepts:
            one_of(f"export_concepts ({name})", concept, corpus.specs[name].concept_names)
        written.append(_export(corpus, name, concepts, root, f"Dataset{number:03d}_{name}", config.workers))
    return written


def _export(corpus: Corpus, name: str, concepts: tuple[str, ...], root: Path, title: str, workers: int) -> Path:
    images = corpus.images(name, "all")
    annotated = [rows for rows in images if set(concepts) <= {*rows.present, *rows.absent}]
    if not annotated:
        raise ValueError(f"{name}: no image in which all of {listed(concepts)} are annotated; set export_concepts")
    reader = corpus.readers[name]
    items = [rows.item for rows in annotated]
    sets: set[int] = set()
    for found in each(reader, partial(_sets_in, concepts), items, workers, f"{name}: concepts"):
        sets |= found
    coding = coding_of(sets, concepts, name)
    cases = case_names(items)
    folder = root / "nnUNet_raw" / title
    places = {
        rows.item: (folder, "Tr" if rows.part in ("train", "val") else "Ts", cases[rows.item]) for rows in annotated
    }
    for _ in each(reader, partial(_write_case, coding, concepts, places), items, workers, f"{name}: export"):
        pass
    part = {cases[rows.item]: rows.part for rows in annotated}
    content = {
        "channel_names": {"0": "R", "1": "G", "2": "B"},
        "labels": coding.labels,
        "numTraining": sum(p in ("train", "val") for p in part.values()),
        "file_ending": FILE_ENDING,
        "name": name,
        "reference": f"split file with SHA-256 {corpus.split_hash(name)}, parts by {corpus.split_by}",
    }
    if coding.order is not None:
        content["regions_class_order"] = coding.order
    write_text(folder / "dataset.json", json.dumps(content, indent=2) + "\n")
    fold = {p: sorted(case for case, own in part.items() if own == p) for p in ("train", "val")}
    write_text(root / "nnUNet_preprocessed" / title / "splits_final.json", json.dumps([fold], indent=2) + "\n")
    left_out = len(images) - len(annotated)
    print(f"{folder}: {len(annotated)} images" + (f", {left_out} left out (not fully annotated)" if left_out else ""))
    return folder


def coding_of(sets: Iterable[int], concepts: Sequence[str], name: str) -> Coding:
    """The coding of all sets of concepts that pixels of a data set hold.

    nnU-Net paints the predicted regions one over the other, so each set must be told by its last concept.

    Args:
        sets: bit i stands for concept i; the empty set may be among them.

    Raises:
        ValueError: two sets end with the same concept, whatever the order: the concepts overlap here and there.
    """
    found = sorted(set(sets) - {0})
    bits = sorted(range(len(concepts)), key=lambda i: -sum(s >> i & 1 for s in found))  # containers first
    last = {s: max((i for i in bits if s >> i & 1), key=bits.index) for s in found}
    for one, first in last.items():
        for other, second in last.items():
            if one < other and first == second:
                texts = [" + ".join(concepts[i] for i in bits if s >> i & 1) for s in (one, other)]
                raise ValueError(
                    f"{name}: no label map holds both {texts[0]!r} and {texts[1]!r}; give export_concepts=[...] "
                    "without one of them"
                )
    ordered = tuple(concepts[i] for i in bits)
    value_of = {s: bits.index(i) + 1 for s, i in last.items()}
    labels: dict[str, Any] = {"background": 0}
    if all(s.bit_count() == 1 for s in found):
        return Coding(ordered, value_of, labels | {concepts[i]: n for n, i in enumerate(bits, start=1)}, None)
    for n, i in enumerate(bits, start=1):
        values = sorted({value_of[s] for s in found if s >> i & 1}) or [n]
        labels[concepts[i]] = values if len(values) > 1 else values[0]
    return Coding(ordered, value_of, labels, list(range(1, len(bits) + 1)))


def _pixel_sets(reader: Reader, item_id: str, concepts: Sequence[str]) -> NDArray[np.int64]:
    """[H, W] the set of concepts of each pixel."""
    assert len(concepts) <= MOST_CONCEPTS
    masks = reader.masks(reader.item(item_id))
    sets = np.zeros(next(iter(masks.values())).size, dtype=np.int64)
    for bit, concept in enumerate(concepts):
        sets |= masks[concept].union().astype(np.int64) << bit
    return sets


def _sets_in(concepts: Sequence[str], reader: Reader, item_id: str) -> set[int]:
    return set(np.unique(_pixel_sets(reader, item_id, concepts)).tolist())


def _write_case(
    coding: Coding,
    concepts: Sequence[str],
    places: dict[str, tuple[Path, str, str]],
    reader: Reader,
    item_id: str,
) -> None:
    folder, part, case = places[item_id]
    sets = _pixel_sets(reader, item_id, concepts)
    labels = np.zeros(sets.shape, dtype=np.uint8)
    for held, value in coding.value_of.items():
        labels[sets == held] = value
    with new_file(folder / f"images{part}" / f"{case}_0000{FILE_ENDING}") as path:
        Image.fromarray(reader.image(reader.item(item_id))).save(path, format="PNG")
    with new_file(folder / f"labels{part}" / f"{case}{FILE_ENDING}") as path:
        Image.fromarray(labels).save(path, format="PNG")
