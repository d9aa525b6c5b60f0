"""How well a set of predicted instances finds a set of true ones: AP as COCO defines it, F1 and panoptic quality (PQ).

Shapes: N predictions, M truths of one concept in one image, T IoU thresholds. All start from the IoU of the masks
[N, M] (`packed_masks.iou_matrix`), where an empty mask has IoU 0 with everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from medsam3.evaluation.refusals import checked_scores

Floats = NDArray[np.float64]
RECALLS = np.linspace(0.0, 1.0, 101)  # COCO's


@dataclass(frozen=True)
class InstanceCounts:
    """Found, false and missed instances of one image, or by `+` of many."""

    true_positives: int
    false_positives: int
    false_negatives: int
    iou_sum: float  # of the true positives

    def __add__(self, other: InstanceCounts) -> InstanceCounts:
        return InstanceCounts(
            self.true_positives + other.true_positives,
            self.false_positives + other.false_positives,
            self.false_negatives + other.false_negatives,
            self.iou_sum + other.iou_sum,
        )

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN); 1 where nothing was to be found and nothing was, as Dice."""
        total = 2 * self.true_positives + self.false_positives + self.false_negatives
        return 1.0 if total == 0 else 2 * self.true_positives / total

    @property
    def pq(self) -> float:
        """Sum of IoU / (TP + FP / 2 + FN / 2) (Kirillov et al. 2019); 1 where there is nothing on either side."""
        total = self.true_positives + (self.false_positives + self.false_negatives) / 2
        return 1.0 if total == 0 else self.iou_sum / total


def count_f1(ious: Floats) -> InstanceCounts:
    """Counts for F1@.5: [N, M] pairs of IoU of at least 0.5, each instance in one pair at most, as many as can be."""
    return _count(ious, ious >= 0.5)


def count_pq(ious: Floats) -> InstanceCounts:
    """Counts for PQ: its definition wants an IoU above 0.5; predictions that overlap are matched as by `count_f1`."""
    return _count(ious, ious > 0.5)


def _count(ious: Floats, admitted: NDArray[np.bool_]) -> InstanceCounts:
    # one pair more outweighs any sum of IoU; among equally many the largest sum wins
    rows, columns = linear_sum_assignment(admitted * (1 + ious / (2 * max(1, min(ious.shape)))), maximize=True)
    kept = admitted[rows, columns]
    found = int(kept.sum())
    return InstanceCounts(found, ious.shape[0] - found, ious.shape[1] - found, float(ious[rows, columns][kept].sum()))


@dataclass(frozen=True)
class Detections:
    """One image's part of an average precision."""

    scores: Floats  # [N], falling
    hits: NDArray[np.bool_]  # [T, N]: this prediction found an instance
    truths: int


def match_by_score(scores: Floats, ious: Floats, thresholds: Sequence[float]) -> Detections:
    """COCO's matching: by falling score each prediction takes the free truth of the highest IoU, if that is enough.

    Args:
        scores: [N]; ties keep their order.
        ious: [N, M].
        thresholds: T values; reaching one is enough. At equal IoU the last truth is taken, as pycocotools does.
    """
    order = np.argsort(-checked_scores(scores), kind="stable")
    hits = np.zeros((len(thresholds), len(scores)), dtype=bool)
    for level, threshold in enumerate(thresholds):
        free = ious[order]  # a copy; -1 marks truths that are taken
        for rank in range(len(order) if free.shape[1] else 0):
            row = free[rank]
            best = len(row) - 1 - int(row[::-1].argmax())
            if row[best] >= threshold:
                hits[level, rank] = True
                free[:, best] = -1.0
    return Detections(scores[order], hits, ious.shape[1])


def average_precision(images: Sequence[Detections]) -> Floats:
    """[T] AP over all images of a data set: the mean over 101 recalls of the best precision at that recall or beyond.

    Equal to pycocotools, without its limit of 100 predictions per image. Images without truth take part: what is
    predicted there is false. Equal scores are ranked in the order of `images`, so give them sorted. NaN without any
    truth (pycocotools: -1).
    """
    truths = sum(image.truths for image in images)
    if truths == 0:
        levels = images[0].hits.shape[0] if images else 0
        return np.full(levels, np.nan)
    order = np.argsort(-np.concatenate([image.scores for image in images]), kind="stable")
    hits = np.concatenate([image.hits for image in images], axis=1)[:, order]
    found = hits.cumsum(axis=1)
    recall = found / truths
    precision = found / np.arange(1, len(order) + 1)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    padded = np.pad(envelope, ((0, 0), (0, 1)))  # no precision beyond the highest recall
    reached = [np.searchsorted(level, RECALLS, side="left") for level in recall]
    return np.asarray([line[at].mean() for line, at in zip(padded, reached, strict=True)])
