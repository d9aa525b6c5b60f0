"""Pixels counted on bits and by tensors, against pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medsam3.metrics.counting import PixelCounter
from medsam3.metrics.masks import dice
from tests.layouts.test_packed_masks import random_masks
from tests.metrics.test_masks import overlap


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (3, 65), (40, 70)])
def test_counts_are_those_of_the_pixels_wherever_they_are_counted(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(sum(size))
    predictions, truths = random_masks(rng, 9, size), random_masks(rng, 6, size)[::-1].copy()
    tensors, own = torch.from_numpy(predictions), [0, 1, 2, 3, 4, 5, 5, 0, 3]
    expected = [overlap(prediction, truths[place]) for prediction, place in zip(predictions, own, strict=True)]
    counter = PixelCounter(truths, torch.device("cpu"))
    elsewhere = PixelCounter(truths, torch.device("cpu"))
    elsewhere._there = torch.from_numpy(truths)  # as on a GPU
    for found in (counter, elsewhere):
        for masks in (predictions, tensors):
            assert found.overlaps(masks, own) == found.pairs(masks).overlaps(own) == expected
            assert found.pairs(masks).dice.tolist() == [[dice(overlap(p, t)) for t in truths] for p in predictions]
    assert counter.truth_pairs().dice.tolist() == [[dice(overlap(p, t)) for t in truths] for p in truths]


def test_masks_of_another_size_than_the_truth_are_refused() -> None:
    counter = PixelCounter([np.ones((2, 3), bool)], torch.device("cpu"))
    with pytest.raises(ValueError, match=r"\[3, 2\].*must be bool \[2, 3\]"):
        counter.overlaps([np.ones((3, 2), bool)], [0])
