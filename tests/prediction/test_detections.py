"""Single instances out of the same pass: all of a score, as they are, whatever the rules make of them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from medsam3.layouts.packed_masks import iou_matrix, pack
from medsam3.prediction import detections
from tests.prediction.test_image import BOTH, IMAGE, THREE, predictor

SCORES = [0.75 / (1 + math.exp(-logit)) for logit in THREE["liver"][1]]  # 0.20, 0.375, 0.34
PIXELS = np.array(THREE["liver"][2])[:, None] > 0  # [3, 1, 4]


def found(answers, lowest, asked=("liver",), rules=("union",), **options):
    model = predictor(answers, rules=rules)
    return [prediction.detections for prediction in model.predict(IMAGE, asked, detected_from=lowest, **options)]


@pytest.mark.parametrize(("lowest", "kept"), [(0.0, [0, 1, 2]), (0.3, [1, 2]), (0.35, [1]), (0.4, [])])
def test_all_predictions_of_a_score_come_in_the_models_order(lowest, kept):
    (own,) = found(THREE, lowest)
    assert own.scores.tolist() == pytest.approx([SCORES[i] for i in kept])
    assert np.array_equal(iou_matrix(own.masks, pack(PIXELS, (1, 4))), np.eye(3)[kept])


def test_a_score_that_is_equal_counts_as_in_the_union():
    (own,) = found({"liver": (math.inf, [math.log(0.7 / 0.3)], [[2.0, 2.0]])}, 0.7)
    assert own.scores.tolist() == [np.float32(0.7)]  # 0.69999999
    assert dataclasses.replace(own, shown_from=0.7).shown.tolist() == [True]


def test_nothing_is_made_where_nothing_is_asked():
    assert found(THREE, None) == [None]


def test_they_keep_the_pixels_that_another_concept_won():
    liver, kidney = found(BOTH, 0.1, ["liver", "kidney"], exclusive=["liver", "kidney"])
    assert liver.masks.areas_px.tolist() == kidney.masks.areas_px.tolist() == [4]


def test_the_rules_are_the_same_with_and_without_them():
    model = predictor(THREE, rules=["union", "top1", "semantic"])
    alone, beside = (model.predict(IMAGE, ["liver"], detected_from=lowest)[0] for lowest in (None, 0.0))
    for rule, answer in alone.answers.items():
        assert np.array_equal(answer.mask, beside.answers[rule].mask) and answer.score == beside.answers[rule].score


@pytest.mark.parametrize("at_once", [1, 2, 8])
def test_few_at_a_time_give_the_same(at_once, monkeypatch):
    monkeypatch.setattr(detections, "RESIZED_AT_ONCE", at_once)
    liver, other = found(THREE | {"kidney": (0.0, [0.0, 1.0, 2.0], THREE["liver"][2])}, 0.0, ["liver", "kidney"])
    for own in (liver, other):
        assert np.array_equal(iou_matrix(own.masks, pack(PIXELS, (1, 4))), np.eye(3))


def test_an_instance_that_is_not_finite_is_refused_also_where_no_rule_looks():
    broken = predictor({"liver": (0.0, [0.0], [[math.nan, 1.0]])}, threshold=0.9)
    detect = broken.detector.detect
    broken.detector.detect = lambda *inputs: dataclasses.replace(detect(*inputs), semantic=None)
    assert not broken.predict(IMAGE, ["liver"])[0].answer.mask.any()
    with pytest.raises(ValueError, match="not finite for: liver"):
        broken.predict(IMAGE, ["liver"], detected_from=0.1)
