"""What single instances say of each concept asked of each image, in numbers that add up; no mask is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from medsam3.data.manifest import ImageRows
from medsam3.layouts.packed_masks import PackedMasks, iou_matrix
from medsam3.metrics.concept_f1 import IOU_THRESHOLDS, PairCounts, count_pair
from medsam3.metrics.instances import InstanceCounts, count_f1, count_pq, match_by_score
from medsam3.prediction.detections import ScoredInstances

BITS = 1 << np.arange(len(IOU_THRESHOLDS))


@dataclass(frozen=True, kw_only=True)
class InstanceRecord:
    """One concept in one image; all that AP, F1, PQ and cgF1 of any set of images need of it."""

    dataset: str
    item: str
    group: str
    part: str
    concept: str
    ranked: bool  # by scores; if not, there is no AP
    exhaustive: bool  # all that is there is marked; if not, cgF1 leaves the image out
    truths: int
    scores: list[float]  # of the predictions, falling
    hits: list[int]  # of each: bit t is set if it found an instance at IOU_THRESHOLDS[t], see `match_by_score`
    f1: InstanceCounts  # of the predictions that the rule `union` lays together
    pq: InstanceCounts  # likewise
    matched: list[int]  # [T] true positives of cgF1, and
    kept: int  # its predictions, see `PairCounts`

    @classmethod
    def of(
        cls, rows: ImageRows, concept: str, exhaustive: bool, found: ScoredInstances, truth: PackedMasks
    ) -> InstanceRecord:
        ious = iou_matrix(found.masks, truth)
        ranked = match_by_score(found.scores, ious, IOU_THRESHOLDS.tolist())
        counted = ious[found.shown]
        pair = count_pair(found.scores, ious)
        return cls(
            dataset=rows.dataset,
            item=rows.item,
            group=rows.group,
            part=rows.part,
            concept=concept,
            ranked=found.ranked,
            exhaustive=exhaustive,
            truths=len(truth),
            scores=ranked.scores.tolist(),
            hits=(BITS @ ranked.hits).tolist(),
            f1=count_f1(counted),
            pq=count_pq(counted),
            matched=pair.true_positives.tolist(),
            kept=pair.predictions,
        )

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> InstanceRecord:
        counts = {name: InstanceCounts(**content[name]) for name in ("f1", "pq")}
        return cls(**{**content, **counts})

    @property
    def pair(self) -> PairCounts:
        """For a cgF1."""
        return PairCounts(np.asarray(self.matched, dtype=np.int64), self.kept, self.truths)
