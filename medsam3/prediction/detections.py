"""Single instances as the model predicts them, for measures that look at each: no rule chooses, no overlap is resolved.

Shapes: Q queries, P predictions per query, N instances kept of a query, h x w mask logits, H x W the image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from medsam3.layouts.instances import Mask
from medsam3.layouts.packed_masks import PackedMasks, pack
from medsam3.model.detector import BranchOutput
from medsam3.prediction.rules import refuse_not_finite

RESIZED_AT_ONCE = 8  # masks at the original size


@dataclass(frozen=True)
class ScoredInstances:
    """Masks of a concept in an image, and how sure the model is of each."""

    scores: NDArray[np.float64]  # [N], 0..1
    masks: PackedMasks  # N of [H, W]
    shown_from: float  # prediction.union_threshold
    ranked: bool = True  # the scores come from a model; masks from files have none

    @property
    def shown(self) -> Mask:
        """[N] those that the rule `union` lays over each other; it compares in single precision, so 0.7 reaches 0.7."""
        return self.scores >= np.float32(self.shown_from)

    def __iter__(self) -> Iterator[tuple[float, Mask]]:
        """Score and mask [H, W] of each."""
        return ((score, self.masks.mask(number)) for number, score in enumerate(self.scores.tolist()))


def scored_instances(
    branch: BranchOutput,
    query: int,
    scores: Tensor,
    lowest: float,
    size: tuple[int, int],
    prompt: str,
    shown_from: float,
) -> ScoredInstances:
    """All predictions of a query that have at least a score, in the model's order; as bits, so that 200 masks of two
    megapixels take 50 MB and never exist as more than a few at once.

    Args:
        scores: [P] of the query.
        size: H, W.

    Raises:
        ValueError: masks that are not finite; names the prompt.
    """
    numbers = (scores >= lowest).nonzero().flatten()
    masks = pack(_masks(branch, query, numbers, size, prompt), size)
    return ScoredInstances(scores[numbers].double().numpy(), masks, shown_from)


def _masks(branch: BranchOutput, query: int, numbers: Tensor, size: tuple[int, int], prompt: str) -> Iterator[Mask]:
    for part in numbers.to(branch.logits.device).split(RESIZED_AT_ONCE) if len(numbers) else ():
        counts = [len(part) if number == query else 0 for number in range(branch.logits.shape[1])]
        logits = branch.masks_of(torch.full_like(part, query), part, counts).float()
        refuse_not_finite([bool(logits.isfinite().all())], [prompt])
        yield from (resized(logits, size) > 0).cpu().numpy()


def resized(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Mask logits [N, h, w] at the size of the image [N, H, W]; what is above 0 is foreground."""
    return F.interpolate(logits[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
