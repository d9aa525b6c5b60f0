"""What is measured of a predicted mask. A new metric is one function and one line of METRICS: results.csv, tables,
results.json, W&B, the training record and the model card follow.

Shapes: H x W the original image size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from medsam3.evaluation.surfaces import hd95, nsd
from medsam3.layouts.instances import Mask
from medsam3.messages import one_of

NSD_TOLERANCE = 2.0  # mm or pixels


@dataclass(frozen=True)
class Comparison:
    """A predicted and a true mask, [H, W] each, and what several metrics count of them."""

    prediction: Mask
    truth: Mask
    spacing: tuple[float, float] = (1.0, 1.0)  # of rows and columns, mm; 1, 1: unknown, so distances are in pixels

    @cached_property
    def prediction_px(self) -> int:
        return int(np.count_nonzero(self.prediction))

    @cached_property
    def truth_px(self) -> int:
        return int(np.count_nonzero(self.truth))

    @cached_property
    def shared_px(self) -> int:
        return int(np.count_nonzero(self.prediction & self.truth))


@dataclass(frozen=True)
class Metric:
    """A number per query; its key in METRICS is its name in files."""

    title: str  # in tables
    of: Callable[[Comparison], float]
    is_fraction: bool = True  # in 0..1: printed in percent

    @property
    def heading(self) -> str:
        return f"{self.title} (%)" if self.is_fraction else self.title

    def printed(self, value: float) -> float:
        """The value as tables show it."""
        return 100 * value if self.is_fraction else value


def dice(masks: Comparison) -> float:
    """2 |A and B| / (|A| + |B|); 1 when both are empty (paper, section 4.2)."""
    total = masks.prediction_px + masks.truth_px
    return 1.0 if total == 0 else 2.0 * masks.shared_px / total


def iou(masks: Comparison) -> float:
    """|A and B| / |A or B|; 1 when both are empty (paper, section 4.2)."""
    union = masks.prediction_px + masks.truth_px - masks.shared_px
    return 1.0 if union == 0 else masks.shared_px / union


def precision(masks: Comparison) -> float:
    """|A and B| / |A|, A the prediction; without any, 1 if there is no truth either, else 0."""
    return masks.shared_px / masks.prediction_px if masks.prediction_px else float(masks.truth_px == 0)


def recall(masks: Comparison) -> float:
    """|A and B| / |B|, B the truth; without any, 1 if nothing is predicted either, else 0."""
    return masks.shared_px / masks.truth_px if masks.truth_px else float(masks.prediction_px == 0)


def surface_dice(masks: Comparison) -> float:
    """See `surfaces.nsd`, within NSD_TOLERANCE mm, or pixels where the file has no spacing."""
    return nsd(masks.prediction, masks.truth, NSD_TOLERANCE, masks.spacing)


def hausdorff_95(masks: Comparison) -> float:
    """See `surfaces.hd95`, in mm, or pixels where the file has no spacing; infinite where one of both is empty."""
    return hd95(masks.prediction, masks.truth, masks.spacing)


# evaluation.metrics chooses among these. The last two take far longer than the others.
METRICS = {
    "dice": Metric("Dice", dice),
    "iou": Metric("IoU", iou),
    "precision": Metric("precision", precision),
    "recall": Metric("recall", recall),
    "nsd": Metric("NSD", surface_dice),
    "hd95": Metric("HD95", hausdorff_95, is_fraction=False),
}


def check_metrics(names: Sequence[str]) -> None:
    """Raises a ValueError if evaluation.metrics names no metric, one twice, or not dice, which chooses models."""
    for name in names:
        one_of("evaluation.metrics", name, METRICS)
    if "dice" not in names or len(set(names)) < len(names):
        raise ValueError(f"evaluation.metrics={list(names)}: must hold dice, and each name once")


def measure(masks: Comparison, names: Iterable[str]) -> dict[str, float]:
    """The values of the metrics of these names."""
    return {name: METRICS[name].of(masks) for name in names}
