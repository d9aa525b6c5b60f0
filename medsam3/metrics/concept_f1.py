"""SAM 3's own measure of finding what a phrase names and nothing else: cgF1 = pmF1 x IL_MCC (Carion et al. 2025).

It is computed as in Meta's evaluator (facebookresearch/sam3, sam3/eval/cgf1_eval.py), epsilons included:

* The unit is a pair of image and phrase; pairs of absent phrases belong in. All pairs are one pool, without a mean over
  images.
* Predictions of score >= 0.5 count (score = sigmoid of the class logit x sigmoid of the presence logit), however many
  there are, and empty masks as well. Regions marked as crowds are no truths.
* Predictions and truths are matched once, by the assignment with the largest sum of IoU, whatever the scores and before
  any threshold. A match is a true positive at each of 10 thresholds that its IoU reaches.
* pmF1 (positive micro F1) leaves out the false positives of pairs that have no truth; IL_MCC is the Matthews
  correlation of "there is something" with "something was found" over all pairs.

**A set without absent phrases has IL_MCC 0 and so cgF1 0, however good its masks**; so has one of absent phrases only.
Quote pmF1 there. Values lie in 0 to 1 (papers print them times 100), but IL_MCC and cgF1 may be negative; a perfect
result is 0.9999, because of the epsilons.

Shapes: D predictions, G truths of one pair; P pairs; T = 10 thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from medsam3.metrics.refusals import checked_scores

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)  # not 0.5 + 0.05 i, which lies above an IoU of 17/20 at i = 7
SCORE_THRESHOLD = 0.5
_EPSILON = 1e-4  # counts of instances
_PAIR_EPSILON = 1e-6  # counts of pairs


@dataclass(frozen=True)
class PairCounts:
    """What was found in one image for one phrase."""

    true_positives: Counts  # [T]
    predictions: int  # kept ones
    truths: int

    @property
    def local_f1(self) -> Floats:
        """[T] F1 of this pair alone."""
        found = self.true_positives
        return _f1(found / (self.predictions + _EPSILON), found / (self.truths + _EPSILON), _EPSILON)


def count_pair(scores: Floats, ious: Floats) -> PairCounts:
    """Match one pair.

    Args:
        scores: [D] of all predictions.
        ious: [D, G] of masks (`packed_masks.iou_matrix`) or of boxes.
    """
    kept = ious[checked_scores(scores) >= SCORE_THRESHOLD]
    rows, columns = linear_sum_assignment(kept, maximize=True)
    found = (kept[rows, columns][:, None] >= IOU_THRESHOLDS).sum(axis=0)
    return PairCounts(found, *kept.shape)


def best_annotator(annotators: Sequence[PairCounts]) -> PairCounts:
    """Of a pair with several annotators, the counts with the one that agrees most.

    That is one whose nothing was answered with nothing, else the one of the highest mean local F1, the first at a tie.
    Only pairs that every annotator has annotated exhaustively may take part.
    """
    silent = [counts for counts in annotators if counts.predictions == counts.truths == 0]
    return silent[0] if silent else max(annotators, key=lambda counts: float(counts.local_f1.mean()))


@dataclass(frozen=True)
class ImageLevel:
    """Is there something, and was something found? Counts of pairs; no IoU is asked. Of n pools: [n, 1] float each."""

    true_positives: Any
    false_positives: Any
    true_negatives: Any
    false_negatives: Any

    @property
    def precision(self) -> Any:
        return self.true_positives / (self.true_positives + self.false_positives + _PAIR_EPSILON)

    @property
    def recall(self) -> Any:
        return self.true_positives / (self.true_positives + self.false_negatives + _PAIR_EPSILON)

    @property
    def f1(self) -> float:
        return float(_f1(self.precision, self.recall, _PAIR_EPSILON))

    @property
    def false_positive_rate(self) -> Any:
        return self.false_positives / (self.false_positives + self.true_negatives + _PAIR_EPSILON)

    @property
    def mcc(self) -> Any:
        """IL_MCC."""
        tp, fp, tn, fn = self.true_positives, self.false_positives, self.true_negatives, self.false_negatives
        return (tp * tn - fp * fn) / (
            np.sqrt(np.float64((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))) + _PAIR_EPSILON
        )


@dataclass(frozen=True)
class ConceptF1:
    """Of a pool of pairs, at each of T IoU thresholds; the quoted number is the mean over them (`cgf1.mean()`)."""

    true_positives: Counts
    false_positives: Counts
    false_negatives: Counts
    positive_false_positives: Counts  # those of pairs with truths
    positive_macro_f1: Floats  # mean local F1 over pairs with truths and predictions; NaN without one (Meta prints -1)
    image_level: ImageLevel

    @property
    def precision(self) -> Floats:
        return self.true_positives / (self.true_positives + self.false_positives + _EPSILON)

    @property
    def recall(self) -> Floats:
        return self.true_positives / (self.true_positives + self.false_negatives + _EPSILON)

    @property
    def f1(self) -> Floats:
        return _f1(self.precision, self.recall, _EPSILON)

    @property
    def positive_micro_precision(self) -> Floats:
        return self.true_positives / (self.true_positives + self.positive_false_positives + _EPSILON)

    @property
    def positive_micro_f1(self) -> Floats:
        """pmF1: how good the masks are where there is something; missed pairs count in its recall."""
        return _f1(self.positive_micro_precision, self.recall, _EPSILON)

    @property
    def cgf1(self) -> Floats:
        return self.positive_micro_f1 * self.image_level.mcc


def concept_f1(pairs: Sequence[PairCounts]) -> ConceptF1:
    """Pool the pairs of a data set, present and absent phrases."""
    both = [pair.local_f1 for pair in pairs if pair.predictions and pair.truths]
    macro = np.mean(both, axis=0) if both else np.full(len(IOU_THRESHOLDS), np.nan)
    return from_sums(pair_table(pairs).sum(axis=0), macro)


def pair_table(pairs: Sequence[PairCounts]) -> Counts:
    """[P, T + 7] what pairs add to the pool: sums of rows go into `from_sums`."""
    found = np.asarray([pair.true_positives for pair in pairs], dtype=np.int64).reshape(-1, len(IOU_THRESHOLDS))
    predictions = np.asarray([pair.predictions for pair in pairs], dtype=np.int64)
    truths = np.asarray([pair.truths for pair in pairs], dtype=np.int64)
    said, there = predictions > 0, truths > 0
    level = [said & there, said & ~there, ~said & ~there, ~said & there]
    return np.column_stack([found, predictions, truths, predictions * there, *level])


def from_sums(sums: NDArray[Any], positive_macro_f1: Floats | None = None) -> ConceptF1:
    """From sums of rows of `pair_table`, [T + 7], or of n pools at once, [n, T + 7]; then all values are [n, T]."""
    total = sums[..., : len(IOU_THRESHOLDS)]
    columns = sums[..., len(IOU_THRESHOLDS) :]
    predictions, truths, positive, *level = np.split(columns, columns.shape[-1], axis=-1)
    return ConceptF1(
        true_positives=total,
        false_positives=predictions - total,
        false_negatives=truths - total,
        positive_false_positives=positive - total,
        positive_macro_f1=np.full(total.shape, np.nan) if positive_macro_f1 is None else positive_macro_f1,
        image_level=ImageLevel(*(counts if sums.ndim > 1 else counts.item() for counts in level)),
    )


def _f1(precision: Floats | float, recall: Floats | float, epsilon: float) -> Floats:
    return np.asarray(2 * precision * recall / (precision + recall + epsilon))
