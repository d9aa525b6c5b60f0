"""Instances: the masks of one concept in one image.

Each is kept as a crop, so that a 16 MP slide with 500 nuclei fits in memory.

Shapes: H x W the image, N instances, h x w a target size. Boxes are [x0, y0, x1, y1] in px, the far edge exclusive.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]
EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True)
class Instances:
    """N masks of an image of `size` (H, W). N = 0: the concept was looked for and is absent."""

    size: tuple[int, int]
    boxes_px: NDArray[np.int32]  # [N, 4] xyxy
    crops: tuple[Mask, ...]  # N masks, each as large as its box

    @classmethod
    def whole(cls, mask: Mask) -> Instances:
        """One instance, or none if the [H, W] mask is empty."""
        return cls.separate([mask], mask.shape)

    @classmethod
    def components(cls, mask: Mask, min_area_px: int = 1) -> Instances:
        """One instance per 8-connected region of a [H, W] mask."""
        window = _bounds(mask)
        if window is None:
            return cls.separate([], mask.shape)
        labels, _ = ndimage.label(mask[window], EIGHT_NEIGHBOURS)
        rows, columns = window
        return cls._from_labels(labels, (rows.start, columns.start), mask.shape, min_area_px)

    @classmethod
    def labels(cls, ids: NDArray[np.integer], min_area_px: int = 1) -> Instances:
        """One instance per distinct non-zero value of a [H, W] map."""
        if ids.size and ids.max() > ids.size:  # sparse ids: renumber, so that the search below stays short
            ids = np.unique(ids, return_inverse=True)[1].reshape(ids.shape) + (0 if (ids == 0).any() else 1)
        return cls._from_labels(ids.astype(np.int32, copy=False), (0, 0), ids.shape, min_area_px)

    @classmethod
    def separate(cls, masks: Iterable[Mask], size: tuple[int, ...], min_area_px: int = 1) -> Instances:
        """One instance per [H, W] mask; they may overlap. Empty masks are no instances."""
        boxes, crops = [], []
        for mask in masks:
            window = _bounds(mask)
            if window is None:
                continue
            crop = mask[window]
            if min_area_px == 1 or np.count_nonzero(crop) >= min_area_px:
                boxes.append(_box(window, (0, 0)))
                crops.append(crop.copy() if crop.size < mask.size else crop)
        return cls._build(size, boxes, crops)

    @classmethod
    def together(cls, parts: Sequence[Instances]) -> Instances:
        """All instances of several sets of one image; at least one set."""
        boxes = np.concatenate([part.boxes_px for part in parts])
        return cls(parts[0].size, boxes, tuple(crop for part in parts for crop in part.crops))

    @classmethod
    def _from_labels(
        cls, labels: NDArray[np.integer], origin: tuple[int, int], size: tuple[int, ...], min_area_px: int
    ) -> Instances:
        boxes, crops = [], []
        for label, window in enumerate(ndimage.find_objects(labels), start=1):
            if window is None:
                continue
            crop = labels[window] == label
            if min_area_px == 1 or np.count_nonzero(crop) >= min_area_px:
                boxes.append(_box(window, origin))
                crops.append(crop)
        return cls._build(size, boxes, crops)

    @classmethod
    def _build(cls, size: tuple[int, ...], boxes: list[list[int]], crops: list[Mask]) -> Instances:
        return cls((size[0], size[1]), np.asarray(boxes, dtype=np.int32).reshape(-1, 4), tuple(crops))

    def __len__(self) -> int:
        return len(self.crops)

    @property
    def areas_px(self) -> NDArray[np.int64]:
        """[N] pixels of each instance."""
        return np.asarray([np.count_nonzero(crop) for crop in self.crops], dtype=np.int64)

    @property
    def boxes_cxcywh(self) -> NDArray[np.float32]:
        """[N, 4] centre and size as fractions of the image."""
        height, width = self.size
        x0, y0, x1, y1 = self.boxes_px.astype(np.float64).T
        cxcywh = np.stack([(x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height], 1)
        return cxcywh.astype(np.float32)

    def stack(self) -> Mask:
        """[N, H, W]."""
        masks = np.zeros((len(self), *self.size), dtype=bool)
        for mask, (x0, y0, x1, y1), crop in zip(masks, self.boxes_px, self.crops, strict=True):
            mask[y0:y1, x0:x1] = crop
        return masks

    def union(self) -> Mask:
        """[H, W]: the pixels of any instance."""
        mask = np.zeros(self.size, dtype=bool)
        for (x0, y0, x1, y1), crop in zip(self.boxes_px, self.crops, strict=True):
            mask[y0:y1, x0:x1] |= crop
        return mask

    def resized(self, size: tuple[int, int]) -> Mask:
        """[N, h, w] by nearest neighbour (pixel centres).

        An instance that falls between the sampled pixels keeps one: where its pixel nearest to its centroid lies. So
        every instance that has a box has a mask.
        """
        masks = np.zeros((len(self), *size), dtype=bool)
        rows, columns = (_sampled(source, target) for source, target in zip(self.size, size, strict=True))
        for mask, (x0, y0, x1, y1), crop in zip(masks, self.boxes_px, self.crops, strict=True):
            top, bottom = np.searchsorted(rows, (y0, y1))
            left, right = np.searchsorted(columns, (x0, x1))
            # one axis after the other: a tenth of the time of indexing with both
            part = crop.take(columns[left:right] - x0, axis=1).take(rows[top:bottom] - y0, axis=0)
            if part.any():
                mask[top:bottom, left:right] = part
            else:
                y, x = _central_pixel(crop)
                mask[(y0 + y) * size[0] // self.size[0], (x0 + x) * size[1] // self.size[1]] = True
        return masks


def _bounds(mask: Mask) -> tuple[slice, slice] | None:
    """Rows and columns that hold the mask; None if it is empty."""
    rows = np.flatnonzero(mask.any(axis=1))
    if rows.size == 0:
        return None
    inner = slice(int(rows[0]), int(rows[-1]) + 1)
    columns = np.flatnonzero(mask[inner].any(axis=0))
    return inner, slice(int(columns[0]), int(columns[-1]) + 1)


def _box(window: tuple[slice, slice], origin: tuple[int, int]) -> list[int]:
    rows, columns = window
    top, left = origin
    return [columns.start + left, rows.start + top, columns.stop + left, rows.stop + top]


def _sampled(source: int, target: int) -> NDArray[np.int64]:
    """For each of `target` output pixels the source pixel under its centre; increasing."""
    return ((2 * np.arange(target) + 1) * source) // (2 * target)


def _central_pixel(crop: Mask) -> tuple[int, int]:
    pixels = np.argwhere(crop)
    y, x = pixels[((pixels - pixels.mean(axis=0)) ** 2).sum(axis=1).argmin()]
    return int(y), int(x)
