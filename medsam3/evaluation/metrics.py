"""What is measured of a predicted mask. A new metric is one function and one line of METRICS: results.csv, tables,
results.json, W&B, the training record and the model card follow.

Shapes: H x W the original image size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from medsam3.layouts.instances import Mask


@dataclass(frozen=True)
class Comparison:
    """A predicted and a true mask, [H, W] each, and what several metrics count of them."""

    prediction: Mask
    truth: Mask

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


METRICS = {
    "dice": Metric("Dice", dice),
    "iou": Metric("IoU", iou),
}


def measure(masks: Comparison) -> dict[str, float]:
    """The value of every metric."""
    return {name: metric.of(masks) for name, metric in METRICS.items()}
