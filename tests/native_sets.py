"""Small copies of data sets in their native layout, and the shipped YAML files that read them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from medsam3.layouts.reader import Reader
from medsam3.layouts.readers import open_reader
from medsam3.preparation.prepare import prepare
from medsam3.registry.spec import SPEC_FOLDER, load_spec
from tests.conftest import data_config, prepare_config

SIZE = (96, 128)


def shipped(name: str, data_root: Path, tmp_path: Path) -> Reader:
    """The reader of a shipped data set file."""
    return open_reader(load_spec(SPEC_FOLDER / f"{name}.yaml"), data_root, tmp_path / "cache")


def prepared(name: str, data_root: Path, tmp_path: Path) -> tuple[dict[str, dict[str, int]], dict[str, str]]:
    """What preparing a shipped data set writes: instances by item and concept; exclusions by item."""
    data = data_config(tmp_path, data_root)
    prepare(prepare_config(data, name))
    found: dict[str, dict[str, int]] = {}
    with (Path(data.splits) / f"{name}.csv").open() as file:
        for row in csv.DictReader(file):
            found.setdefault(row["item"], {})[row["concept"]] = int(row["instances"])
    with (Path(data.splits) / f"{name}.exclusions.csv").open() as file:
        return found, {row["item"]: row["reason"] for row in csv.DictReader(file)}


def write(path: Path, pixels: Any, mode: str | None = None, **options: Any) -> None:
    """An image file, converted to a Pillow mode first; bool arrays are 0 and 255."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.asarray(pixels)
    image = Image.fromarray((255 * array if array.dtype == bool else array).astype(np.uint8))
    (image.convert(mode) if mode else image).save(path, **options)


def picture(seed: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    """[H, W, 3] random pixels."""
    return np.random.RandomState(seed).randint(0, 256, (*size, 3)).astype(np.uint8)


def box(top: int, left: int, height: int = 30, width: int = 30, size: tuple[int, int] = SIZE) -> np.ndarray:
    """[H, W] bool with one rectangle."""
    mask = np.zeros(size, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def colours(regions: Sequence[tuple[tuple[int, int, int], np.ndarray]]) -> np.ndarray:
    """[H, W, 3] black with regions in colour."""
    pixels = np.zeros((*regions[0][1].shape, 3), np.uint8)
    for colour, region in regions:
        pixels[region] = colour
    return pixels


def components(mask: np.ndarray, min_area_px: int) -> list[int]:
    """Areas of the 8-connected regions of a mask, sorted."""
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    return sorted(area for area in np.bincount(labels.ravel())[1:].tolist() if area >= min_area_px)


def unions(reader: Reader, item_id: str) -> dict[str, np.ndarray]:
    """[H, W] by concept: the pixels of any instance."""
    item = reader.item(item_id)
    masks = reader.masks(item)
    assert reader.image(item).shape[:2] == next(iter(masks.values())).size
    return {concept: instances.union() for concept, instances in masks.items()}


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray | None]) -> bool:
    """Whether masks are as expected, None for a concept that is annotated and absent."""
    return set(found) == set(expected) and all(
        not found[concept].any() if mask is None else np.array_equal(found[concept], mask)
        for concept, mask in expected.items()
    )
