"""Instances: resized by area, cropped, mirrored and turned as torch and torchvision do it with whole masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as tvf

from medsam3.layouts.instances import Instances


def blobs(height: int, width: int, seed: int = 0) -> Instances:
    """Components of a smooth random mask, some at the edges, and one pixel alone."""
    mask = ndimage.gaussian_filter(np.random.RandomState(seed).rand(height, width), 2) > 0.5
    mask[: height // 4, : width // 4] = False
    mask[height // 8, width // 8] = True
    return Instances.components(mask)


@pytest.mark.parametrize("source", [(97, 61), (40, 60), (150, 333)])
@pytest.mark.parametrize("target", [(48, 48), (20, 31), (97, 61), (250, 130)])
def test_a_pixel_belongs_to_an_instance_that_covers_half_of_it(source, target):
    """torch's float resize of the whole masks is the reference; what is within 8-bit rounding of a half may differ."""
    found = blobs(*source)
    masks = torch.from_numpy(found.stack().astype(np.float32))[:, None]
    cover = torch.nn.functional.interpolate(masks, target, mode="bilinear", antialias=True)[:, 0].numpy()
    resized = found.resized(target)
    assert len(found) > 5 and resized.any(axis=(1, 2)).all()  # none is lost
    clear = (np.abs(cover - 0.5) > 0.01) & (cover.max(axis=(1, 2), keepdims=True) > 0.51)
    assert np.array_equal(resized[clear], cover[clear] > 0.5)


def test_half_is_enough_and_what_covers_less_keeps_its_most_covered_pixels():
    mask = np.zeros((40, 40), bool)
    mask[8:12, 9:12] = True  # at half size: column 5 whole, column 4 half (and its neighbour's tail)
    plain = Instances.whole(mask).resized((20, 20))[0]
    rows, columns = np.nonzero(plain)
    assert sorted(set(rows)) == [4, 5] and 5 in columns
    line = np.zeros((400, 400), bool)
    line[:, 205] = True
    thin = Instances.whole(line).resized((40, 40))[0]
    assert thin[:, 20].all() and thin.sum() == 40
    speck = np.zeros((4000, 4000), bool)
    speck[2345, 1234] = True
    assert np.argwhere(Instances.whole(speck).resized((40, 40))[0]).tolist() == [[23, 12]]
    assert np.array_equal(Instances.whole(mask).resized((40, 40))[0], mask)


def test_geometry_is_torchvisions():
    found = blobs(40, 60)
    masks, image_size = tv_tensors.Mask(torch.from_numpy(found.stack())), (40, 60)
    boxes = tv_tensors.BoundingBoxes(torch.from_numpy(found.boxes_px), format="XYXY", canvas_size=image_size)
    assert torch.equal(torch.from_numpy(found.mirrored().stack()), tvf.horizontal_flip(masks))
    assert torch.equal(torch.from_numpy(found.mirrored().boxes_px), tvf.horizontal_flip(boxes))
    assert torch.equal(torch.from_numpy(found.turned().stack()), tvf.rotate(masks, 90, expand=True))
    assert found.turned().size == (60, 40)
    window = (7, 5, 47, 38)
    part = found.cropped(window)
    expected = tvf.crop(masks, 5, 7, 33, 40)
    expected = expected[expected.any(dim=2).any(dim=1)]
    assert 0 < len(part) < len(found) and torch.equal(torch.from_numpy(part.stack()), expected)
    tight = [[c.min(), r.min(), c.max() + 1, r.max() + 1] for r, c in map(np.nonzero, expected.numpy())]
    assert part.boxes_px.tolist() == np.array(tight).tolist()
    for moved in (found.mirrored(), found.turned(), part):  # a box is where its mask is
        for mask, (x0, y0, x1, y1) in zip(moved.stack(), moved.boxes_px, strict=True):
            assert mask[y0:y1, x0:x1].sum() == mask.sum() and mask[:, x0].any() and mask[y1 - 1].any()
    assert len(found.cropped((0, 0, 1, 1))) == 0 and found.cropped((0, 0, 1, 1)).size == (1, 1)


def test_any_place_of_any_size_can_be_resized():
    """Where a target pixel begins is no whole number of source pixels; rounding must not leave the window."""
    for seed in range(300):
        draw = np.random.RandomState(seed)
        height, width, target = draw.randint(5, 1300), draw.randint(5, 1300), draw.randint(5, 1100)
        y, x = draw.randint(height), draw.randint(width)
        pixel = Instances((height, width), np.array([[x, y, x + 1, y + 1]], np.int32), (np.ones((1, 1), bool),))
        rows, columns = np.nonzero(pixel.resized((target, target))[0])
        assert rows.min() <= (y + 0.5) * target / height <= rows.max() + 1
        assert columns.min() <= (x + 0.5) * target / width <= columns.max() + 1
