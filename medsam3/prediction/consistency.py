"""What the neighbours say: masks of single slices made consistent in three dimensions.

D slices of H x W px.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsam3.layouts.instances import Mask

TOUCHING = np.ones((3, 3, 3), bool)  # voxels that share a face, an edge or a corner


def smoothed(values: NDArray[np.floating], sigma_slices: float) -> NDArray[np.floating]:
    """[D, H, W] blurred from slice to slice by a Gaussian, beyond the ends as at the ends.

    A slice is worked on at a time, so that no second volume in full precision is needed.
    """
    reach = max(1, round(3 * sigma_slices))
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (offsets / sigma_slices) ** 2)
    weights /= weights.sum()
    result = np.empty_like(values)
    for index in range(len(values)):
        near = np.clip(index + offsets, 0, len(values) - 1)
        result[index] = np.tensordot(weights, values[near].astype(np.float32), axes=1)
    return result


def hysteresis(mask: Mask, seeds: Mask) -> Mask:
    """The connected parts of a mask [D, H, W] that hold a voxel of the seeds."""
    parts, count = ndimage.label(mask, TOUCHING)
    kept = np.zeros(count + 1, bool)
    kept[np.unique(parts[seeds])] = True
    kept[0] = False
    return kept[parts]


def large_parts(mask: Mask, least_voxels: float, largest_only: bool) -> Mask:
    """The connected parts of a mask [D, H, W] of at least so many voxels, or the largest of these alone."""
    parts, count = ndimage.label(mask, TOUCHING)
    if not count:
        return mask
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    sizes[0] = 0
    kept = sizes >= max(least_voxels, 1)
    if largest_only:
        kept &= np.arange(count + 1) == sizes.argmax()
    return kept[parts]
