"""Overlaps are resolved pixel by pixel."""

from __future__ import annotations

import torch

from medsam3.prediction.overlaps import Overlaps


def resolve(*claims: tuple[str, list[float]]) -> list[str]:
    overlaps = Overlaps((1, len(claims[0][0])), torch.device("cpu"))
    for number, (pixels, confidence) in enumerate(claims):
        overlaps.add(number, torch.tensor([[pixel == "x" for pixel in pixels]]), torch.tensor([confidence]))
    return ["".join(".x"[pixel] for pixel in overlaps.mask(number)[0].int()) for number in range(len(claims))]


def test_a_disputed_pixel_goes_to_the_highest_confidence_there():
    assert resolve(("xxx.", [0.9, 0.2, 0.6, 0.9]), (".xxx", [0.9, 0.4, 0.5, 0.1])) == ["x.x.", ".x.x"]


def test_a_confident_concept_takes_no_pixels_outside_its_mask_and_ties_go_to_the_first():
    assert resolve(("x..", [1.0, 1, 1]), ("xx.", [1.0, 1, 1]), ("xxx", [1.0, 1, 0])) == ["x..", ".x.", "..x"]


def test_a_pixel_lost_to_a_surer_mask_stays_lost():
    assert resolve(("x", [0.3]), ("x", [0.9]), ("x", [0.5])) == [".", "x", "."]


def test_ties_go_to_the_lower_number_in_whatever_order_masks_come():
    """Tiles bring the same numbers again and again, on strips that overlap."""
    overlaps = Overlaps((1, 2), torch.device("cpu"))
    for number, pixels in ((2, [1, 1]), (0, [1, 0]), (1, [1, 1])):
        overlaps.add(number, torch.tensor([pixels]) > 0, torch.tensor([[0.5, 0.5]]))
    assert [overlaps.mask(number)[0].tolist() for number in range(3)] == [[True, False], [False, True], [False, False]]
