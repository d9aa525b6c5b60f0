"""The pixels of shapes, counted by hand or by Pick's theorem."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_masks

from medsam3.layouts.shapes import CocoRegion, Outline, RunLengths, UnusableShapeError, fill
from tests.annotation_files import drawn

SIZE = (8, 10)  # height, width


def outline(*points) -> Outline:
    return Outline("", "shape", points)


def picture(*rows: str) -> np.ndarray:
    return np.array([[character == "#" for character in row] for row in rows])


# Outlines: a pixel belongs to them if its centre, at whole numbers, is inside or on the line


@pytest.mark.parametrize(
    "points, rows",
    {
        "rectangle on pixel centres": (
            [(2, 1), (4, 1), (4, 2), (2, 2)],
            ["......", "..###.", "..###.", "......"],
        ),
        "rectangle between pixel centres": (
            [(1.5, 0.5), (4.4, 0.5), (4.4, 2.4), (1.5, 2.4)],
            ["......", "..###.", "..###.", "......"],
        ),
        "triangle": ([(0, 0), (3, 0), (0, 3)], ["####..", "###...", "##....", "#....."]),
        "diamond, the other way round": ([(2, 0), (0, 2), (2, 4), (4, 2)], ["..#...", ".###..", "#####.", ".###.."]),
        "closed explicitly": ([(1, 1), (3, 1), (3, 2), (1, 2), (1, 1)], ["......", ".###..", ".###..", "......"]),
        "concave": (
            [(0, 0), (4, 0), (4, 3), (3, 3), (3, 1), (1, 1), (1, 3), (0, 3)],
            ["#####.", "#####.", "##.##.", "##.##."],
        ),
        "bow tie": ([(0, 0), (4, 4), (4, 0), (0, 4)], ["#...#.", "##.##.", "#####.", "##.##."]),
        "line there and back": ([(1, 2), (4, 2), (2, 2)], ["......", "......", ".####.", "......"]),
    }.values(),
)
def test_an_outline_covers_the_pixel_centres_in_and_on_it(points, rows):
    assert (drawn(outline(*points), (4, 6)) == picture(*rows)).all()


def test_what_an_outline_encloses_twice_is_outside():
    ring = [(0, 0), (6, 0), (6, 6), (0, 6), (0, 0), (2, 2), (4, 2), (4, 4), (2, 4), (2, 2)]
    assert drawn(outline(*ring), (8, 8)).sum() == 49 - 1  # of the inner square only the middle is not on a line


def test_an_outline_is_clipped_to_the_image():
    assert (drawn(outline((-5, -5), (2, -5), (2, 2), (-5, 2))) == drawn(outline((0, 0), (2, 0), (2, 2), (0, 2)))).all()
    assert drawn(outline((-100, -100), (100, -100), (100, 100), (-100, 100))).all()
    corner = drawn(outline((7.5, 6.5), (50, 6.5), (50, 50), (7.5, 50)))
    assert corner.sum() == 2 and corner[7, 8:].all()


def test_lattice_polygons_have_as_many_pixels_as_pick_says():
    """Points of the lattice in and on a simple polygon: A + B / 2 + 1, A its area, B the points on its line."""
    random = np.random.RandomState(3)
    checked = 0
    while checked < 300:
        angles = np.sort(random.rand(random.randint(3, 12))) * 2 * np.pi
        if np.diff(np.append(angles, angles[0] + 2 * np.pi)).max() > 2.8:
            continue  # the centre must be inside, so that the polygon does not cross itself
        radii = random.uniform(15, 60, angles.shape)
        points = np.round(70 + radii * np.stack([np.cos(angles), np.sin(angles)])).T.astype(int)
        if len(np.unique(points, axis=0)) < len(points):
            continue
        following = np.roll(points, -1, axis=0)
        twice_area = abs(int((points[:, 0] * following[:, 1] - points[:, 1] * following[:, 0]).sum()))
        on_line = int(np.gcd(*np.abs(following - points).T).sum())
        assert 2 * fill(points.astype(float), (141, 141)).mask.sum() == twice_area + on_line + 2
        checked += 1


@pytest.mark.parametrize(
    "points, reason",
    [
        ([], "0 points"),
        ([(1, 1), (5, 5)], "2 points"),
        ([(1, 1), (5, 5), (1, 1)], "2 points"),
        ([(1, 1), (5, float("nan")), (3, 3)], "not a number"),
        ([(20, 1), (25, 1), (25, 5)], "no pixel of the image"),
        ([(1.2, 1.2), (1.8, 1.2), (1.5, 1.8)], "no pixel of the image"),  # between the centres
    ],
)
def test_an_outline_without_a_pixel_is_unusable(points, reason):
    with pytest.raises(UnusableShapeError, match=reason):
        outline(*points).pixels(SIZE)


# COCO: the centre of the first pixel is at (0.5, 0.5)


def test_coco_outlines_are_drawn_from_the_corner_of_the_first_pixel():
    mask = drawn(CocoRegion("", "", [[2, 3, 5, 3, 5, 7, 2, 7]]))
    assert mask.sum() == 3 * 4 and mask[3:7, 2:5].all()
    assert drawn(CocoRegion("", "", [[-5, -5, 2, -5, 2, 2, -5, 2]])).sum() == 4


def test_parts_of_a_coco_region_are_one_shape():
    mask = drawn(CocoRegion("", "", [[0, 0, 2, 0, 2, 2, 0, 2], [5, 5, 8, 5, 8, 7, 5, 7]]))
    assert mask[:2, :2].all() and mask[5:7, 5:8].all() and mask.sum() == 4 + 6


def test_coco_run_lengths_compressed_or_not():
    truth = np.zeros(SIZE, bool)
    truth[2:5, 3:5] = True  # column by column: 26 empty, 3, 5 empty, 3, 43 empty
    assert (drawn(CocoRegion("", "", {"size": list(SIZE), "counts": [26, 3, 5, 3, 43]})) == truth).all()
    text = coco_masks.encode(np.asfortranarray(truth.astype(np.uint8)))["counts"].decode()
    assert (drawn(CocoRegion("", "", {"size": list(SIZE), "counts": text})) == truth).all()


def test_a_coco_region_that_is_not_right():
    with pytest.raises(UnusableShapeError, match="4 numbers"):
        CocoRegion("", "", [[1, 1, 5, 5]]).pixels(SIZE)  # pycocotools would draw a box
    with pytest.raises(UnusableShapeError, match="no outline"):
        CocoRegion("", "", []).pixels(SIZE)
    with pytest.raises(ValueError, match=r"of an image of \(5, 5\) px"):
        CocoRegion("", "", {"size": [5, 5], "counts": [25]}).pixels(SIZE)


def test_a_coordinate_of_a_damaged_file_is_said():
    with pytest.raises(UnusableShapeError, match=r"a coordinate of 1e\+30 px"):
        Outline("", "", ((1, 1), (1e30, 1), (5, 5))).pixels(SIZE)


@pytest.mark.parametrize("counts", [[26, 3, 5, 3, 42], [26, 3, 5, 3, 44], [10, 20], [], "5220003", "52"])
def test_run_lengths_that_do_not_add_up_to_the_image_are_refused(counts):
    with pytest.raises(ValueError, match=r"run lengths of \d+ px together, but the image has 80"):
        CocoRegion("", "", {"size": list(SIZE), "counts": counts}).pixels(SIZE)
    with pytest.raises(ValueError, match="neither polygons nor run lengths"):
        CocoRegion("", "", [1, 1, 5, 1, 5, 5]).pixels(SIZE)


# Run lengths


def test_absolute_starts_count_from_one_down_the_columns():
    mask = drawn(RunLengths("", "", "1 2 10 3", relative=False))
    expected = np.zeros(SIZE, bool)
    expected[0:2, 0] = expected[1:4, 1] = True  # 10 is the second pixel of the second column of 8
    assert (mask == expected).all()


def test_relative_starts_count_from_the_end_of_the_run_before():
    mask = drawn(RunLengths("", "", "1 2 6 3", relative=True))
    expected = np.zeros(SIZE, bool)
    expected[1:3, 0] = expected[1:4, 1] = True  # pixel 1 to 2, then six further, pixel 9 to 11
    assert (mask == expected).all()


def test_a_run_can_reach_the_last_pixel_and_no_further():
    assert drawn(RunLengths("", "", "80 1", relative=False))[7, 9]
    assert drawn(RunLengths("", "", "0 80", relative=True)).all()
    for runs, relative in (("80 2", False), ("0 1", False), ("79 2", True), ("5 0", False)):
        with pytest.raises(ValueError, match="outside the image of 8 x 10 px"):
            RunLengths("", "", runs, relative).pixels(SIZE)


@pytest.mark.parametrize("runs, reason", [("1 2 3", "pairs.*3 numbers"), ("1 two", "no whole numbers: '1 two'")])
def test_run_lengths_that_are_none(runs, reason):
    with pytest.raises(ValueError, match=reason):
        RunLengths("", "", runs, relative=False).pixels(SIZE)
