"""From the slices of a volume and words to masks in three dimensions.

Two modes: `detector` segments each slice alone; `tracker` follows what is detected from slice to slice (tracker.py).

Shapes: D slices of H x W px, C concepts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from medsam3.config import VolumeConfig
from medsam3.layouts.instances import Mask
from medsam3.prediction.consistency import hysteresis, large_parts, smoothed
from medsam3.prediction.overlaps import Overlaps
from medsam3.prediction.slices import DetectSlices, Found


class Pictures(Protocol):
    """Slices [H, W, 3] uint8 by number; a list, or a Scan, which makes them when asked."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> NDArray[np.uint8]: ...


@dataclass(frozen=True)
class VolumePrediction:
    concepts: list[str]
    masks: Mask  # [C, D, H, W]; they may overlap
    confidences: NDArray[np.float32]  # [C, D, H, W] probability of the mask times score; of one concept: zeros
    scores: NDArray[np.float32]  # [C, D] of the answer on each slice, found or not: see rules.Choice

    def resolved(self, exclusive: Collection[str]) -> Mask:
        """[C, D, H, W]: a voxel that several of the exclusive concepts claim goes to the most confident of them."""
        numbers = [number for number, concept in enumerate(self.concepts) if concept in exclusive]
        masks = self.masks.copy()
        for index in range(masks.shape[1] if len(numbers) > 1 else 0):
            overlaps = Overlaps(masks.shape[2:], torch.device("cpu"))
            for number in numbers:
                mask, confidence = masks[number, index], self.confidences[number, index]
                overlaps.add(number, torch.from_numpy(mask), torch.from_numpy(confidence))
            for number in numbers:
                masks[number, index] = overlaps.mask(number).numpy()
        return masks


def detect_slices(pictures: Pictures, detect: DetectSlices, slices_per_pass: int) -> Iterator[list[Found]]:
    """What is found on each slice, [C], one slice after the other; they are computed in batches."""
    for start in range(0, len(pictures), slices_per_pass):
        yield from detect([pictures[i] for i in range(start, min(start + slices_per_pass, len(pictures)))])


class VolumeMasks:
    """Masks of all slices in the making. What no step will read is not filled, and so takes no memory."""

    def __init__(self, concepts: Sequence[str], pictures: Pictures, config: VolumeConfig) -> None:
        self.config = config
        self.size = pictures[0].shape[:2]
        shape = (len(concepts), len(pictures), *self.size)
        self.masks, self.seeds = np.zeros(shape, bool), np.zeros(shape, bool)
        self.probabilities = np.zeros(shape, np.float16)
        self.confidences = np.zeros(shape, np.float32)  # rounded, ties would decide otherwise than on single pictures
        self.scores = np.zeros(shape[:2], np.float32)
        self.concepts = list(concepts)

    def put(self, concept: int, index: int, found: Found) -> None:
        """What is found of a concept on a slice."""
        self.scores[concept, index] = found.score
        if not len(found.scores):
            return
        self.masks[concept, index], confidence = found.mask(self.size)
        if len(self.concepts) > 1:
            self.confidences[concept, index] = confidence
        if self.config.smoothing_slices > 0:
            certain = Found(1.0, torch.ones_like(found.scores), found.logits)
            self.probabilities[concept, index] = certain.mask(self.size)[1]
        if self.config.seed_threshold is not None:
            strong = found.only(found.scores >= self.config.seed_threshold)
            self.seeds[concept, index] = strong.mask(self.size)[0]

    def consistent(self, spacing_mm: Sequence[float] | None) -> VolumePrediction:
        """Smoothed, without parts that are weak or small; steps that are off change nothing."""
        config = self.config
        least = least_voxels(config, spacing_mm)
        for concept in range(len(self.masks)):
            if config.smoothing_slices > 0:
                self.masks[concept] = smoothed(self.probabilities[concept], config.smoothing_slices) > 0.5
                self.confidences[concept] = smoothed(self.confidences[concept], config.smoothing_slices)
            if config.seed_threshold is not None:
                self.masks[concept] = hysteresis(self.masks[concept], self.seeds[concept])
            if least > 0 or config.largest_component:
                self.masks[concept] = large_parts(self.masks[concept], least, config.largest_component)
        return VolumePrediction(self.concepts, self.masks, self.confidences, self.scores)


def least_voxels(config: VolumeConfig, spacing_mm: Sequence[float] | None) -> float:
    """Voxels in the smallest part that stays. ValueError if their size is not known."""
    if spacing_mm is not None:
        return config.min_component_mm3 / prod(spacing_mm)
    if config.min_component_mm3 > 0:
        raise ValueError(
            f"min_component_mm3={config.min_component_mm3}: the file does not say how large its voxels are: set 0"
        )
    return 0.0


def predict_by_slice(
    pictures: Pictures,
    concepts: Sequence[str],
    detect: DetectSlices,
    config: VolumeConfig,
    spacing_mm: Sequence[float] | None = None,
) -> VolumePrediction:
    """Mode `detector`: each slice alone, then the steps of the configuration in three dimensions.

    Args:
        concepts: names of the answers, in the order of the prompts that `detect` asks.
        detect: see `slice_detector`; its rule makes the masks.
        spacing_mm: from slice to slice, row to row, column to column.

    Raises:
        ValueError: a smallest volume in mm3 for voxels of unknown size; answers that are not finite.
    """
    least_voxels(config, spacing_mm)  # complains before the long work
    result = VolumeMasks(concepts, pictures, config)
    for index, answers in enumerate(detect_slices(pictures, detect, config.slices_per_pass)):
        for concept, found in enumerate(answers):
            result.put(concept, index, found)
    return result.consistent(spacing_mm)
