"""Annotation files made on the spot, and what readers make of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from medsam3.layouts.reader import Reader
from medsam3.layouts.shapes import Shape
from tests import native_sets

SIZE = (8, 10)  # height, width


def shipped(name: str, tmp_path: Path) -> Reader:
    """The reader of a data set below tmp_path/data as its shipped YAML describes it."""
    return native_sets.shipped(name, tmp_path / "data", tmp_path)


def prepared(name: str, tmp_path: Path) -> tuple[dict[str, dict[str, int]], dict[str, str]]:
    """What preparing it writes: instances by item and concept; exclusions by item."""
    return native_sets.prepared(name, tmp_path / "data", tmp_path)


def drawn(shape: Shape, size: tuple[int, int] = SIZE) -> np.ndarray:
    """The shape's pixels in an image."""
    patch = shape.pixels(size)
    left, top, right, bottom = patch.box_px
    image = np.zeros(size, bool)
    image[top:bottom, left:right] = patch.mask
    return image


def square(x: float, y: float, n: int) -> list[list[float]]:
    """Corners of n x n pixels, of which (x, y) is the first; a little off their centres, as hands draw."""
    return [[x - 0.3, y - 0.2], [x + n - 0.6, y - 0.2], [x + n - 0.6, y + n - 0.9], [x - 0.3, y + n - 0.9]]


def block(x: int, y: int, n: int, size: tuple[int, int] = (40, 60)) -> np.ndarray:
    """[H, W] with the n x n pixels of which (x, y) is the first."""
    mask = np.zeros(size, bool)
    mask[y : y + n, x : x + n] = True
    return mask


def write(path: Path, content: Any) -> None:
    """A text, or what is to be JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8", newline="")


def stacked(reader: Reader, item_id: str) -> dict[str, np.ndarray]:
    """Concept -> [N, H, W] of an item."""
    return {concept: found.stack() for concept, found in reader.masks(reader.item(item_id)).items()}


def unexpected(reader: Reader) -> list[tuple[str, str]]:
    """Problems that stop a preparation."""
    return [(problem.item, problem.reason) for problem in reader.problems() if not problem.expected]


def labelme(*shapes: tuple[str, str, list[Any]], size: tuple[int, int] = (40, 60)) -> dict[str, Any]:
    """A labelme file of shapes (label, type, points)."""
    keys = ("label", "shape_type", "points")
    return {"imageHeight": size[0], "imageWidth": size[1], "shapes": [dict(zip(keys, s, strict=True)) for s in shapes]}
