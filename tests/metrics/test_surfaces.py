"""NSD and HD95 by hand, against values of MONAI and DeepMind (tests/golden/surfaces.npz), and against MONAI itself."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from medsam3.metrics import surfaces
from medsam3.metrics.surfaces import hd95, nsd, robust_hausdorff

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "surfaces.npz"


@dataclass
class Case:
    prediction: np.ndarray
    truth: np.ndarray
    spacing: list[float]
    tolerance: float
    nsd_monai: float
    nsd_deepmind: float
    hd95_monai: float
    robust_hausdorff_deepmind: float


def golden_cases() -> Iterator[Case]:
    """60 pairs, 2D and 3D, pixels and millimetres: empty, full, one pixel, noise, blobs, lines; none square by rule."""
    with np.load(GOLDEN) as file:
        data = dict(file)
    start = 0
    for n, (shape, spacing) in enumerate(zip(data["shape"], data["spacing"], strict=True)):
        size = 2 * int(shape.prod())
        pair = np.unpackbits(data["bits"][start : start + -(-size // 8)])[:size].astype(bool).reshape(2, *shape)
        start += -(-size // 8)
        prediction, truth = pair if spacing[0] else pair[:, 0]
        named = {key: float(data[key][n]) for key in Case.__annotations__ if key in data and key != "spacing"}
        yield Case(prediction, truth, [float(s) for s in spacing if s], **named)


def dot(*at: int, size: tuple[int, ...] = (9, 14)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[at] = True
    return mask


@pytest.mark.parametrize("sparse", [0.0, math.inf], ids=["distance transform", "tree"])
def test_equal_to_monai_and_deepmind(sparse: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surfaces, "_SPARSE", sparse)
    cases = list(golden_cases())
    assert len(cases) == 60
    for n, case in enumerate(cases):
        masks, spacing = (case.prediction, case.truth), case.spacing
        found = nsd(*masks, case.tolerance, spacing)
        assert found == pytest.approx(case.nsd_deepmind, rel=0, abs=1e-12), n
        assert found == pytest.approx(case.nsd_monai, rel=0, abs=1e-6), n
        assert hd95(*masks, spacing) == pytest.approx(case.hd95_monai, rel=3e-6), n
        assert robust_hausdorff(*masks, spacing) == pytest.approx(case.robust_hausdorff_deepmind, rel=1e-12), n


def test_equal_to_monai_where_it_is_installed() -> None:
    metrics = pytest.importorskip("monai.metrics", reason="MONAI is not installed")
    import torch

    rng = np.random.default_rng(5)
    for n in range(60):
        shape = tuple(rng.integers(3, 12, 3)) if n % 3 == 0 else tuple(rng.integers(3, 80, 2))
        masks = [ndimage.gaussian_filter(rng.standard_normal(shape), 2) > 0.02 for _ in range(2)]
        if not all(mask.any() for mask in masks):
            continue
        spacing, tolerance = rng.uniform(0.3, 3, len(shape)).tolist(), float(rng.uniform(0.1, 3))
        tensors = [torch.from_numpy(mask)[None, None] for mask in masks]
        options = {"include_background": True, "spacing": spacing}
        expected = metrics.compute_surface_dice(*tensors, [tolerance], use_subvoxels=True, **options)
        assert nsd(*masks, tolerance, spacing) == pytest.approx(float(expected), abs=1e-6)
        expected = metrics.compute_hausdorff_distance(*tensors, percentile=95, **options)
        assert hd95(*masks, spacing) == pytest.approx(float(expected), rel=1e-5)


def test_two_pixels_by_hand() -> None:
    # the outline of a pixel passes its 4 corners; of those of the first, 2 lie 2 px and 2 lie 3 px from the second's
    a, b = dot(4, 3), dot(4, 6)
    assert [nsd(a, b, t, (1, 1)) for t in (1.99, 2, 2.99, 3)] == [0.0, 0.5, 0.5, 1.0]
    assert hd95(a, b, (1, 1)) == robust_hausdorff(a, b, (1, 1)) == 3.0
    # the same in millimetres: columns of 0.1, rows of 5; 3 x 0.1 is a hair above 0.3 in floating point and still counts
    assert hd95(a, b, (5, 0.1)) == pytest.approx(0.3)
    assert nsd(a, b, 0.3, (5, 0.1)) == 1.0
    assert nsd(a, b, 0.3, (0.1, 5)) == 0.0 and hd95(a, b, (0.1, 5)) == 15.0


def test_the_area_of_every_cell_is_deepminds() -> None:
    # their codes count the pixels of a cell along the axes in the other order: the table of the reversed spacing
    areas = np.load(GOLDEN)["areas_deepmind"]
    np.testing.assert_allclose(surfaces._sizes((1.5, 2.0, 0.7)), areas, rtol=1e-12)


def test_lengths_and_areas_of_outlines_by_hand() -> None:
    # a 2 x 3 box of pixels: four half diagonals, two sides of 1 and two of 2 between pixel centres, plus ...
    outline, lengths = surfaces._surface(np.pad(np.ones((2, 3), bool), 1), (1.0, 1.0))
    assert outline.sum() == 10 and lengths.sum() == pytest.approx(4 * math.sqrt(0.5) + 2 * 1 + 2 * 2)
    outline, areas = surfaces._surface(np.pad(np.ones((1, 1, 1), bool), 1), (1.0, 2.0, 3.0))
    # an octahedron through (.5, 0, 0), (0, 1, 0), (0, 0, 1.5): eight triangles of half |cross product|
    assert outline.sum() == 8
    assert areas.sum() == pytest.approx(8 * 0.5 * np.linalg.norm(np.cross([-0.5, 1, 0], [-0.5, 0, 1.5])))


def test_empty_masks() -> None:
    empty, full = np.zeros((5, 7), bool), np.ones((5, 7), bool)
    assert nsd(empty, empty, 2, (1, 1)) == 1.0
    assert hd95(empty, empty, (1, 1)) == robust_hausdorff(empty, empty, (1, 1)) == 0.0
    for masks in ((empty, full), (full, empty)):
        assert nsd(*masks, 100, (1, 1)) == 0.0
        assert hd95(*masks, (1, 1)) == robust_hausdorff(*masks, (1, 1)) == math.inf
    # the border of the image is outline: full masks agree, and a frame of one pixel less does not at tolerance 0
    assert nsd(full, full, 0, (1, 1)) == 1.0 and hd95(full, full, (1, 1)) == 0.0
    inner = np.pad(full[1:-1, 1:-1], 1)
    assert nsd(full, inner, 0.5, (1, 1)) == 0.0 and nsd(full, inner, 1.5, (1, 1)) == 1.0


def test_order_and_place_do_not_matter() -> None:
    rng = np.random.default_rng(1)
    a, b = (ndimage.gaussian_filter(rng.standard_normal((40, 70)), 4) > 0 for _ in range(2))
    spacing = (0.7, 1.3)
    for measure in (lambda *masks: nsd(*masks, 1.7, spacing), lambda *masks: hd95(*masks, spacing)):
        value = measure(a, b)
        assert 0 < value < 70
        assert measure(b, a) == pytest.approx(value, abs=1e-12)
        assert measure(np.pad(a, 9), np.pad(b, 9)) == pytest.approx(value, abs=1e-12)
        assert measure(a[::-1], b[::-1]) == pytest.approx(value, abs=1e-12)
    # a volume of one slice with thick slices: the same distances within it
    assert hd95(a[None], b[None], (100.0, *spacing)) <= hd95(a, b, spacing)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction": np.ones((5, 7), np.uint8)}, "masks of uint8"),
        ({"prediction": np.ones((7, 5), bool)}, r"\[7, 5\] and bool \[5, 7\]: must be bool and of one shape"),
        ({"spacing": (1, 1, 1)}, "must be 2 positive numbers"),
        ({"spacing": (1, 0)}, r"spacing=\[1, 0\]: must be 2 positive numbers"),
        ({"tolerance": -1}, "tolerance=-1: must be a finite number"),
        ({"tolerance": math.nan}, "tolerance=nan"),
    ],
)
def test_bad_input_is_refused(change: dict, message: str) -> None:
    good = {"prediction": np.ones((5, 7), bool), "truth": np.ones((5, 7), bool), "tolerance": 1, "spacing": (1, 1)}
    with pytest.raises(ValueError, match=message):
        nsd(**(good | change))


@pytest.mark.parametrize("slices", [2, 5])
def test_a_cut_through_what_goes_on_is_no_outline(slices):
    """An extruded shape has the NSD of its section, wherever it is cut, as areas are lengths times height."""
    rows, columns = np.mgrid[:40, :50]
    disc = (rows - 20) ** 2 + (columns - 25) ** 2 < 12**2
    other = (rows - 20) ** 2 + (columns - 28) ** 2 < 10**2
    solid, second = (np.repeat(section[None], slices, axis=0) for section in (disc, other))
    section = nsd(disc, other, 2.0, (1.0, 0.8))
    assert 0.2 < section < 0.8
    assert nsd(solid, second, 2.0, (3.0, 1.0, 0.8), cut=(True, True)) == pytest.approx(section, abs=1e-12)
    assert nsd(solid, second, 2.0, (3.0, 1.0, 0.8)) > section + 0.05  # the same faces on both
    one_end = nsd(solid, second, 2.0, (3.0, 1.0, 0.8), cut=(False, True))
    assert section < one_end < nsd(solid, second, 2.0, (3.0, 1.0, 0.8))
    inside = np.pad(solid, ((1, 1), (0, 0), (0, 0))), np.pad(second, ((1, 1), (0, 0), (0, 0)))
    whole = nsd(*inside, 2.0, (3.0, 1.0, 0.8))
    assert nsd(*inside, 2.0, (3.0, 1.0, 0.8), cut=(True, True)) == whole  # nothing reaches the cut
    assert np.isnan(nsd(solid[:1], second[:1], 2.0, (3.0, 1.0, 0.8), cut=(True, True)))
