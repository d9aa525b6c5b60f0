"""Shapes of annotation files, and the pixels that they cover.

Shapes: P points of an outline as (x, y) in px; H x W the image.

An outline covers the pixels whose centre lies inside it or on it, clipped to the image; what it encloses twice is
outside (even-odd rule). The centre of the first pixel is (0, 0) in outlines of labelme, VIA, XML and text files. In
COCO files it is (0.5, 0.5), and pycocotools, the reference of that format, draws them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_masks

from medsam3.layouts.instances import Mask

Size = tuple[int, int]  # height, width
FARTHEST_PX = 1e7  # a coordinate beyond is a damaged file, not an outline
ON_LINE_PX = 1e-6  # a pixel centre this near to an outline is on it


class UnusableShapeError(ValueError):
    """A shape without area: fewer than three points, or no pixel of the image is in it."""


@dataclass(frozen=True, slots=True)
class Patch:
    """The pixels of one shape: a mask of a part of the image, and where its first pixel lies."""

    top: int
    left: int
    mask: Mask

    @property
    def box_px(self) -> tuple[int, int, int, int]:
        """xyxy"""
        height, width = self.mask.shape
        return self.left, self.top, self.left + width, self.top + height

    @classmethod
    def of(cls, mask: Mask) -> Patch:
        """The smallest patch of an [H, W] mask. Raises an UnusableShapeError if it is empty."""
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if rows.size == 0:
            raise UnusableShapeError("no pixel of the image lies in it")
        return cls(int(rows[0]), int(columns[0]), mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


@dataclass(frozen=True, slots=True)
class Shape(ABC):
    """A region with its label ("" if the file has none); `where` is its place in the file, for messages."""

    label: str
    where: str

    @abstractmethod
    def pixels(self, size: Size) -> Patch:
        """The pixels of an image of `size` (height, width) that it covers.

        Raises:
            UnusableShapeError: it has no area in the image.
            ValueError: it cannot belong to an image of this size.
        """


@dataclass(frozen=True, slots=True)
class Outline(Shape):
    points_px: tuple[tuple[float, float], ...]  # (x, y), closed or not

    def pixels(self, size: Size) -> Patch:
        return fill(np.asarray(self.points_px, dtype=np.float64).reshape(-1, 2), size)


def fill(points_px: NDArray[np.float64], size: Size) -> Patch:
    """The pixels whose centre lies in or on the outline of [P, 2] points (x, y); see the top of this file."""
    points_px = np.round(points_px, 6)
    if not np.isfinite(points_px).all():
        raise UnusableShapeError("a coordinate is not a number")
    if np.abs(points_px).max(initial=0) > FARTHEST_PX:
        raise UnusableShapeError(f"a coordinate of {np.abs(points_px).max():g} px")
    if len(points_px) > 1 and (points_px[0] == points_px[-1]).all():
        points_px = points_px[:-1]
    if len(points_px) < 3:
        raise UnusableShapeError(f"{len(points_px)} points enclose no area")
    lowest, highest = points_px.min(axis=0), points_px.max(axis=0)
    left, top = (max(0, int(np.ceil(value))) for value in lowest)
    right, bottom = (min(end - 1, int(np.floor(value))) for value, end in zip(highest, size[::-1], strict=True))
    if left > right or top > bottom:
        raise UnusableShapeError("no pixel of the image lies in it")
    rows, x_from, x_to = _spans(points_px, top, bottom)
    first = np.maximum(np.ceil(x_from - ON_LINE_PX), left).astype(np.int64)
    last = np.minimum(np.floor(x_to + ON_LINE_PX), right).astype(np.int64)
    kept = first <= last
    changes = np.zeros((bottom - top + 1, right - left + 2), dtype=np.int32)
    np.add.at(changes, (rows[kept] - top, first[kept] - left), 1)
    np.add.at(changes, (rows[kept] - top, last[kept] - left + 1), -1)
    patch = Patch.of(changes.cumsum(axis=1)[:, :-1] > 0)
    return Patch(patch.top + top, patch.left + left, patch.mask)


def _spans(points_px: NDArray[np.float64], top: int, bottom: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Stretches (row, x from, x to) inside the outline and on its line, for the rows of pixel centres top to bottom."""
    ends_px = np.roll(points_px, -1, axis=0)
    level = points_px[:, 1] == ends_px[:, 1]
    on_row = level & (points_px[:, 1] % 1 == 0) & (points_px[:, 1] >= top) & (points_px[:, 1] <= bottom)
    level_x = np.sort(np.stack([points_px[on_row, 0], ends_px[on_row, 0]]), axis=0)
    edges = points_px[~level], ends_px[~level]
    line_rows, line_x = _crossings(*edges, top, bottom, with_upper_end=True)
    rows, x = _crossings(*edges, top, bottom, with_upper_end=False)  # each row crosses a closed outline an even number
    order = np.lexsort((x, rows))  # of times, because of two edges that meet on a row only one counts as crossing it
    rows, x = rows[order], x[order]
    return (
        np.concatenate([rows[::2], line_rows, points_px[on_row, 1].astype(np.int64)]),
        np.concatenate([x[::2], line_x, level_x[0]]),
        np.concatenate([x[1::2], line_x, level_x[1]]),
    )


def _crossings(
    start_px: NDArray[np.float64], end_px: NDArray[np.float64], top: int, bottom: int, with_upper_end: bool
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Where edges (none of them level) cross rows of pixel centres: row and x of each crossing."""
    y_px = np.stack([start_px[:, 1], end_px[:, 1]])
    first = np.maximum(np.ceil(y_px.min(axis=0)), top).astype(np.int64)
    highest = y_px.max(axis=0)
    last = np.minimum(np.floor(highest) if with_upper_end else np.ceil(highest) - 1, bottom).astype(np.int64)
    counts = np.maximum(last - first + 1, 0)
    edge = np.repeat(np.arange(len(counts)), counts)
    rows = first[edge] + np.arange(len(edge)) - np.repeat(counts.cumsum() - counts, counts)
    (x0, y0), (x1, y1) = start_px[edge].T, end_px[edge].T
    return rows, x0 + (rows - y0) * (x1 - x0) / (y1 - y0)


@dataclass(frozen=True, slots=True)
class CocoRegion(Shape):
    segmentation: Any  # polygons [[x, y, x, y, ...], ...], or run lengths {size, counts}

    def pixels(self, size: Size) -> Patch:
        try:
            return Patch.of(coco_masks.decode(self._runs(size)).astype(bool))
        except (KeyError, TypeError) as error:
            raise ValueError(f"neither polygons nor run lengths ({error})") from error

    def _runs(self, size: Size) -> Any:
        if isinstance(self.segmentation, dict):
            given = tuple(self.segmentation["size"])
            if given != size:
                raise ValueError(f"run lengths of an image of {given} px (height, width), but the image has {size}")
            compressed = isinstance(self.segmentation["counts"], str | bytes)
            runs = self.segmentation if compressed else coco_masks.frPyObjects(self.segmentation, *size)
            total = _total_px(runs["counts"])
            if total != size[0] * size[1]:  # of too few, pycocotools leaves the rest of the mask to chance
                raise ValueError(f"run lengths of {total} px together, but the image has {size[0] * size[1]}")
            return runs
        for polygon in self.segmentation:
            if len(polygon) < 6 or len(polygon) % 2:  # of four numbers pycocotools would make a box
                raise UnusableShapeError(f"{len(polygon)} numbers are no outline")
        if not self.segmentation:
            raise UnusableShapeError("it has no outline")
        return coco_masks.merge(coco_masks.frPyObjects(self.segmentation, *size))


def _total_px(counts: str | bytes) -> int:
    """Sum of COCO's compressed run lengths: 5 bits a character, the sixth says that more follow, from the third run on
    as the difference to the last but one."""
    runs: list[int] = []
    value = shift = 0
    for character in counts.encode() if isinstance(counts, str) else counts:
        bits = character - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            signed = value - (1 << shift) if bits & 16 else value
            runs.append(signed + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return sum(runs)


@dataclass(frozen=True, slots=True)
class RunLengths(Shape):
    """Pairs of start and length, column by column from the top left.

    Absolute starts count from 1. A relative start counts the pixels since the end of the run before.
    """

    runs: str
    relative: bool

    def pixels(self, size: Size) -> Patch:
        try:
            numbers = np.array(self.runs.split(), dtype=np.int64)
        except (ValueError, OverflowError) as error:
            raise ValueError(f"run lengths that are no whole numbers: {self.runs[:40]!r}") from error
        if len(numbers) % 2:
            raise ValueError(f"run lengths need pairs of start and length, found {len(numbers)} numbers")
        starts, lengths = numbers[::2], numbers[1::2]
        if self.relative:
            starts = starts.cumsum() + lengths.cumsum() - lengths
        else:
            starts = starts - 1
        stops = starts + lengths
        height, width = size
        if (starts < 0).any() or (lengths < 1).any() or (stops > height * width).any():
            raise ValueError(f"a run outside the image of {height} x {width} px; are the starts of the other kind?")
        changes = np.zeros(height * width + 1, dtype=np.int32)
        np.add.at(changes, starts, 1)
        np.add.at(changes, stops, -1)
        return Patch.of((changes.cumsum()[:-1] > 0).reshape(width, height).T)
