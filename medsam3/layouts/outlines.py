"""Regions from masks that hold only their outline, or that have holes.

Shapes: H x W the image. Lines are 8-connected, so that what they enclose is 4-connected.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from medsam3.layouts.instances import EIGHT_NEIGHBOURS, Mask

THIN = 0.25  # what covers less of its bounding box than this is a line; a filled ellipse covers 0.3 or more


def fill_holes(mask: Mask) -> Mask:
    """The [H, W] mask with all pixels that it encloses."""
    parts, count = ndimage.label(~mask)
    enclosed = np.ones(count + 1, dtype=bool)
    for border in (parts[0], parts[-1], parts[:, 0], parts[:, -1]):
        enclosed[border] = False
    enclosed[0] = True  # the mask itself
    return enclosed[parts]


def fill_outlines(mask: Mask) -> Mask:
    """The regions whose outlines a [H, W] mask holds; what is filled already stays as it is.

    An outline that the image border cuts is closed along the border: of the parts into which the lines divide the
    image, the one with the mean point of the outline, which lies on its hollow side, is the region.

    Raises:
        ValueError: an outline that encloses nothing.
    """
    filled = mask.copy()
    lines, _ = ndimage.label(mask, EIGHT_NEIGHBOURS)
    for number, window in enumerate(ndimage.find_objects(lines), start=1):
        line = lines[window] == number
        region = fill_holes(line)
        if np.count_nonzero(region) >= THIN * region.size:
            filled[window] |= region
        else:
            filled |= _hollow_side(mask, lines == number)
    return filled


def _hollow_side(mask: Mask, line: Mask) -> Mask:
    """The part of the image, divided by all lines of the mask, that holds the mean point of this line."""
    parts, _ = ndimage.label(~mask)
    rows, columns = np.nonzero(line)
    part = parts[round(rows.mean()), round(columns.mean())]
    if part == 0 or ndimage.label(~line)[1] < 2:
        raise ValueError(
            f"the outline at rows {rows.min()} to {rows.max()}, columns {columns.min()} to {columns.max()} is "
            "not closed, not even by the image border"
        )
    hollow: Mask = parts == part
    return hollow
