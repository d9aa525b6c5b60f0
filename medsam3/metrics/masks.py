"""What is measured of a predicted mask. A new metric is one function and one line of METRICS: results.csv, tables,
results.json, W&B, the training record and the model card follow.

Shapes: H x W the original image size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from medsam3.layouts.instances import Mask
from medsam3.messages import one_of
from medsam3.metrics.surfaces import hd95, nsd

NSD_TOLERANCE = 2.0  # mm or pixels


@dataclass(frozen=True)
class Overlap:
    """Pixels of a predicted mask, of the true one, and of both: all that Dice and its kin need."""

    prediction_px: int
    truth_px: int
    shared_px: int


@dataclass(frozen=True)
class MaskPair:
    """A predicted and a true mask, [H, W] each."""

    prediction: Mask
    truth: Mask
    spacing: tuple[float, float] = (1.0, 1.0)  # of rows and columns, mm; 1, 1: unknown, so distances are in pixels


@dataclass(frozen=True)
class Metric:
    """A number per query; its key in METRICS is its name in files."""

    title: str  # in tables
    of: Callable[[Any], float]  # of an Overlap, or of a MaskPair if `of_outlines`
    is_fraction: bool = True  # in 0..1: printed in percent
    of_outlines: bool = False  # depends on the unit of distances; takes far longer than to count pixels

    @property
    def heading(self) -> str:
        return f"{self.title} (%)" if self.is_fraction else self.title

    def named(self, unit: str) -> str:
        """The title, with the unit where it matters."""
        if not self.of_outlines:
            return self.title
        return f"{self.title} at {NSD_TOLERANCE:g} {unit}" if self.is_fraction else f"{self.title} in {unit}"

    def printed(self, value: float) -> float:
        """The value as tables show it."""
        return 100 * value if self.is_fraction else value


def dice(pixels: Overlap) -> float:
    """2 |A and B| / (|A| + |B|); 1 when both are empty (paper, section 4.2)."""
    total = pixels.prediction_px + pixels.truth_px
    return 1.0 if total == 0 else 2.0 * pixels.shared_px / total


def iou(pixels: Overlap) -> float:
    """|A and B| / |A or B|; 1 when both are empty (paper, section 4.2)."""
    union = pixels.prediction_px + pixels.truth_px - pixels.shared_px
    return 1.0 if union == 0 else pixels.shared_px / union


def precision(pixels: Overlap) -> float:
    """|A and B| / |A|, A the prediction; without any, 1 if there is no truth either, else 0."""
    return pixels.shared_px / pixels.prediction_px if pixels.prediction_px else float(pixels.truth_px == 0)


def recall(pixels: Overlap) -> float:
    """|A and B| / |B|, B the truth; without any, 1 if nothing is predicted either, else 0."""
    return pixels.shared_px / pixels.truth_px if pixels.truth_px else float(pixels.prediction_px == 0)


def surface_dice(masks: MaskPair) -> float:
    """See `surfaces.nsd`, within NSD_TOLERANCE mm, or pixels where the file has no spacing."""
    return nsd(masks.prediction, masks.truth, NSD_TOLERANCE, masks.spacing)


def hausdorff_95(masks: MaskPair) -> float:
    """See `surfaces.hd95`, in mm, or pixels where the file has no spacing; infinite where one of both is empty."""
    return hd95(masks.prediction, masks.truth, masks.spacing)


# evaluation.metrics chooses among these.
METRICS = {
    "dice": Metric("Dice", dice),
    "iou": Metric("IoU", iou),
    "precision": Metric("precision", precision),
    "recall": Metric("recall", recall),
    "nsd": Metric("NSD", surface_dice, of_outlines=True),
    "hd95": Metric("HD95", hausdorff_95, is_fraction=False, of_outlines=True),
}
MM, PX = "mm", "px"  # units of distances


def one_unit(units: Iterable[str]) -> str:
    """The unit of rows; "mm and px" if it differs, so that no mean of their distances is one."""
    return " and ".join(sorted({part for unit in units for part in unit.split(" and ")}))


def has_mean(name: str, unit: str) -> bool:
    """Whether values of a metric with these units can be averaged."""
    return unit in (MM, PX) or not measure_distances([name])


def measure_distances(names: Iterable[str]) -> bool:
    """Whether one of the metrics depends on the unit."""
    return any(name in METRICS and METRICS[name].of_outlines for name in names)


def check_metrics(names: Sequence[str]) -> None:
    """Raises a ValueError if evaluation.metrics names no metric, one twice, or not dice, which chooses models."""
    for name in names:
        one_of("evaluation.metrics", name, METRICS)
    if "dice" not in names or len(set(names)) < len(names):
        raise ValueError(f"evaluation.metrics={list(names)}: must hold dice, and each name once")


def measure(pixels: Overlap, names: Iterable[str]) -> dict[str, float]:
    """The values of the metrics of these names; NaN for now where outlines are asked for (see `outline_workers`)."""
    return {name: math.nan if METRICS[name].of_outlines else METRICS[name].of(pixels) for name in names}
