"""Masks laid over each other: those of one concept become one, and those of several concepts share no pixel.

H x W: the original image size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medsam3.prediction.detections import RESIZED_AT_ONCE, resized
from medsam3.prediction.rules import Choice

EVERYWHERE = (slice(None), slice(None))


class Overlaps:
    """Gives each pixel that several masks claim to the one of the highest confidence there (paper, section 4.2).

    Masks come one after the other, so that only one map of confidences is kept. On a tie the lower number wins; every
    pixel that was covered stays covered.
    """

    def __init__(self, size: tuple[int, int], device: torch.device) -> None:
        self._highest = torch.full(size, -torch.inf, device=device)
        self._owner = torch.full(size, -1, dtype=torch.int16, device=device)
        self._last = -1  # the highest number so far

    def add(self, number: int, mask: Tensor, confidence: Tensor, window: tuple[slice, slice] = EVERYWHERE) -> None:
        """Claim pixels for a number (0 or more): mask [H, W] bool, confidence [H, W], both of a window of the image."""
        highest, owner = self._highest[window], self._owner[window]
        won = confidence > highest
        if number < self._last:
            won |= (confidence == highest) & (owner > number)
        won &= mask
        self._last = max(self._last, number)
        torch.where(won, confidence, highest, out=highest)
        owner.masked_fill_(won, number)

    def mask(self, number: int) -> Tensor:
        """[H, W] bool: what a number was left with."""
        return self._owner == number


def laid_over(
    choice: Choice, logits: dict[int, Tensor], size: tuple[int, int], device: torch.device, with_confidence: bool
) -> tuple[Tensor, Tensor | None]:
    """The union [H, W] of a rule's masks, and at each pixel the highest of confidence x probability."""
    mask: Tensor | None = None
    confidence: Tensor | None = None
    for start in range(0, len(choice.masks), RESIZED_AT_ONCE):
        part = slice(start, start + RESIZED_AT_ONCE)
        layers = torch.stack([logits[number] for number in choice.masks[part]])
        layers = resized(layers, size)
        covered = (layers > 0).any(dim=0)
        mask = covered if mask is None else mask | covered
        if with_confidence:
            weights = torch.tensor(choice.confidences[part], device=device)
            sure = (layers.sigmoid() * weights[:, None, None]).amax(dim=0)
            confidence = sure if confidence is None else torch.maximum(confidence, sure)
    if mask is None:
        mask = torch.zeros(size, dtype=torch.bool, device=device)
        confidence = torch.zeros(size, device=device) if with_confidence else None
    return mask, confidence
