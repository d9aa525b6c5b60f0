"""AP, F1, PQ and cgF1 of many records: by hand, by pycocotools and by plain loops; and what could go wrong."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from scipy import ndimage

from medsam3.data.manifest import ImageRows
from medsam3.layouts.packed_masks import pack
from medsam3.prediction.detections import ScoredInstances
from medsam3.results.instance_records import InstanceRecord
from medsam3.results.instance_scores import instance_scores
from tests.metrics.test_instance_metrics import pycocotools_ap, scenes

SIZE = (30, 40)


def record(item, concept, scene, group=None, shown=0.5, exhaustive=True, ranked=True) -> InstanceRecord:
    """Of scores [N], predictions [N, 30, 40] and truths [M, 30, 40]."""
    scores, predictions, truths = scene
    rows = ImageRows("small", item, group or item, "val", (), ())
    scores = np.asarray(scores, dtype=float)
    found = ScoredInstances(scores, pack(predictions, SIZE), shown, ranked)
    return InstanceRecord.of(rows, concept, exhaustive, found, pack(truths, SIZE))


def box(x: int, y: int, wide: int, high: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[y : y + high, x : x + wide] = True
    return mask


def values(*records: InstanceRecord) -> dict[str, float]:
    return instance_scores(records)["small"].own.values


@pytest.mark.parametrize("seed", range(4))
def test_ap_is_that_of_pycocotools_over_images_and_concepts_with_equal_scores(seed):
    by_concept = {"cell": scenes(seed, 15), "nerve": scenes(seed + 50, 15)}  # every fourth holds none
    records = [record(f"{n:02}", name, scene) for name, own in by_concept.items() for n, scene in enumerate(own)]
    found = instance_scores(records)["small"]
    expected = {name: pycocotools_ap(own) for name, own in by_concept.items()}
    for name, (ap50, ap75) in expected.items():
        own = found.concepts[name].values
        assert (own["ap50"], own["ap75"]) == pytest.approx((ap50, ap75), abs=1e-12) and 0.05 < ap75 < ap50 < 0.95
    assert found.own.values["ap50"] == pytest.approx(np.mean([ap50 for ap50, _ in expected.values()]), abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_pq_is_that_of_panoptic_segmentation(seed):
    """Segments that do not overlap can match one way only, so plain loops over pixels tell (Kirillov et al. 2019)."""
    rng = np.random.default_rng(seed)
    records, iou_sum, hits, others = [], 0.0, 0, 0
    for n in range(8):
        maps = [ndimage.label(ndimage.uniform_filter(rng.random(SIZE), 5) > 0.5)[0] for _ in range(1)]
        maps += [np.where(rng.random(SIZE) < 0.85, np.roll(maps[0], rng.integers(0, 2), 0), 0)]
        truth, guess = ([labels == value for value in range(1, labels.max() + 1)] for labels in maps)
        records.append(record(str(n), "cell", (np.full(len(guess), 0.9), np.array(guess), np.array(truth))))
        ious = [(a & b).sum() / (a | b).sum() for a in truth for b in guess]
        hits += sum(iou > 0.5 for iou in ious)
        iou_sum += sum(iou for iou in ious if iou > 0.5)
        others += len(truth) + len(guess) - 2 * sum(iou > 0.5 for iou in ious)
    assert hits > 8 and others > 8
    assert values(*records)["pq"] == pytest.approx(iou_sum / (hits + others / 2), abs=1e-12)


CELL, FAR = box(4, 4, 4, 4), box(20, 20, 4, 4)
NONE = np.zeros((0, *SIZE), bool)


@pytest.mark.parametrize(
    ("scores", "predictions", "truths", "expected"),
    [  # AP50, F1, PQ
        ([0.9], [CELL], [CELL], (1, 1, 1)),
        ([0.9, 0.8], [CELL, CELL], [CELL], (1, 2 / 3, 2 / 3)),  # one instance twice: the second is false
        ([0.9, 0.9], [FAR, CELL], [CELL], (0.5, 2 / 3, 2 / 3)),  # tied with a false one before it
        ([0.9], [FAR], [CELL], (0, 0, 0)),  # elsewhere
        ([0.9], [CELL & FAR], [CELL], (0, 0, 0)),  # a mask without pixels is a false one
        ([], NONE, [CELL], (0, 0, 0)),
        ([0.3], [CELL], [CELL], (1, 0, 0)),  # AP ranks what F1 and PQ do not count
        # two that touch, found as one: an IoU of .5 with both is enough for F1 and AP, and not for PQ
        ([0.9], [box(4, 4, 8, 4)], [CELL, box(8, 4, 4, 4)], (51 / 101, 2 / 3, 0)),
        ([0.9, 0.8], [CELL, box(8, 4, 4, 4)], [CELL, box(8, 4, 4, 4)], (1, 1, 1)),  # and as two
    ],
)
def test_by_hand(scores, predictions, truths, expected):
    found = values(record("a", "cell", (scores, np.array(predictions).reshape(-1, *SIZE), np.array(truths))))
    assert (found["ap50"], found["f1"], found["pq"]) == pytest.approx(expected)


PERFECT = ([0.9], CELL[None], CELL[None])
SILENT, EMPTY, FALSE = ([], NONE, CELL[None]), ([], NONE, NONE), ([0.95], FAR[None], NONE)


def test_what_is_found_where_nothing_is_counts_everywhere():
    """A false one with the higher score: precision 1/2, F1 2/3, and 1 of 2 decisions right."""
    alone, beside = values(record("a", "cell", PERFECT)), values(*map(record, "ab", ["cell"] * 2, [PERFECT, FALSE]))
    assert (alone["ap"], alone["f1"], alone["pq"]) == (1, 1, 1)
    assert (beside["ap"], beside["f1"], beside["pq"]) == pytest.approx((0.5, 2 / 3, 2 / 3))
    assert beside["pmf1"] == alone["pmf1"] > 0.999  # positive images alone
    assert beside["il_mcc"] == beside["cgf1"] == 0.0  # it always says yes
    silent = values(*map(record, "ab", ["cell"] * 2, [PERFECT, EMPTY]))
    assert silent["il_mcc"] == pytest.approx(1, abs=1e-5) and silent["cgf1"] == pytest.approx(silent["pmf1"], abs=1e-5)


def test_a_concept_that_is_nowhere_has_no_ap_and_takes_part_in_cgf1_alone():
    records = [record(item, "cell", PERFECT) for item in "ab"] + [
        record("a", "nerve", FALSE),
        record("b", "nerve", EMPTY),
    ]
    found = instance_scores(records)["small"]
    assert list(found.concepts) == ["cell"] and found.own.values["ap"] == found.own.values["pq"] == 1.0
    assert found.own.values["il_mcc"] == pytest.approx((2 * 1 - 1 * 0) / np.sqrt(3 * 2 * 2 * 1), abs=1e-5)
    assert (found.own.queries, found.own.absent, found.own.predictions) == (4, 2, 3)
    assert instance_scores(records[2:]) == {}


def test_means_over_concepts_count_each_once_and_sums_over_images_each_instance():
    cells = ([0.9] * 3, np.array([CELL, FAR, box(30, 2, 4, 4)]), np.array([CELL, FAR, box(30, 2, 4, 4)]))
    records = [record("a", "cell", cells), record("b", "cell", SILENT), record("a", "nerve", SILENT)]
    found = instance_scores(records)["small"]
    assert found.concepts["cell"].values["f1"] == pytest.approx(6 / 7) and found.concepts["nerve"].values["f1"] == 0
    assert found.own.values["f1"] == pytest.approx(3 / 7)
    share = 3 / (5 + 1e-4)  # 3 of 5 instances in one pool, all found ones true
    precision = 3 / (3 + 1e-4)
    assert found.own.values["pmf1"] == pytest.approx(2 * precision * share / (precision + share + 1e-4), abs=1e-12)


def test_what_is_not_all_marked_is_left_out_of_cgf1():
    full, partly = record("a", "cell", PERFECT), record("a", "stroma", SILENT, exhaustive=False)
    found = instance_scores([full, partly])["small"]
    assert found.own.values["pmf1"] == values(full)["pmf1"] and found.own.not_exhaustive == 1
    assert found.own.values["f1"] == 0.5  # these have no such rule
    assert instance_scores([partly])["small"].own.values["pmf1"] is None


def test_masks_without_scores_have_no_ap():
    found = values(record("a", "cell", PERFECT), record("b", "cell", PERFECT, ranked=False))
    assert found["ap"] is found["ap50"] is found["ap75"] is None and found["f1"] == found["pq"] == 1.0


def test_a_record_survives_its_journal_and_holds_no_mask():
    for scene in (*scenes(3, 6), EMPTY):
        one = record("a", "cell", scene)
        text = json.dumps(dataclasses.asdict(one))
        assert InstanceRecord.from_json(json.loads(text)) == one and len(text) < 1500


def test_a_group_that_is_drawn_twice_counts_as_two(monkeypatch):
    """Weights against records that are really repeated, with a concept that some draws lack."""
    rng = np.random.default_rng(0)
    records = [
        record(f"{group}{n}", name, scene, group)
        for name, seed in (("cell", 1), ("nerve", 2))
        for group, own in zip("abcde", np.arange(10).reshape(5, 2), strict=True)
        for n in own
        for scores, *masks in [scenes(seed, 10)[n]]
        for scene in [(0.9 * scores + rng.uniform(0, 0.1, len(scores)), *masks)]  # none are equal
        if name == "cell" or group in "ab"
    ]
    records.append(record("c9", "nerve", FALSE, "c"))  # predicted in a group where there is none
    taken = []
    monkeypatch.setattr(
        "medsam3.results.instance_scores.statistic_intervals", lambda of, *_: taken.append(of) or [None] * 18
    )
    instance_scores(records, draws=2000)
    drawn = np.array([[1, 1, 1, 1, 1], [2, 0, 3, 0, 0], [0, 1, 1, 2, 1], [0, 0, 1, 4, 0.0]])
    for times, row in zip(drawn, taken[0](drawn), strict=True):
        again = [
            dataclasses.replace(one, item=f"{one.item}{copy}")
            for one in records
            for copy in range(int(times["abcde".index(one.group)]))
        ]
        expected = instance_scores(again)["small"]
        nan = dict.fromkeys(("ap", "ap50", "ap75", "f1", "pq"), np.nan)
        parts = [
            expected.own.values,
            *(expected.concepts[c].values if c in expected.concepts else nan for c in ("cell", "nerve")),
        ]
        np.testing.assert_allclose(row, [value for part in parts for value in part.values()], rtol=0, atol=1e-12)
