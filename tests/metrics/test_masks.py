"""Dice and IoU against hand-counted pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medsam3.evaluation.outline_workers import OutlineWorkers
from medsam3.metrics.masks import MaskPair, Overlap, check_metrics, dice, iou, measure, precision, recall


def _mask(*rows: str) -> np.ndarray:
    return np.array([[c == "x" for c in row] for row in rows])


def overlap(a: np.ndarray, b: np.ndarray) -> Overlap:
    return Overlap(int(a.sum()), int(b.sum()), int((a & b).sum()))


def measured(a: np.ndarray, b: np.ndarray, names: list[str], spacing: tuple[float, float] = (1, 1)) -> dict:
    values = measure(overlap(a, b), names)
    return values | OutlineWorkers(names, 0).submit(MaskPair(a, b, spacing)).result()


def test_dice_and_iou_of_hand_counted_masks():
    a = _mask("xx.", "xx.")  # 4 pixels
    b = _mask(".xx", "...")  # 2 pixels, 1 shared, union 5
    assert dice(overlap(a, b)) == 2 * 1 / 6
    assert iou(overlap(a, b)) == 1 / 5
    assert precision(overlap(a, b)) == 1 / 4 and recall(overlap(a, b)) == 1 / 2
    assert measured(a, b, ["iou", "dice"]) == {"iou": 1 / 5, "dice": 2 / 6}


def test_two_empty_masks_agree_and_one_empty_mask_does_not():
    empty, full = _mask("..."), _mask("xxx")
    assert dice(overlap(empty, empty)) == iou(overlap(empty, empty)) == 1.0
    assert dice(overlap(empty, full)) == iou(overlap(full, empty)) == 0.0
    for metric in (precision, recall):
        assert metric(overlap(empty, empty)) == 1.0
        assert metric(overlap(empty, full)) == metric(overlap(full, empty)) == 0.0


def test_distances_are_in_the_spacing_of_the_file():
    line, moved = np.zeros((9, 9), bool), np.zeros((9, 9), bool)
    line[2], moved[6] = True, True  # outlines at 2, 3 and 6, 7
    assert measured(moved, line, ["hd95", "nsd"]) == {"hd95": 4.0, "nsd": 0.0}
    assert measured(moved, line, ["hd95", "nsd"], (0.5, 0.5)) == {"hd95": 2.0, "nsd": 1.0}
    assert measured(np.zeros_like(line), line, ["hd95"]) == {"hd95": math.inf}


@pytest.mark.parametrize("names", [["iou"], ["dice", "dice"], ["dice", "hd59"], []])
def test_metrics_that_are_none_twice_or_without_dice_are_refused(names):
    with pytest.raises(ValueError, match=r"evaluation\.metrics"):
        check_metrics(names)
