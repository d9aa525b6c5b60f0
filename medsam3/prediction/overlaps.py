"""One non-overlapping map of several concepts. H x W: the original image size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medsam3.layouts.instances import Mask


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
