"""How many pixels predictions share with truths: counted on bits, or on the GPU where the predictions are.

Shapes: N predictions and M truths of one image, [H, W] each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsam3.layouts.instances import Mask
from medsam3.layouts.packed_masks import intersections, pack, paired_intersections
from medsam3.metrics.masks import Overlap

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class PairCounts:
    """What each prediction shares with every truth."""

    prediction_px: Counts  # [N]
    truth_px: Counts  # [M]
    shared_px: Counts  # [N, M]

    def overlaps(self, own: Sequence[int]) -> list[Overlap]:
        """Each prediction with its own truth, of which `own` is the place."""
        return overlaps(self.prediction_px, self.truth_px[own], self.shared_px[np.arange(len(own)), own])

    @property
    def dice(self) -> NDArray[np.float64]:
        """[N, M]; 1 when both are empty."""
        total = self.prediction_px[:, None] + self.truth_px[None]
        return np.where(total == 0, 1.0, 2.0 * self.shared_px / np.maximum(total, 1))


def overlaps(prediction_px: Counts, truth_px: Counts, shared_px: Counts) -> list[Overlap]:
    return [Overlap(*counts) for counts in np.stack([prediction_px, truth_px, shared_px], axis=1).tolist()]


class PixelCounter:
    """Truths of one image, made ready once for the predictions by all mask rules."""

    def __init__(self, truths: Sequence[Mask], device: torch.device) -> None:
        """
        Args:
            device: of the predictions.
        """
        self.size = truths[0].shape
        self._packed = pack(truths, self.size)
        self._there = None if device.type == "cpu" else torch.from_numpy(np.stack(truths)).to(device)
        self.truth_px = self._packed.areas_px  # [M]

    def overlaps(self, predictions: Sequence[Mask | Tensor], own: Sequence[int]) -> list[Overlap]:
        """
        Args:
            predictions: N.
            own: [N] place of the truth of each.
        """
        if self._there is not None:
            areas, shared = count_on_device(predictions, self._there, own)
        else:
            packed = pack(map(np.asarray, predictions), self.size)
            areas, shared = packed.areas_px, paired_intersections(packed, self._packed, own)
        return overlaps(areas, self.truth_px[own], shared)

    def pairs(self, predictions: Sequence[Mask | Tensor]) -> PairCounts:
        """The same with every truth."""
        if self._there is not None:
            areas, shared = count_on_device(predictions, self._there, None)
        else:
            packed = pack(map(np.asarray, predictions), self.size)
            areas, shared = packed.areas_px, intersections(packed, self._packed)
        return PairCounts(areas, self.truth_px, shared)

    def truth_pairs(self) -> PairCounts:
        """The truths in place of the predictions."""
        return PairCounts(self.truth_px, self.truth_px, intersections(self._packed, self._packed))


def count_on_device(
    predictions: Sequence[Mask | Tensor], truths: Tensor, own: Sequence[int] | None
) -> tuple[Counts, Counts]:
    """Pixels of each prediction, [N], and those shared with its own truth, [N], or (None) with every truth, [N, M]: a
    few reductions where the masks are, of which one small tensor comes back.

    Args:
        truths: [M, H, W] bool on the device of the predictions.
    """
    masks = [torch.as_tensor(mask) for mask in predictions]
    beside = [truths] * len(masks) if own is None else [truths[place : place + 1] for place in own]
    areas = torch.stack([mask.sum() for mask in masks])
    shared = torch.cat([(mask & others).sum(dim=(1, 2)) for mask, others in zip(masks, beside, strict=True)])
    counts = torch.cat([areas, shared]).cpu().numpy()
    found = counts[len(masks) :]
    return counts[: len(masks)], found if own is not None else found.reshape(len(masks), -1)
