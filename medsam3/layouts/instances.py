"""Instances: the masks of one concept in one image.

Each is kept as a crop, so that a 16 MP slide with 500 nuclei fits in memory.

Shapes: H x W the image, N instances, h x w a target size. Boxes are [x0, y0, x1, y1] in px, the far edge exclusive.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Mask = NDArray[np.bool_]
EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True)
class Instances:
    """N masks of an image of `size` (H, W). N = 0: the concept was looked for and is absent."""

    size: tuple[int, int]
    boxes_px: NDArray[np.int32]  # [N, 4] xyxy
    crops: tuple[Mask, ...]  # N masks, each as large as its box
    dropped: int = 0  # further ones that are not among them because they are smaller than min_area_px

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
        boxes, crops, dropped = [], [], 0
        for mask in masks:
            window = _bounds(mask)
            if window is None:
                continue
            crop = mask[window]
            if min_area_px == 1 or np.count_nonzero(crop) >= min_area_px:
                boxes.append(_box(window, (0, 0)))
                crops.append(crop.copy() if crop.size < mask.size else crop)
            else:
                dropped += 1
        return cls._build(size, boxes, crops, dropped)

    @classmethod
    def together(cls, parts: Sequence[Instances]) -> Instances:
        """All instances of several sets of one image; at least one set."""
        boxes = np.concatenate([part.boxes_px for part in parts])
        crops = tuple(crop for part in parts for crop in part.crops)
        return cls(parts[0].size, boxes, crops, sum(part.dropped for part in parts))

    @classmethod
    def _from_labels(
        cls, labels: NDArray[np.integer], origin: tuple[int, int], size: tuple[int, ...], min_area_px: int
    ) -> Instances:
        boxes, crops, dropped = [], [], 0
        for label, window in enumerate(ndimage.find_objects(labels), start=1):
            if window is None:
                continue
            crop = labels[window] == label
            if min_area_px == 1 or np.count_nonzero(crop) >= min_area_px:
                boxes.append(_box(window, origin))
                crops.append(crop)
            else:
                dropped += 1
        return cls._build(size, boxes, crops, dropped)

    @classmethod
    def _build(cls, size: tuple[int, ...], boxes: list[list[int]], crops: list[Mask], dropped: int) -> Instances:
        return cls((size[0], size[1]), np.asarray(boxes, dtype=np.int32).reshape(-1, 4), tuple(crops), dropped)

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

    def cropped(self, window_px: tuple[int, int, int, int]) -> Instances:
        """What lies in a window x0, y0, x1, y1 of the image, as an image of its own; what lies outside is gone."""
        left, top, right, bottom = window_px
        boxes, crops = [], []
        for (x0, y0, _, _), crop in zip(self.boxes_px.tolist(), self.crops, strict=True):
            part = crop[max(top - y0, 0) : max(bottom - y0, 0), max(left - x0, 0) : max(right - x0, 0)]
            inner = _bounds(part)
            if inner is not None:
                boxes.append(_box(inner, (max(y0 - top, 0), max(x0 - left, 0))))
                crops.append(part[inner])
        return self._build((bottom - top, right - left), boxes, crops, self.dropped)

    def mirrored(self) -> Instances:
        """Left and right exchanged."""
        width = self.size[1]
        x0, y0, x1, y1 = self.boxes_px.T
        boxes = np.stack([width - x1, y0, width - x0, y1], axis=1).astype(np.int32)
        return Instances(self.size, boxes, tuple(crop[:, ::-1] for crop in self.crops), self.dropped)

    def turned(self) -> Instances:
        """A quarter turn to the left, as np.rot90."""
        height, width = self.size
        x0, y0, x1, y1 = self.boxes_px.T
        boxes = np.stack([y0, width - x1, y1, width - x0], axis=1).astype(np.int32)
        return Instances((width, height), boxes, tuple(np.rot90(crop) for crop in self.crops), self.dropped)

    def resized(self, size: tuple[int, int]) -> Mask:
        """[N, h, w], see `resized_pieces`."""
        masks = np.zeros((len(self), *size), dtype=bool)
        for mask, (row, column, piece) in zip(masks, self.resized_pieces(size), strict=True):
            mask[row : row + piece.shape[0], column : column + piece.shape[1]] = piece
        return masks

    def resized_pieces(self, size: tuple[int, int]) -> Iterator[tuple[int, int, Mask]]:
        """Of each instance the row and column of a piece of its [h, w] mask, and the piece, which holds all of it.

        By area: pixels of which an instance covers at least half (bilinear with antialiasing). An instance that covers
        no pixel by half keeps those that it covers at least half as much as any, so every instance with a box has a
        mask. Only what surrounds its box is resized; where the cover is within .002 of one half, 8 bits may round it to
        the other side than in the whole mask.
        """
        for (x0, y0, x1, y1), crop in zip(self.boxes_px.tolist(), self.crops, strict=True):
            rows = _Span.around(y0, y1, self.size[0], size[0])
            columns = _Span.around(x0, x1, self.size[1], size[1])
            near = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.uint8)
            near[y0 - rows.start : y1 - rows.start, x0 - columns.start : x1 - columns.start] = crop
            box = (columns.from_px, rows.from_px, columns.to_px, rows.to_px)
            extent = (columns.last - columns.first, rows.last - rows.first)
            covered = np.asarray(Image.fromarray(near * 255).resize(extent, Image.Resampling.BILINEAR, box)) >= 128
            if not covered.any():
                exact = Image.fromarray(near.astype(np.float32))
                cover = np.asarray(exact.resize(extent, Image.Resampling.BILINEAR, box))
                covered = cover >= cover.max() / 2
            yield rows.first, columns.first, covered


@dataclass(frozen=True)
class _Span:
    """Along one axis: source pixels start:stop and the target pixels first:last that see no others of an instance."""

    start: int
    stop: int
    first: int
    last: int
    from_px: float  # where the first target pixel begins, from start
    to_px: float  # where the last target pixel ends

    @classmethod
    def around(cls, low: int, high: int, source: int, target: int) -> _Span:
        """Of an instance at low:high, with a margin beyond which no target pixel is touched by it."""
        margin = 2 * max(-(-source // target), 1) + 1
        start, stop = max(low - margin, 0), min(high + margin, source)
        first = -(-start * target // source)
        last = stop * target // source
        from_px, to_px = first * source / target - start, last * source / target - start
        return cls(start, stop, first, last, max(from_px, 0.0), min(to_px, stop - start))


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
