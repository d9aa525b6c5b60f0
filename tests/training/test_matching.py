from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from medsam3.data.batch import Targets
from medsam3.model.detector import DetectorOutput
from medsam3.training.matching import HungarianMatcher, Matches, Matching, OneToManyMatcher, match
from tests.training.test_losses import CASES, load_case, loss_config, random_batch


def run_match(output: DetectorOutput, targets: Targets, on_auxiliary_layers: bool = False) -> Matching:
    config = loss_config("paper")
    config.one_to_many.on_auxiliary_layers = on_auxiliary_layers
    return match(output, targets, HungarianMatcher(config.matcher), OneToManyMatcher(config.one_to_many))


def triples(batch: np.ndarray, source: np.ndarray, target: np.ndarray, boxes: np.ndarray) -> list[tuple]:
    """Sorted (query, prediction, target) with the target given by its box: identical boxes are interchangeable."""
    return sorted((int(b), int(s), tuple(boxes[t])) for b, s, t in zip(batch, source, target, strict=True))


def layer_triples(matches: Matches, layer: int, boxes: np.ndarray) -> list[tuple]:
    here = matches.layer == layer
    return triples(*(x[here].numpy() for x in (matches.batch, matches.source, matches.target)), boxes)


@pytest.mark.parametrize("name", CASES)
def test_matched_sets_equal_metas(name: str) -> None:
    case = load_case(name)
    matching = run_match(case.output, case.targets, case.facts["o2m_on_aux"])
    halves = {"o2o": matching.one_to_one, "o2m": matching.one_to_many}
    assert (matching.one_to_many is not None) == case.facts["o2m"]
    boxes = case.reference["tgt__boxes"]
    for half, matches in halves.items():
        if matches is None:
            continue
        assert len(matches.per_layer) == case.facts["L"]
        for layer in range(case.facts["L"]):
            index = [case.reference[f"idx__{half}_l{layer}__{k}"] for k in ("batch", "src", "tgt")]
            assert layer_triples(matches, layer, boxes) == triples(*index, boxes), (half, layer)
            assert matches.per_layer[layer] == len(index[0])


@pytest.mark.parametrize("name", CASES)
def test_hungarian_costs_equal_metas(name: str) -> None:
    case = load_case(name)
    half = case.output.one_to_one
    ours = HungarianMatcher(loss_config("paper").matcher).cost(half.logits, half.boxes, case.targets)[-1]
    start = 0
    for query, count in enumerate(case.reference["tgt__num_boxes"]):
        expected = case.reference["cost__o2o_last"][query, :, :count].T
        np.testing.assert_allclose(ours[start : start + count].detach().numpy(), expected, rtol=1e-4, atol=1e-4)
        start += count


def test_hungarian_cost_is_the_least_that_scipy_finds_with_its_own_formula() -> None:
    _, output, targets = random_batch([4, 0, 11], layers=3, predictions=7)
    matches = run_match(output, targets).one_to_one
    bounds = np.cumsum([0, 4, 0, 11])
    for layer in range(3):
        for query in (0, 2):
            cost = _cost(output, targets.boxes[bounds[query] : bounds[query + 1]], layer, query)
            least = cost[linear_sum_assignment(cost)].sum()
            here = (matches.layer == layer) & (matches.batch == query)
            source, target = matches.source[here].numpy(), matches.target[here].numpy() - bounds[query]
            assert len(set(source)) == len(set(target)) == len(source) == min(cost.shape)
            assert cost[source, target].sum() == pytest.approx(least, rel=1e-5)


def _cost(output: DetectorOutput, truth: torch.Tensor, layer: int, query: int) -> np.ndarray:
    """[P, targets] in float64, written out pair by pair."""
    logits = output.one_to_one.logits[layer, query].detach().double().numpy()
    boxes = output.one_to_one.boxes[layer, query].detach().double().numpy()
    cost = np.zeros((len(logits), len(truth)))
    for q, (logit, (x, y, w, h)) in enumerate(zip(logits, boxes, strict=True)):
        p = 1 / (1 + np.exp(-logit))
        for t, (u, v, a, b) in enumerate(truth.double().numpy()):
            overlap_x = max(0, min(x + w / 2, u + a / 2) - max(x - w / 2, u - a / 2))
            overlap_y = max(0, min(y + h / 2, v + b / 2) - max(y - h / 2, v - b / 2))
            union = w * h + a * b - overlap_x * overlap_y
            hull_x = max(x + w / 2, u + a / 2) - min(x - w / 2, u - a / 2)
            hull_y = max(y + h / 2, v + b / 2) - min(y - h / 2, v - b / 2)
            giou = overlap_x * overlap_y / union - 1 + union / (hull_x * hull_y)
            class_cost = -0.25 * (1 - p) ** 2 * np.log(p) + 0.75 * p**2 * np.log(1 - p)
            cost[q, t] = 5 * (abs(x - u) + abs(y - v) + abs(w - a) + abs(h - b)) + 2 * class_cost - 2 * giou
    return cost


def test_one_to_many_takes_the_best_few_above_the_threshold() -> None:
    _, output, targets = random_batch([1], layers=1, predictions=10)
    half = output.one_to_many
    assert half is not None
    target = torch.tensor([0.5, 0.5, 0.4, 0.4])
    targets.boxes[0] = target
    with torch.no_grad():
        half.logits.fill_(0.0)  # p = 0.5, so the score is 0.15 + 0.7 IoU
        half.boxes[:] = torch.tensor([0.1, 0.1, 0.1, 0.1])
        for i, width in enumerate((0.40, 0.36, 0.32, 0.28, 0.24, 0.12)):  # IoU 1, .9, .8, .7, .6, .3
            half.boxes[0, 0, i] = torch.tensor([0.5, 0.5, width, 0.4])
    matches = run_match(output, targets).one_to_many
    assert matches is not None
    assert matches.source.tolist() == [0, 1, 2, 3]
    with torch.no_grad():
        half.boxes[0, 0, 2:5, 2] = 0.12  # score 0.15 + 0.7 * 0.3 = 0.36, below the threshold of 0.4
    matches = run_match(output, targets).one_to_many
    assert matches is not None
    assert matches.source.tolist() == [0, 1]


def test_of_fewer_predictions_than_top_k_all_but_the_worst_are_matched() -> None:
    """A score must exceed the quantile, which is then the lowest score."""
    _, output, targets = random_batch([1], layers=1, predictions=3)
    half = output.one_to_many
    assert half is not None
    targets.boxes[0] = torch.tensor([0.5, 0.5, 0.4, 0.4])
    with torch.no_grad():
        half.logits.fill_(0.0)
        for i, width in enumerate((0.32, 0.40, 0.36)):
            half.boxes[0, 0, i] = torch.tensor([0.5, 0.5, width, 0.4])
    matches = run_match(output, targets).one_to_many
    assert matches is not None
    assert matches.source.tolist() == [1, 2] and matches.target.tolist() == [0, 0]


def test_final_layer_matches_are_a_part_of_all() -> None:
    _, output, targets = random_batch([2, 0, 3], layers=3)
    matches = run_match(output, targets).one_to_one
    final = matches.of_final_layer()
    assert matches.per_layer == [5, 5, 5]
    assert final.per_layer == [5]
    assert (final.layer == 2).all()
    assert torch.equal(final.source, matches.source[10:])


def test_a_query_is_matched_to_its_own_targets_only() -> None:
    _, output, targets = random_batch([2, 0, 3], layers=3)
    owner = torch.tensor([0, 0, 2, 2, 2])
    matching = run_match(output, targets, on_auxiliary_layers=True)
    assert matching.one_to_many is not None
    for matches in (matching.one_to_one, matching.one_to_many):
        assert torch.equal(owner[matches.target], matches.batch)


def test_layers_taken_one_by_one_have_the_same_matches(monkeypatch) -> None:
    _, output, targets = random_batch([2, 0, 3], layers=3)
    together = run_match(output, targets).one_to_one
    monkeypatch.setattr("medsam3.training.matching._COSTS_AT_ONCE", 1)
    assert torch.equal(run_match(output, targets).one_to_one.source, together.source)


def test_no_targets_give_no_matches() -> None:
    _, output, targets = random_batch([0, 0], layers=2)
    for on_auxiliary_layers in (False, True):
        matching = run_match(output, targets, on_auxiliary_layers)
        assert matching.one_to_many is not None
        for matches in (matching.one_to_one, matching.one_to_many):
            assert matches.per_layer == [0, 0]
            assert len(matches.target) == 0


def test_predictions_that_are_not_finite_are_matched_all_the_same() -> None:
    _, output, targets = random_batch([1, 1, 1, 0])
    with torch.no_grad():
        output.one_to_one.boxes[0, 0, 0, 0] = float("inf")
        output.one_to_one.logits[1, 2, 3] = float("nan")
    assert run_match(output, targets).one_to_one.per_layer == [3, 3]
