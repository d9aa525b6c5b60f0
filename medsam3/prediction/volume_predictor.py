"""Volumes by either mode, with one detector: what predict.py and evaluate.py call. D slices of H x W px."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from medsam3.checkpoints.weights import weights_hash
from medsam3.config import VolumeConfig
from medsam3.model.load import load_tracker
from medsam3.prediction.image import ImagePredictor
from medsam3.prediction.slices import slice_detector
from medsam3.prediction.tracker import TrackedVolume, VolumeTracker, predict_by_tracking
from medsam3.prediction.volume import Pictures, predict_by_slice


@dataclass(frozen=True)
class VolumePredictor:
    predictor: ImagePredictor
    config: VolumeConfig
    tracker: VolumeTracker | None  # of the mode tracker
    remarks: tuple[str, ...]  # what the user should know of the tracker
    facts: dict[str, Any]  # what the record of a run says of it

    def predict(
        self,
        pictures: Pictures,
        concepts: Sequence[str],
        prompts: Sequence[str] = (),
        spacing_mm: Sequence[float] | None = None,
    ) -> TrackedVolume:
        """Masks by the first rule of the predictor's configuration.

        Args:
            prompts: the words to use for each concept, where they differ from its name.
            spacing_mm: from slice to slice, row to row, column to column; None: not known.

        Raises:
            ValueError: see `predict_by_slice`.
        """
        detect = slice_detector(self.predictor, list(prompts) or list(concepts), self.predictor.config.rules[0])
        if self.tracker is not None:
            return predict_by_tracking(pictures, concepts, detect, self.tracker, spacing_mm)
        return TrackedVolume(predict_by_slice(pictures, concepts, detect, self.config, spacing_mm), None)


def open_volume_predictor(predictor: ImagePredictor, config: VolumeConfig, checkpoint: str) -> VolumePredictor:
    """
    Args:
        checkpoint: of the predictor; the tracker is looked for there if `volume.tracker` names no other.

    Raises:
        ValueError: in mode tracker, a checkpoint without a tracker, or one that does not fit; no room for it.
    """
    if config.mode != "tracker":
        return VolumePredictor(predictor, config, None, (), {})
    source = config.tracker or checkpoint
    try:
        video, report = load_tracker(source, predictor.image_size)
    except ValueError as error:
        words = str(error).removeprefix(f"checkpoint={source}: ")
        hint = "" if config.tracker else "; set volume.tracker=facebook/sam3 (or sam3.pt, or a folder of it)"
        raise ValueError(f"volume.mode=tracker: volume.tracker={source}: {words}{hint}") from error
    try:
        tracker = VolumeTracker(video, predictor.detector, predictor.image_size, config, predictor.bf16)
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"volume.mode=tracker: no room on {predictor.device} for the tracker and its ViT beside the detector "
            f"({error}); set volume.mode=detector, or device=cpu"
        ) from error
    vision = "shared" if tracker.vision is not tracker.own_vision else "original"
    facts = {
        "tracker": source,
        "tracker_sha256": weights_hash(nn.ModuleList([tracker.video, tracker.own_vision.backbone])),
        "tracker_vision": vision,
    }
    remarks = (f"tracker: {report}", f"tracker: {_vision_words(tracker)}")
    return VolumePredictor(predictor, config, tracker, remarks, facts)


def _vision_words(tracker: VolumeTracker) -> str:
    if tracker.measures_drift:
        return (
            "WARNING reads the detector's ViT, which is not the one that it was trained on (volume.tracker_vision="
            "shared); by how much its features change stands with each volume"
        )
    if tracker.vision is tracker.own_vision:
        return "reads its own ViT, in a second pass over each slice (volume.tracker_vision=original)"
    return "reads the detector's ViT, which is the one that it was trained on"


def drift_words(drift: Sequence[float]) -> str:
    """What a user is told of `TrackedVolume.drift`."""
    changes = ", ".join(f"{100 * change:.2g} %" for change in drift)
    return (
        f"tracker_vision=shared: the features that the tracker reads differ from those of its own ViT by {changes} "
        "(fine to coarse)"
    )
