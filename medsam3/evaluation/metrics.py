"""Dice, IoU, and the rule that makes one non-overlapping map of several concepts. H x W: the original image size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def dice(prediction: Mask, truth: Mask) -> float:
    """2 |A and B| / (|A| + |B|) of two [H, W] masks; 1 when both are empty (paper, section 4.2)."""
    total = int(prediction.sum()) + int(truth.sum())
    return 1.0 if total == 0 else 2.0 * int((prediction & truth).sum()) / total


def iou(prediction: Mask, truth: Mask) -> float:
    """|A and B| / |A or B| of two [H, W] masks; 1 when both are empty (paper, section 4.2)."""
    union = int((prediction | truth).sum())
    return 1.0 if union == 0 else int((prediction & truth).sum()) / union


def resolve_overlaps(masks: Mask, confidences: NDArray[np.floating]) -> Mask:
    """Give each pixel that several masks claim to the one with the highest confidence there (paper, section 4.2).

    Args:
        masks: [C, H, W], one mask per concept.
        confidences: [C, H, W], confidence of each concept at each pixel. On a tie the first concept wins.

    Returns:
        [C, H, W], at most one concept per pixel; every pixel that was covered stays covered.
    """
    if len(masks) < 2:
        return masks
    claims = np.where(masks, confidences, -np.inf)
    winner = claims.argmax(axis=0)
    return masks & (np.arange(len(masks))[:, None, None] == winner)
