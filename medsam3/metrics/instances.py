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

from medsam3.metrics.refusals import checked_scores

Floats = NDArray[np.float64]
RECALLS = np.linspace(0.0, 1.0, 101)  # COCO's
_AT_ONCE = 4_000_000  # numbers held of several draws


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
    """[T] AP over all images of a data set, see `Ranking`; at least one."""
    scores, hits = (np.concatenate(parts, axis=-1) for parts in zip(*((i.scores, i.hits) for i in images), strict=True))
    groups = np.repeat(np.arange(len(images)), [len(image.scores) for image in images])
    truths = np.asarray([image.truths for image in images], dtype=np.float64)
    return Ranking.of(scores, hits, groups).average_precision(truths, np.ones((1, len(images))))[0]


@dataclass(frozen=True)
class Ranking:
    """The predictions in many images of G groups together, by falling score; D of them, up to the last that finds any.

    AP is the mean over 101 recalls of the best precision at that recall or beyond. Equal to pycocotools, without its
    limit of 100 predictions per image. Images without truth take part: what is predicted there is false. Equal scores
    are ranked in the order of the images, so give them sorted. NaN without any truth (pycocotools: -1).
    """

    group: NDArray[np.int64]  # [D]
    hits: NDArray[np.bool_]  # [T, D]

    @classmethod
    def of(cls, scores: Floats, hits: NDArray[np.bool_], groups: NDArray[np.int64]) -> Ranking:
        """Of N predictions, one image after the other: [N], [T, N], and the group of each, [N]."""
        order = np.argsort(-scores, kind="stable")
        last = int(np.flatnonzero(hits[:, order].any(axis=0)).max(initial=-1)) + 1
        return cls(groups[order[:last]], hits[:, order[:last]])

    def average_precision(self, truths: Floats, drawn: Floats) -> Floats:
        """[n, T] of n draws. What is drawn twice is ranked one after the other.

        Args:
            truths: [G] true instances in each group.
            drawn: [n, G] how often it is drawn.
        """
        step = max(1, _AT_ONCE // max(1, len(self.group)))
        return np.concatenate(
            [self._of_few(truths, drawn[start : start + step]) for start in range(0, len(drawn), step)]
        )

    def _of_few(self, truths: Floats, drawn: Floats) -> Floats:
        times = drawn[:, self.group]  # [n, D]
        rank = np.maximum(times.cumsum(axis=1), 1)
        total = drawn @ truths  # [n]
        levels = []
        for hits in self.hits:
            found = times[:, hits].cumsum(axis=1)
            best = np.maximum.accumulate((found / rank[:, hits])[:, ::-1], axis=1)[:, ::-1]
            reached = np.searchsorted(RECALLS, found / np.maximum(total, 1)[:, None], side="right")
            levels.append((np.diff(reached, axis=1, prepend=0) * best).sum(axis=1) / len(RECALLS))
        return np.where(total[:, None] > 0, np.stack(levels, axis=1), np.nan)
