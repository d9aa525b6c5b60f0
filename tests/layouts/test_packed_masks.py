"""Overlaps counted on bits against overlaps counted pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest

from medsam3.layouts.instances import Instances
from medsam3.layouts.packed_masks import intersections, iou_matrix, pack, pack_instances
from medsam3.metrics.masks import iou
from tests.metrics.test_masks import overlap


def random_masks(rng: np.random.Generator, count: int, size: tuple[int, ...]) -> np.ndarray:
    """Boxes with holes; some empty, some of one pixel, some full."""
    masks = np.zeros((count, *size), bool)
    for i, mask in enumerate(masks):
        window = tuple(slice(*sorted(rng.integers(0, side + 1, 2).tolist())) for side in size)
        mask[window] = rng.random(mask[window].shape) < 0.8
        if i % 5 == 0:
            mask[...] = False
        if i % 5 == 1:
            mask.reshape(-1)[rng.integers(mask.size)] = True
        if i % 7 == 2:
            mask[...] = True
    return masks


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (8, 8), (64, 3), (1, 200), (33, 65), (5, 6, 7)])
def test_overlaps_equal_those_of_the_pixels(size: tuple[int, ...]) -> None:
    rng = np.random.default_rng(sum(size))
    first, second = random_masks(rng, 12, size), random_masks(rng, 9, size)
    a, b = pack(first, size), pack(second, size)
    assert a.areas_px.tolist() == [int(mask.sum()) for mask in first]
    assert intersections(a, b).tolist() == [[int((p & t).sum()) for t in second] for p in first]
    expected = [[iou(overlap(p, t)) if p.any() and t.any() else 0.0 for t in second] for p in first]
    assert iou_matrix(a, b).tolist() == expected


def test_instances_are_packed_as_their_full_masks() -> None:
    rng = np.random.default_rng(0)
    for size in ((1, 1), (7, 9), (40, 100), (3, 64)):
        instances = Instances.separate(random_masks(rng, 20, size), size)
        ours, full = pack_instances(instances), pack(instances.stack(), size)
        assert len(ours) == len(instances) == len(full)
        assert ours.starts.tolist() == full.starts.tolist() and ours.areas_px.tolist() == instances.areas_px.tolist()
        assert all(np.array_equal(x, y) for x, y in zip(ours.words, full.words, strict=True))


def test_no_masks_and_wrong_masks() -> None:
    none, one = pack([], (4, 5)), pack(np.ones((1, 4, 5), bool), (4, 5))
    assert intersections(none, one).shape == (0, 1) and iou_matrix(one, none).shape == (1, 0)
    with pytest.raises(ValueError, match=r"uint8 \[4, 5\].*must be bool \[4, 5\]"):
        pack(np.ones((1, 4, 5), np.uint8), (4, 5))
    with pytest.raises(ValueError, match=r"\[5, 4\].*must be bool \[4, 5\]"):
        pack(np.ones((1, 5, 4), bool), (4, 5))
    with pytest.raises(ValueError, match=r"\[4, 5\] and \[5, 4\]"):
        intersections(one, pack([], (5, 4)))
