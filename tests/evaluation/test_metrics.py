"""Dice and IoU against hand-counted pixels."""

from __future__ import annotations

import numpy as np

from medsam3.evaluation.metrics import METRICS, Comparison, dice, iou, measure


def _mask(*rows: str) -> np.ndarray:
    return np.array([[c == "x" for c in row] for row in rows])


def test_dice_and_iou_of_hand_counted_masks():
    a = _mask("xx.", "xx.")  # 4 pixels
    b = _mask(".xx", "...")  # 2 pixels, 1 shared, union 5
    assert dice(Comparison(a, b)) == 2 * 1 / 6
    assert iou(Comparison(a, b)) == 1 / 5
    assert measure(Comparison(a, b)) == {"dice": 2 / 6, "iou": 1 / 5} and list(METRICS) == ["dice", "iou"]


def test_two_empty_masks_agree_and_one_empty_mask_does_not():
    empty, full = _mask("..."), _mask("xxx")
    assert dice(Comparison(empty, empty)) == iou(Comparison(empty, empty)) == 1.0
    assert dice(Comparison(empty, full)) == iou(Comparison(full, empty)) == 0.0
