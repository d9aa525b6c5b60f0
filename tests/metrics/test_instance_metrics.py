"""AP against pycocotools; F1 and PQ against counts by hand and against every possible matching."""

from __future__ import annotations

import contextlib
import io
import itertools

import numpy as np
import pytest
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from medsam3.layouts.packed_masks import iou_matrix, pack
from medsam3.metrics.instances import InstanceCounts, average_precision, count_f1, count_pq, match_by_score

THRESHOLDS = (0.5, 0.75)
Scene = tuple[np.ndarray, np.ndarray, np.ndarray]  # scores [N], predictions [N, H, W], truths [M, H, W]


def scenes(seed: int, count: int) -> list[Scene]:
    """Images of small boxes: found, shifted, doubled, missed, hallucinated; equal scores; none at all."""
    rng = np.random.default_rng(seed)
    made = []
    for n in range(count):
        truths = np.zeros((0 if n % 4 == 0 else int(rng.integers(1, 8)), 30, 40), bool)
        for mask in truths:
            y, x = rng.integers(0, 22), rng.integers(0, 32)
            mask[y : y + rng.integers(2, 9), x : x + rng.integers(2, 9)] = True
        sources = list(truths[rng.random(len(truths)) < 0.8]) + list(truths[rng.random(len(truths)) < 0.3])
        sources += [np.roll(np.eye(30, 40, dtype=bool), rng.integers(40), 1) for _ in range(rng.integers(0, 3))]
        shifted = [np.roll(mask, int(rng.choice([0, 0, 1])), rng.integers(2)) for mask in sources]
        predictions = np.asarray(shifted, dtype=bool).reshape(-1, 30, 40)
        scores = (rng.integers(0, 12, len(predictions)) + 6 * (np.arange(len(predictions)) < len(truths))) / 18
        made.append((scores, predictions, truths))
    return made


def ours(images: list[Scene], thresholds: tuple[float, ...] = THRESHOLDS) -> np.ndarray:
    found = []
    for scores, predictions, truths in images:
        ious = iou_matrix(pack(predictions, (30, 40)), pack(truths, (30, 40)))
        found.append(match_by_score(scores, ious, thresholds))
    return average_precision(found)


def pycocotools_ap(images: list[Scene]) -> list[float]:
    """AP50 and AP75 without a limit on predictions."""

    def rle(mask: np.ndarray) -> dict:
        return coco_masks.encode(np.asfortranarray(mask.astype(np.uint8)))

    truth = COCO()
    pictures = [{"id": i + 1, "height": 30, "width": 40} for i in range(len(images))]
    truth.dataset = {"images": pictures, "categories": [{"id": 1}]}
    truth.dataset["annotations"] = [
        {"image_id": i + 1, "category_id": 1, "iscrowd": 0, "area": int(mask.sum()), "segmentation": rle(mask)}
        for i, (_, _, truths) in enumerate(images)
        for mask in truths
    ]
    for number, annotation in enumerate(truth.dataset["annotations"], start=1):
        annotation["id"] = number
    results = [
        {"image_id": i + 1, "category_id": 1, "score": float(score), "segmentation": rle(mask)}
        for i, (scores, predictions, _) in enumerate(images)
        for score, mask in zip(scores, predictions, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        run = COCOeval(truth, truth.loadRes(results), "segm")
        run.params.iouThrs = np.asarray(THRESHOLDS)
        run.params.maxDets = [1, 10, 10_000]
        run.evaluate()
        run.accumulate()
    return [float(run.eval["precision"][level, :, 0, 0, 2].mean()) for level in range(len(THRESHOLDS))]


@pytest.mark.parametrize("seed", range(6))
def test_average_precision_equals_pycocotools(seed: int) -> None:
    images = scenes(seed, 25)
    expected = pycocotools_ap(images)
    assert 0.05 < expected[1] < expected[0] < 0.95  # a case that can tell
    np.testing.assert_allclose(ours(images), expected, rtol=0, atol=1e-12)


def test_of_two_truths_of_equal_iou_the_last_is_taken() -> None:
    truths = np.zeros((2, 30, 40), bool)
    truths[0, 0, :4] = truths[1, 0, 4:8] = True
    predictions = np.stack([truths.any(axis=0), truths[1]])  # IoU .5 with both; then the second, taken by now
    image = (np.array([0.9, 0.8]), predictions, truths)
    assert ours([image])[0] == pytest.approx(pycocotools_ap([image])[0]) == pytest.approx(51 / 101)


def test_more_than_a_hundred_predictions_are_not_cut() -> None:
    truths = np.zeros((150, 30, 40), bool)
    truths.reshape(150, -1)[np.arange(150), np.arange(150) * 2] = True
    assert ours([(np.linspace(1, 0, 150), truths, truths)]).tolist() == [1.0, 1.0]


def test_average_precision_by_hand() -> None:
    hit, miss = np.array([[1.0, 0.0]]), np.array([[0.0, 0.0]])
    # falling scores: hit, miss; one of two truths is found: precision 1 up to recall .5 (51 of 101), nothing beyond
    one = match_by_score(np.array([0.3, 0.9]), np.concatenate([miss, hit]), THRESHOLDS)
    assert average_precision([one]).tolist() == [51 / 101] * 2
    # a prediction with a higher score in an image without truth halves the precision
    false = match_by_score(np.array([0.95]), np.zeros((1, 0)), THRESHOLDS)
    assert average_precision([one, false]).tolist() == [0.5 * 51 / 101] * 2
    assert np.isnan(average_precision([false])).tolist() == [True, True]
    silent = match_by_score(np.zeros(0), np.zeros((0, 2)), THRESHOLDS)
    assert average_precision([silent]).tolist() == [0.0, 0.0]


def test_f1_and_pq_by_hand() -> None:
    # two truths, three predictions: IoU .8, exactly .5, and a double of the first
    ious = np.array([[0.8, 0.0], [0.0, 0.5], [0.7, 0.0]])
    assert count_f1(ious) == InstanceCounts(2, 1, 0, 1.3)
    assert count_f1(ious).f1 == 2 * 2 / 5
    assert count_pq(ious) == InstanceCounts(1, 2, 1, 0.8)  # PQ wants more than .5
    assert count_pq(ious).pq == 0.8 / 2.5
    assert (count_pq(ious) + count_pq(ious)).pq == 0.8 / 2.5


def test_nothing_to_find() -> None:
    for empty, f1 in (((0, 0), 1.0), ((3, 0), 0.0), ((0, 2), 0.0)):
        for count in (count_f1, count_pq):
            counts = count(np.zeros(empty))
            assert (counts.f1, counts.pq) == (f1, f1)
            assert (counts.false_positives, counts.false_negatives) == empty


def test_the_matching_is_the_largest_and_of_those_the_best() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        ious = rng.choice([0.0, 0.3, 0.5, 0.6, 0.9, 1.0], rng.integers(1, 5, 2))
        wide = ious if ious.shape[0] <= ious.shape[1] else ious.T
        sums = [
            [wide[row, column] for row, column in enumerate(columns) if wide[row, column] >= 0.5]
            for columns in itertools.permutations(range(wide.shape[1]), wide.shape[0])
        ]
        best = max((len(values), sum(values)) for values in sums)
        counts = count_f1(ious)
        assert (counts.true_positives, counts.iou_sum) == (best[0], pytest.approx(best[1]))
