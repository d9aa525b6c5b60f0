"""cgF1, IL_MCC and pmF1 against Meta's evaluator (tests/golden/cgf1_*), number for number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medsam3.layouts.packed_masks import iou_matrix, pack
from medsam3.metrics.concept_f1 import ConceptF1, PairCounts, best_annotator, concept_f1, count_pair

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
CASES = ("all_negative", "duplicates_ties_crowd", "mixed", "oracle_three", "perfect")


def unpacked(bits: np.ndarray, pairs: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
    """The masks of a case, each padded to whole bytes."""
    masks, start = [], 0
    for height, width in sizes[pairs]:
        stop = start - (-height * width // 8)
        masks.append(np.unpackbits(bits[start:stop])[: height * width].reshape(height, width).astype(bool))
        start = stop
    return masks


def tight_box(mask: np.ndarray) -> np.ndarray:
    """[x0, y0, x1, y1], the far edge exclusive; zeros for an empty mask."""
    y, x = np.nonzero(mask)
    return np.array([x.min(), y.min(), x.max() + 1, y.max() + 1]) if len(x) else np.zeros(4, int)


def box_ious(first: list[np.ndarray], second: list[np.ndarray]) -> np.ndarray:
    a, b = (np.asarray([tight_box(mask) for mask in masks]).reshape(-1, 4) for masks in (first, second))
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    shared = sides.clip(0).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (a, b)]
    return shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1)


def mask_ious(first: list[np.ndarray], second: list[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    return iou_matrix(pack(first, size), pack(second, size))


def counted(case: Any, kind: str) -> dict[int, PairCounts]:
    """Pair -> the counts that are evaluated."""
    truths = unpacked(case["gt_bits"], case["gt_pair"], case["size"])
    predictions = unpacked(case["pred_bits"], case["pred_pair"], case["size"])
    counts = {}
    for pair in np.flatnonzero(case["exhaustive"].all(axis=0)).tolist():
        mine = np.flatnonzero(case["pred_pair"] == pair)
        masks = [predictions[i] for i in mine]
        annotators = []
        for annotator in range(len(case["exhaustive"])):
            here = (case["gt_annotator"] == annotator) & (case["gt_pair"] == pair) & (case["gt_crowd"] == 0)
            true = [truths[i] for i in np.flatnonzero(here)]
            size = tuple(case["size"][pair].tolist())
            ious = mask_ious(masks, true, size) if kind == "segm" else box_ious(masks, true)
            annotators.append(count_pair(case["pred_score"][mine], ious))
        counts[pair] = best_annotator(annotators)
    return counts


def per_threshold(result: ConceptF1) -> dict[str, np.ndarray]:
    return {
        "TPs": result.true_positives,
        "FPs": result.false_positives,
        "FNs": result.false_negatives,
        "positive_micro_FPs": result.positive_false_positives,
        "precision": result.precision,
        "recall": result.recall,
        "F1": result.f1,
        "positive_micro_precision": result.positive_micro_precision,
        "positive_micro_F1": result.positive_micro_f1,
        "positive_macro_F1": result.positive_macro_f1,
        "cgF1": result.cgf1,
    }


def image_level(result: ConceptF1) -> dict[str, float]:
    level = result.image_level
    return {
        "IL_TP": level.true_positives,
        "IL_FP": level.false_positives,
        "IL_TN": level.true_negatives,
        "IL_FN": level.false_negatives,
        "IL_precision": level.precision,
        "IL_recall": level.recall,
        "IL_F1": level.f1,
        "IL_FPR": level.false_positive_rate,
        "IL_MCC": level.mcc,
    }


@pytest.mark.parametrize("kind", ["segm", "bbox"])
@pytest.mark.parametrize("name", CASES)
def test_all_numbers_equal_metas(name: str, kind: str) -> None:
    reference = json.loads((GOLDEN / f"cgf1_{name}.json").read_text())[kind]
    with np.load(GOLDEN / f"cgf1_{name}.npz") as case:
        counts = counted(dict(case), kind)
    result = concept_f1(list(counts.values()))

    found = per_threshold(result)
    assert found.keys() == reference["per_threshold"].keys()
    for key, values in reference["per_threshold"].items():
        expected = [np.nan if value is None else value for value in values]
        np.testing.assert_allclose(found[key], expected, rtol=0, atol=1e-12, err_msg=key)
    level = image_level(result)
    assert level == pytest.approx(reference["image_level"], rel=0, abs=1e-12)

    printed = {key: float(np.mean(values)) for key, values in found.items()} | level
    printed |= {f"{key}@{at}": float(values[i]) for key, values in found.items() for at, i in ((0.5, 0), (0.75, 5))}
    for key, value in reference["printed"].items():
        assert (-1.0 if np.isnan(printed[key]) else printed[key]) == pytest.approx(value, rel=0, abs=1e-12), key

    assert list(counts) == [entry["pair"] for entry in reference["per_pair"]]
    for entry in reference["per_pair"]:
        pair = counts[entry["pair"]]
        assert pair.predictions == entry["num_dt"]
        if "TPs" in entry:
            assert pair.true_positives.tolist() == entry["TPs"]
            assert (pair.truths - pair.true_positives).tolist() == entry["FNs"]
            np.testing.assert_allclose(pair.local_f1, entry["local_F1s"], rtol=0, atol=1e-12)


def test_without_absent_phrases_cgf1_is_nothing_however_good_the_masks() -> None:
    perfect = count_pair(np.array([0.9]), np.array([[1.0]]))
    refused = count_pair(np.array([0.4]), np.zeros((1, 0)))
    only_present = concept_f1([perfect] * 20)
    assert only_present.image_level.mcc == 0.0 and not only_present.cgf1.any()
    assert only_present.positive_micro_f1.mean() > 0.9998
    assert concept_f1([perfect] * 20 + [refused]).cgf1.mean() > 0.9998
    assert concept_f1([]).cgf1.tolist() == [0.0] * 10
