"""What one prompt returned, held against the truth of another: how much of a score would be there without the words?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medsam3.layouts.instances import Mask
from medsam3.layouts.packed_masks import Floats, dice_matrix, pack


@dataclass(frozen=True)
class Swapped:
    """Dice with the truth of one concept in the image; None where nothing else was asked."""

    answers: float | None  # mean over what was answered to the other concepts in the image
    truths: float | None  # mean over their truths: what a perfect model gives
    absent: float | None  # mean over what was answered to what is not in the image; a perfect model gives 0


def swapped_dice(
    answers: Mapping[str, Mask], truths: Mapping[str, Mask], absent: Sequence[Mask]
) -> tuple[dict[str, Swapped], Floats]:
    """
    Args:
        answers, truths: concept in the image -> its mask [H, W]; the same C concepts in the same order, one or more.
        absent: answers to what is not there.

    Returns:
        Of each concept; and Dice [C, C] of each answer with each truth.
    """
    size = next(iter(truths.values())).shape
    true = pack(truths.values(), size)
    matrix, perfect = dice_matrix(pack(answers.values(), size), true), dice_matrix(true, true)
    wrong = dice_matrix(pack(absent, size), true)
    others = ~np.eye(len(truths), dtype=bool)
    found = {
        concept: Swapped(*(_mean(values) for values in (matrix[own, i], perfect[own, i], wrong[:, i])))
        for i, (concept, own) in enumerate(zip(truths, others, strict=True))
    }
    return found, matrix


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if values.size else None
