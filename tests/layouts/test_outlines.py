"""Filling: holes, outlines, outlines that the image border cuts, and what cannot be filled."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from medsam3.layouts.outlines import fill_holes, fill_outlines


def ellipse(centre, radii, size=(120, 160)) -> np.ndarray:
    rows, columns = np.mgrid[: size[0], : size[1]]
    return ((rows - centre[0]) / radii[0]) ** 2 + ((columns - centre[1]) / radii[1]) ** 2 <= 1


def outline_of(region) -> np.ndarray:
    """Pixels of the region with a neighbour outside it; the border of the image is no neighbour."""
    return region & ~ndimage.binary_erosion(region, border_value=1)


def test_holes_are_what_the_border_cannot_reach():
    mask = np.random.RandomState(3).rand(60, 80) > 0.45
    assert np.array_equal(fill_holes(mask), ndimage.binary_fill_holes(mask))
    empty, full = np.zeros((4, 5), bool), np.ones((4, 5), bool)
    assert not fill_holes(empty).any() and fill_holes(full).all()


def test_a_closed_outline_becomes_its_region():
    region = ellipse((60, 70), (40, 55))
    line = outline_of(region)
    assert line.sum() < 0.1 * region.sum()
    assert np.array_equal(fill_outlines(line), region)


@pytest.mark.parametrize(
    "centre, radii",
    [((20, 80), (40, 50)), ((100, 30), (50, 60)), ((60, 80), (45, 100)), ((60, 150), (30, 40))],
    ids=["by one side", "at a corner", "by two opposite sides", "less than half is left"],
)
def test_an_outline_cut_by_the_border_is_closed_along_it(centre, radii):
    region = ellipse(centre, radii)
    line = outline_of(region)
    assert np.array_equal(ndimage.binary_fill_holes(line), line)  # what filling alone leaves
    assert np.array_equal(fill_outlines(line), region)


def test_regions_that_are_filled_already_stay_as_they_are():
    mask = ellipse((60, 70), (40, 55)) | ellipse((5, 150), (15, 15))
    mask[100, 100] = True
    assert np.array_equal(fill_outlines(mask), mask)
    assert not fill_outlines(np.zeros((5, 5), bool)).any()


def test_several_outlines_are_several_regions():
    regions = ellipse((30, 30), (20, 20)), ellipse((80, 110), (25, 40))
    lines = outline_of(regions[0]) | outline_of(regions[1])
    assert np.array_equal(fill_outlines(lines), regions[0] | regions[1])


def test_an_outline_with_a_gap_is_an_error_that_names_the_place():
    line = outline_of(ellipse((60, 70), (40, 55)))
    line[:, 60:75] = False
    line[60:, :] = False
    with pytest.raises(ValueError, match=r"^the outline at rows \d+ to 59, columns \d+ to 59 is not closed"):
        fill_outlines(line)
