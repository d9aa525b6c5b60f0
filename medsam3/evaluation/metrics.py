"""Dice and IoU. H x W: the original image size."""

from __future__ import annotations

from medsam3.layouts.instances import Mask


def dice(prediction: Mask, truth: Mask) -> float:
    """2 |A and B| / (|A| + |B|) of two [H, W] masks; 1 when both are empty (paper, section 4.2)."""
    total = int(prediction.sum()) + int(truth.sum())
    return 1.0 if total == 0 else 2.0 * int((prediction & truth).sum()) / total


def iou(prediction: Mask, truth: Mask) -> float:
    """|A and B| / |A or B| of two [H, W] masks; 1 when both are empty (paper, section 4.2)."""
    union = int((prediction | truth).sum())
    return 1.0 if union == 0 else int((prediction & truth).sum()) / union
