"""What one prompt returned, held against the truth of another: how much of a score would be there without the words?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Swapped:
    """Dice with the truth of one concept in the image; None where nothing else was asked."""

    answers: float | None  # mean over what was answered to the other concepts in the image
    truths: float | None  # mean over their truths: what a perfect model gives
    absent: float | None  # mean over what was answered to what is not in the image; a perfect model gives 0


NOT_SWAPPED = Swapped(None, None, None)


def swapped_dice(matrix: Floats, perfect: Floats, wrong: Floats) -> list[Swapped]:
    """One for each of the C concepts in the image.

    Args:
        matrix: [C, C] Dice of what was answered to each (row) with each truth.
        perfect: [C, C] of each truth with each.
        wrong: [A, C] of what was answered to A concepts that are not there.
    """
    others = ~np.eye(len(matrix), dtype=bool)
    return [
        Swapped(*(_mean(values) for values in (matrix[own, i], perfect[own, i], wrong[:, i])))
        for i, own in enumerate(others)
    ]


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if values.size else None
