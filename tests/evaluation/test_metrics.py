"""Dice and IoU against hand-counted pixels; overlaps resolved pixel by pixel."""

from __future__ import annotations

import numpy as np

from medsam3.evaluation.metrics import METRICS, Comparison, dice, iou, measure
from medsam3.prediction.overlaps import resolve_overlaps


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


def test_a_disputed_pixel_goes_to_the_highest_confidence_there():
    masks = np.stack([_mask("xxx."), _mask(".xxx")])
    confidences = np.array([[[0.9, 0.2, 0.6, 0.9]], [[0.9, 0.4, 0.5, 0.1]]])
    resolved = resolve_overlaps(masks, confidences)
    assert (resolved[0] == _mask("x.x.")).all()
    assert (resolved[1] == _mask(".x.x")).all()


def test_a_confident_concept_does_not_take_pixels_outside_its_mask_and_ties_go_to_the_first():
    masks = np.stack([_mask("x.."), _mask("xx.")])
    confidences = np.ones((2, 1, 3))
    resolved = resolve_overlaps(masks, confidences)
    assert (resolved[0] == _mask("x..")).all() and (resolved[1] == _mask(".x.")).all()
    assert (resolved.any(axis=0) == masks.any(axis=0)).all()
