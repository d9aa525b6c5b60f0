"""One non-overlapping map of several concepts. H x W: the original image size."""

from __future__ import annotations

import torch
from torch import Tensor


class Overlaps:
    """Gives each pixel that several masks claim to the one of the highest confidence there (paper, section 4.2).

    Masks come one after the other, so that only one map of confidences is kept. On a tie the earlier one wins; every
    pixel that was covered stays covered.
    """

    def __init__(self, size: tuple[int, int], device: torch.device) -> None:
        self._highest = torch.full(size, -torch.inf, device=device)
        self._owner = torch.full(size, -1, dtype=torch.int16, device=device)

    def add(self, number: int, mask: Tensor, confidence: Tensor) -> None:
        """Claim pixels for a number (0 or more): mask [H, W] bool, confidence [H, W]."""
        won = mask & (confidence > self._highest)
        self._highest[won] = confidence[won]
        self._owner[won] = number

    def mask(self, number: int) -> Tensor:
        """[H, W] bool: what a number was left with."""
        return self._owner == number
