"""Mode `detector`: what a batch of slices gives, and the steps that make masks of slices consistent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from medsam3.bounds import check_numbers
from medsam3.config import PredictionConfig
from medsam3.model.detector import TextDetector
from medsam3.model.load import load_sam3
from medsam3.prediction.consistency import hysteresis, large_parts, smoothed
from medsam3.prediction.image import ImagePredictor
from medsam3.prediction.slices import Found, slice_detector
from medsam3.prediction.volume import VolumePrediction, predict_by_slice
from medsam3.prediction.volume_outputs import numbered
from tests.prediction.test_tracker import MASK, Script, config, pictures, seen, square

IMAGE_SIZE = 56
PROMPTS = ["liver", "spleen", "kidney"]


@pytest.fixture(scope="module")
def predictor() -> ImagePredictor:
    """Random weights, by two rules; half of the instances of a concept count."""
    torch.manual_seed(0)
    loaded = load_sam3("tiny", IMAGE_SIZE)
    prediction = PredictionConfig(
        rules=["top1", "union"],
        score_threshold=0.0,
        union_threshold=0.0,
        presence_threshold=0.5,
        resolve_overlaps=False,
        queries_per_pass=4,
        tile=None,
        tile_overlap=0,
    )
    predictor = ImagePredictor(TextDetector(loaded.model), loaded.tokenizer, IMAGE_SIZE, prediction, bf16=False)
    scores = [score for query in predictor.ask(pictures(5), PROMPTS) for score in query.heads.scores.tolist()]
    prediction.union_threshold = prediction.score_threshold = float(np.median(scores))
    return predictor


@pytest.mark.parametrize("rule", ["top1", "union"])
@pytest.mark.parametrize("slices_per_pass", [1, 2, 5])
def test_each_slice_is_what_its_picture_gives_in_evaluation(rule, slices_per_pass, predictor):
    slices = pictures(5)
    detect = slice_detector(predictor, PROMPTS, rule)
    volume = predict_by_slice(slices, PROMPTS, detect, config(mode="detector", slices_per_pass=slices_per_pass))
    assert volume.masks.shape == (3, 5, 40, 30) and volume.masks.any()
    for index, picture in enumerate(slices):
        for concept, prediction in enumerate(predictor.predict(picture, PROMPTS)):
            answer = prediction.answers[rule]
            differing = (volume.masks[concept, index] != answer.mask).mean()
            assert differing == 0 if slices_per_pass == 1 else differing < 0.01  # batches round otherwise
            assert volume.scores[concept, index] == pytest.approx(answer.score, abs=1e-5)
    with pytest.raises(ValueError, match="rule='semantic': must be one of top1, union"):
        slice_detector(predictor, PROMPTS, "semantic")


def test_of_overlapping_instances_the_best_stays():
    masks = [square(0, 1, 10), square(0, 0, 10), square(20, 20, 10), square(0, 8, 10)]
    found = seen(*zip((0.8, 0.9, 0.7, 0.6), masks, strict=True))  # overlaps with the best: 90 / 110, 0, 20 / 180
    assert found.distinct(0).scores.tolist() == pytest.approx([0.9, 0.8, 0.7, 0.6])
    kept = found.distinct(0.1)
    assert kept.scores.tolist() == pytest.approx([0.9, 0.7]) and torch.equal(kept.logits[1:], masks[2])
    assert found.distinct(0.12).scores.tolist() == pytest.approx([0.9, 0.7, 0.6])
    assert not len(seen().distinct(0.1).scores)


def test_masks_at_the_size_of_the_slice():
    mask, confidence = seen((0.9, square(0, 0, 16)), (0.6, square(16, 16, 16))).mask((2 * MASK, 3 * MASK))
    assert mask[:31, :47].all() and mask[33:, 49:].all() and not mask[:31, 49:].any() and not mask[33:, :47].any()
    assert confidence[5, 5] == pytest.approx(0.9, abs=0.01) and confidence[60, 90] == pytest.approx(0.6, abs=0.01)
    mask, confidence = seen().mask((10, 12))
    assert mask.shape == confidence.shape == (10, 12) and not mask.any() and not confidence.any()


def predict(found: list[list[Found]], spacing_mm: Any = None, **changes: Any) -> VolumePrediction:
    names = [f"concept {i}" for i in range(len(found[0]))]
    return predict_by_slice(pictures(len(found)), names, Script(found), config(mode="detector", **changes), spacing_mm)


def test_weak_parts_stay_where_a_strong_one_touches_them():
    """On slices 0 to 3 one part, strong on 1; on 5 to 6 another one, weak although a strong one is elsewhere there."""
    part, elsewhere = square(2, 2, 8), square(20, 20, 8)
    found = [[seen((0.8 if i == 1 else 0.35, part))] for i in range(4)]
    found += [[seen()], [seen((0.9, elsewhere), (0.4, part))], [seen((0.4, part))]]
    volume = predict(found, seed_threshold=0.7)
    assert volume.masks[0].any(axis=(1, 2)).tolist() == [True] * 4 + [False, True, False]
    assert not volume.masks[0, 5, :15, :10].any() and volume.masks[0, 5, 30:, 20:].any()


def test_small_parts_go_by_their_volume():
    small, large = square(1, 1, 4), square(14, 14, 16)
    found = [[seen((0.9, large), (0.8, small))], [seen((0.9, large))], [seen()]]
    everything = predict(found, (2.0, 0.5, 0.5)).masks[0]
    small_voxels = everything[0, :15, :12].sum()
    least = 0.5 * (small_voxels + 1)  # a voxel has 0.5 mm3
    assert (predict(found, (2.0, 0.5, 0.5), min_component_mm3=least - 0.5).masks[0] == everything).all()
    without = predict(found, (2.0, 0.5, 0.5), min_component_mm3=least).masks[0]
    assert everything.sum() - without.sum() == small_voxels
    assert (predict(found, largest_component=True).masks[0] == without).all()
    assert not predict([[seen()]], largest_component=True).masks.any()
    with pytest.raises(ValueError, match="min_component_mm3=3: the file does not say how large its voxels are: set 0"):
        predict(found, min_component_mm3=3)


def test_a_slice_that_was_missed_is_filled_by_smoothing():
    mask = square(8, 8, 16)
    found = [[seen((0.9, mask)) if i not in (0, 3, 6) else seen()] for i in range(7)]
    volume = predict(found, smoothing_slices=1.0)
    assert volume.masks[0].any(axis=(1, 2)).tolist() == [False, True, True, True, True, True, False]
    assert predict(found).masks[0].any(axis=(1, 2)).tolist() == [False, True, True, False, True, True, False]


def test_smoothing_by_hand():
    values = np.zeros((5, 1, 1), np.float32)
    values[2] = 1
    weights = np.exp(-0.5 * np.arange(-3, 4) ** 2)
    weights /= weights.sum()
    np.testing.assert_allclose(smoothed(values, 1.0)[:, 0, 0], weights[1:6], rtol=1e-6)
    np.testing.assert_allclose(smoothed(np.ones((3, 2, 2), np.float16), 2.0), 1, rtol=1e-3)  # the ends do not fade


def test_parts_touch_at_corners():
    mask = np.zeros((3, 4, 4), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[2, 3, 3] = True
    seeds = np.zeros_like(mask)
    seeds[0, 0, 0] = True
    assert np.argwhere(hysteresis(mask, seeds)).tolist() == [[0, 0, 0], [1, 1, 1]]
    assert np.argwhere(large_parts(mask, 2, False)).tolist() == [[0, 0, 0], [1, 1, 1]]
    assert not large_parts(mask, 3, False).any()


def test_disputed_voxels_go_to_the_most_confident():
    one, other = square(0, 0, 20), square(10, 10, 20)
    found = [[seen((0.9, one)), seen((0.6, other))], [seen((0.6, one)), seen((0.8, other))]]
    volume = predict(found)
    both = volume.masks.all(axis=0)
    first, second = volume.resolved(volume.concepts)
    assert both.any() and not (first & second).any()
    assert first[0][both[0]].all() and second[1][both[1]].all()
    assert ((first | second) == volume.masks.any(axis=0)).all()
    for exclusive in ((), volume.concepts[:1]):
        assert np.array_equal(volume.resolved(exclusive), volume.masks)
    assert all(mask.any() for mask in volume.masks)


def test_of_many_concepts_none_wraps():
    """300 numbers do not fit 8 bits."""
    masks = np.zeros((300, 1, 1, 300), bool)
    masks[np.arange(300), 0, 0, np.arange(300)] = True
    assert numbered(masks)[0, 0].tolist() == list(range(1, 301))


@pytest.mark.parametrize("key, value", [("seed_threshold", 1.5), ("slices_per_pass", 0), ("bridge_slices", -1)])
def test_numbers_have_ranges(key, value):
    with pytest.raises(ValueError, match=f"volume.{key}={value}: must be"):
        check_numbers({"volume": config(**{key: value})})
    check_numbers({"volume": config()})
