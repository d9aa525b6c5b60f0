"""Mode `tracker`: what is detected on the slices of a volume is followed from slice to slice by SAM3's tracker.

First every slice is detected, in batches. Then each concept is followed from its best slice to both ends of the volume,
in a session of its own for each direction, and the two halves are joined (the paper's Figure 2). transformers'
Sam3VideoModel does the following, unchanged; in the place of its detector stands a module that answers with what was
detected before. So there is one detector in all modes, and the hub's kernels, which that model would download for its
own detector, are never asked for.

Shapes: D slices of H x W px, C concepts, N instances, h x w mask logits, T tokens of a slice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medsam3.config import VolumeConfig
from medsam3.model.detector import TextDetector
from medsam3.model.tiny import PATCH_PX
from medsam3.prediction.slices import NOTHING, DetectSlices, Found
from medsam3.prediction.tracker_memory import forget
from medsam3.prediction.tracker_vision import HiddenOf, OwnVision, SharedVision, drift, same_weights
from medsam3.prediction.volume import (
    Pictures,
    VolumeMasks,
    VolumePrediction,
    detect_slices,
    least_voxels,
)

CERTAIN = 100.0  # a logit whose sigmoid is 1
# Slices after which a track that is not shown is given up: so far back reaches the tracker's memory.
GIVEN_UP = 16
MASK_PX = 4  # mask pixels in a patch of the ViT


def settings(assoc_iou: float) -> dict[str, float]:
    """Attributes of Sam3VideoModel for volumes.

    Its defaults are for long videos: an object that is seen on few frames is deleted on all of them (hot start), small
    holes and specks are filled and removed, and a track whose shape the detector confirms only roughly counts as lost.
    """
    return {
        "hotstart_delay": 0,
        # A track is suppressed on the slices on which no detection confirms it, and there alone:
        "suppress_unmatched_only_within_hotstart": False,
        "init_trk_keep_alive": 1,
        "max_trk_keep_alive": 1,
        "min_trk_keep_alive": 0,
        "trk_assoc_iou_thresh": assoc_iou,
        "fill_hole_area": 0,
        # Found come filtered:
        "score_threshold_detection": 0.0,
        "new_det_thresh": 0.0,
        "det_nms_thresh": 0.0,
    }


class DetectedBefore(nn.Module):
    """In the place of a video model's detector: the detections of the current slice, for each prompt."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden: Tensor | None = None  # [1, T, width] of the ViT
        self.detections: list[Found] = []  # [C]

    def get_vision_features(self, pixel_values: Tensor) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self.hidden)

    def forward(self, vision_embeds: Any, text_embeds: int, attention_mask: None) -> SimpleNamespace:
        """`text_embeds` is the number of the prompt, see `_session`."""
        found = self.detections[text_embeds]
        return SimpleNamespace(
            pred_logits=found.scores.logit()[None],
            presence_logits=found.scores.new_full((1, 1), CERTAIN),
            pred_masks=found.logits[None],
            pred_boxes=found.logits.new_zeros(1, len(found.logits), 4),  # which the tracker does not read
        )


class _Frames:
    """The frames of a session, which nobody looks at: the ViT's output comes from `TrackerVision`."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        return torch.empty(0)


class VolumeTracker:
    def __init__(self, video: Any, detector: TextDetector, image_size: int, config: VolumeConfig, bf16: bool) -> None:
        """
        Args:
            video: a Sam3VideoModel of the same image size as the detector, whose device it is moved to. Its detector
                is replaced, its settings are changed.

        Raises:
            ValueError: `tracker_vision=shared` with a detector whose ViT is of another shape; masks of another size.
        """
        self.config = config
        own, other = (model.vision_encoder.backbone for model in (video.detector_model, detector.sam3))
        alike = same_weights(own, other)
        shared = alike if config.tracker_vision == "auto" else config.tracker_vision == "shared"
        self.measures_drift = shared and not alike
        if video.low_res_mask_size != MASK_PX * image_size // PATCH_PX:
            raise ValueError(
                f"the tracker's masks have {video.low_res_mask_size} px, not those of image_size={image_size}"
            )
        if shared and own.config.hidden_size != other.config.hidden_size:
            raise ValueError(
                f"tracker_vision=shared: the tracker reads a ViT of width {own.config.hidden_size}, the detector's has "
                f"{other.config.hidden_size}: use original"
            )
        self.detected = DetectedBefore()
        video.detector_model = self.detected
        device = next(other.parameters()).device
        self.video = video.eval().to(device)
        self.bf16 = bf16 and device.type == "cuda"
        self.own_vision = OwnVision(own.to(device), image_size)
        self.vision = SharedVision(other) if shared else self.own_vision
        for name, value in settings(video.assoc_iou_thresh).items():
            assert hasattr(video, name), f"Sam3VideoModel has no setting {name}: another version of transformers?"
            setattr(video, name, value)

    def follow(
        self, found: Sequence[Sequence[Found]], order: Sequence[int], hidden_of: HiddenOf, reverse: bool
    ) -> Iterator[tuple[int, list[Found]]]:
        """One session in one direction.

        Args:
            found: [D][C], what the tracker may begin or confirm tracks with.
            order: numbers of the slices, one after the other.
            hidden_of: the ViT's output of a slice.

        Yields:
            Number of the slice, and what is shown on it of each concept [C]: detections where a track begins, then the
            tracker's masks. Scores are those of the first detection times the tracker's on this slice.
        """
        session = _session(len(found), len(found[0]), self.video.device)
        known: set[int] = set()
        missed: dict[int, int] = defaultdict(int)  # track -> slices in a row without it, or unconfirmed
        for index in order:
            self.detected.detections = [self._ready(one) for one in found[index]]
            with self._precision():
                self.detected.hidden = hidden_of(index)
                output = self.video(session, frame_idx=index, reverse=reverse)
            if not all(mask.isfinite().all() for mask in output.obj_id_to_mask.values()):
                raise ValueError(
                    f"the tracker's masks on slice {index} are not finite; check its weights, try bf16=false"
                )
            there = [track for track, mask in output.obj_id_to_mask.items() if bool((mask > 0).any())]
            for track in output.obj_id_to_mask:
                confirmed = track in there and track not in output.suppressed_obj_ids
                missed[track] = 0 if confirmed else missed[track] + 1
            shown = [track for track in there if missed[track] <= self.config.bridge_slices]
            yield index, _by_concept(shown, output, session.obj_id_to_prompt_id, known, len(found[0]))
            known.update(output.obj_id_to_mask)
            for track in output.obj_id_to_mask:
                if missed[track] >= max(GIVEN_UP, self.config.bridge_slices + 1):
                    session.remove_object(track)
            forget(session, index, self.video.tracker_model)

    def drift(self, pictures: Pictures, hidden_of: HiddenOf) -> list[float] | None:
        """By how much the detector's ViT changes what the tracker reads; None where it is the tracker's own."""
        if not self.measures_drift:
            return None
        with self.own_vision.opened(pictures) as exact, self._precision():
            return drift(self.video, pictures, exact, hidden_of)

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.video.device.type, torch.bfloat16, enabled=self.bf16)

    def _ready(self, found: Found) -> Found:
        size = self.video.low_res_mask_size
        logits = found.logits if len(found.scores) else torch.zeros(0, size, size)
        scores, logits = (x.to(self.video.device, torch.float32) for x in (found.scores, logits))
        return Found(found.score, scores, logits)


def _session(slices: int, concepts: int, device: torch.device) -> Any:
    from transformers import Sam3VideoInferenceSession  # its module warns when imported: see video_model_class

    session = Sam3VideoInferenceSession(inference_device=device, inference_state_device=device, dtype=torch.float32)
    session.processed_frames = _Frames(slices)  # type: ignore[assignment]
    for concept in range(concepts):
        session.prompts[concept] = str(concept)
        session.prompt_embeddings[concept] = concept
        session.prompt_attention_masks[concept] = None
    return session


def _by_concept(
    shown: list[int], output: Any, concept_of: dict[int, int], known: set[int], concepts: int
) -> list[Found]:
    scores: list[list[float]] = [[] for _ in range(concepts)]
    logits: list[list[Tensor]] = [[] for _ in range(concepts)]
    for track in sorted(shown):
        score = output.obj_id_to_score[track]
        if track in known:  # else it begins here, with the score of its detection
            score *= output.obj_id_to_tracker_score[track]
        scores[concept_of[track]].append(score)
        logits[concept_of[track]].append(output.obj_id_to_mask[track])
    return [
        Found(max(own, default=0.0), torch.tensor(own), torch.cat(masks).float() if masks else NOTHING)
        for own, masks in zip(scores, logits, strict=True)
    ]


@dataclass(frozen=True)
class TrackedVolume:
    prediction: VolumePrediction
    drift: list[float] | None  # see tracker_vision.drift; None: the tracker's own ViT


def predict_by_tracking(
    pictures: Pictures,
    concepts: Sequence[str],
    detect: DetectSlices,
    tracker: VolumeTracker,
    spacing_mm: Sequence[float] | None = None,
) -> TrackedVolume:
    """Mode `tracker`; arguments and errors as in mode `detector`, see `predict_by_slice`.

    What the rule of `detect` chooses begins and confirms tracks: of the rule union, every instance. The score of a
    slice is the best of what is shown on it, else that of the detector.
    """
    config = tracker.config
    least_voxels(config, spacing_mm)  # complains before the long work
    result = VolumeMasks(concepts, pictures, config)
    with tracker.vision.opened(pictures) as hidden_of:
        found = []
        for answers in detect_slices(pictures, detect, config.slices_per_pass):
            found.append([one.distinct(config.nms_iou).stored() for one in answers])
        for index, answers in enumerate(found):
            result.scores[:, index] = [one.score for one in answers]
        there = np.array([[len(one.scores) > 0 for one in answers] for answers in found]).T
        best = np.where(there, result.scores, -1).argmax(axis=1)
        best[~there.any(axis=1)] = -1  # not followed
        for reverse in (False, True):
            order, given = _half(found, best.tolist(), reverse)
            for index, shown in tracker.follow(given, order, hidden_of, reverse):
                for concept, own in enumerate(shown):
                    if len(own.scores):
                        result.put(concept, index, own)
        changed = tracker.drift(pictures, hidden_of)
    return TrackedVolume(result.consistent(spacing_mm), changed)


def _half(found: list[list[Found]], best: list[int], reverse: bool) -> tuple[Sequence[int], list[list[Found]]]:
    """The slices of one direction, and what of each concept lies from its best slice on.

    Args:
        best: [C], -1 for a concept that is not followed.
    """
    starts = [start for start in best if start >= 0]
    if not starts or (reverse and max(starts) == 0):
        return (), found
    order = range(max(starts), -1, -1) if reverse else range(min(starts), len(found))
    nothing = Found(0.0, torch.zeros(0), NOTHING)
    given = [
        [
            own if start >= 0 and (index <= start if reverse else index >= start) else nothing
            for own, start in zip(answers, best, strict=True)
        ]
        for index, answers in enumerate(found)
    ]
    return order, given
