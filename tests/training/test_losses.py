from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing
from torch import Tensor

import medsam3.training.losses
from medsam3.data.batch import Targets
from medsam3.data.mask_crops import MaskCrops
from medsam3.model.detector import BranchOutput, DetectorOutput
from medsam3.recipe import (
    FindLossConfig,
    LossConfig,
    MaskLossConfig,
    MatcherConfig,
    OneToManyConfig,
    SemanticLossConfig,
)
from medsam3.training.losses import LossResult, SetPredictionLoss
from medsam3.training.step import finite_queries
from tests.training.waits import Waits

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = (
    "aux_layers_o2m", "aux_o2m_matcher_on_aux", "duplicate_boxes", "many_objects", "mixed_empty_batch", "no_object",
    "more_objects_than_queries", "more_objects_than_topk", "no_seg", "one_object", "semantic_presence_on", "tiny_boxes",
)  # fmt: skip
VARIANTS = {"paper": "paper", "sam3": "meta_seg", "box_only": "box_only"}  # ours -> the reference values' name
TERMS = {  # ours -> the reference values' name
    "class": "loss_ce",
    "box": "loss_bbox",
    "giou": "loss_giou",
    "presence": "presence_loss",
    "mask_focal": "loss_mask",
    "mask_dice": "loss_dice",
    "semantic_focal": "loss_semantic_seg",
    "semantic_dice": "loss_semantic_dice",
    "semantic_presence": "loss_semantic_presence",
}


def loss_config(variant: str) -> LossConfig:
    """Table 2 of the paper, and Meta's mask numbers for `sam3`."""
    return LossConfig(
        variant=variant,
        matcher=MatcherConfig(class_cost=2.0, box_cost=5.0, giou_cost=2.0, alpha=0.25, gamma=2.0),
        one_to_many=OneToManyConfig(weight=2.0, top_k=4, threshold=0.4, alpha=0.3, on_auxiliary_layers=False),
        find=FindLossConfig(
            class_weight=20.0,
            presence_weight=20.0,
            box_weight=5.0,
            giou_weight=2.0,
            alpha=0.25,
            gamma=2.0,
            positive_weight=10.0,
            padded_queries=200,
            presence_alpha=0.5,
        ),
        semantic=SemanticLossConfig(focal_weight=20.0, dice_weight=30.0, presence_weight=1.0, alpha=0.6, gamma=2.0),
        mask=MaskLossConfig(focal_weight=200.0, dice_weight=10.0, alpha=0.25, gamma=2.0),
        scale_by_batch=True,
    )


@dataclass
class GoldenCase:
    """One loss case: its inputs as the loss wants them, and the reference values of Meta's code."""

    reference: dict[str, np.ndarray]
    facts: dict
    inputs: dict[str, Tensor]  # leaves, by the reference values' names
    output: DetectorOutput
    targets: Targets
    semantic_presence: Tensor | None

    def config(self, variant: str) -> LossConfig:
        """Table 2 with the case's switches."""
        config = loss_config(variant)
        config.one_to_many.on_auxiliary_layers = self.facts["o2m_on_aux"]
        if not self.facts["presence_loss"]:
            config.semantic.presence_weight = 0.0
        if not self.facts["semantic"]:
            config.semantic.focal_weight = config.semantic.dice_weight = 0.0
        return config


def as_products(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings [Q, P, P] and pixels [Q, P, h, w] whose products are exactly these [Q, P, h, w] masks."""
    return torch.eye(masks.shape[1], dtype=masks.dtype).expand(len(masks), -1, -1), masks


def load_case(name: str) -> GoldenCase:
    with np.load(GOLDEN / f"{name}.npz") as file:
        reference = dict(file)
    facts = json.loads(str(reference["meta_json"]))
    inputs = {
        key.removeprefix("in__"): torch.from_numpy(value).requires_grad_()
        for key, value in reference.items()
        if key.startswith("in__")
    }

    def branch(suffix: str) -> BranchOutput:
        masks = inputs.get(f"pred_masks{suffix}")
        if masks is None:  # the reference run had no masks in this half
            masks = torch.zeros(facts["B"], facts["N"], facts["h"], facts["w"])
        logits, boxes = inputs[f"pred_logits{suffix}"][..., 0], inputs[f"pred_boxes{suffix}"]
        return BranchOutput(logits, boxes, *as_products(masks))

    semantic = inputs.get("semantic_seg", torch.zeros(facts["B"], 1, facts["h"], facts["w"]))
    output = DetectorOutput(
        one_to_one=branch(""),
        presence=inputs["presence_logit_dec"][..., 0],
        semantic=semantic[:, 0],
        one_to_many=branch("_o2m") if facts["o2m"] else None,
    )
    assert reference["tgt__is_valid_mask"].all()
    targets = Targets(
        counts=torch.from_numpy(reference["tgt__num_boxes"]),
        boxes=torch.from_numpy(reference["tgt__boxes"]),
        masks=crops(reference["tgt__masks"] > 0),
        sample_ids=[f"{name}/{q}" for q in range(facts["B"])],
    )
    presence = inputs["presence_logit"][:, 0] if "presence_logit" in inputs else None
    return GoldenCase(reference, facts, inputs, output, targets, presence)


def crops(masks: np.ndarray) -> MaskCrops:
    return MaskCrops.packed(((0, 0, mask) for mask in masks), masks.shape[1:])


def random_batch(counts: list[int], layers: int = 2, predictions: int = 8, seed: int = 0) -> tuple:
    """Leaves (by name), their DetectorOutput and Targets; 6 px mask logits, 12 px target masks."""
    generator = torch.Generator().manual_seed(seed)
    queries, instances = len(counts), sum(counts)

    def leaf(*shape: int, box: bool = False) -> Tensor:
        values = torch.randn(*shape, generator=generator)
        return (values.sigmoid() * 0.5 + 0.2 if box else values).requires_grad_()

    leaves = {"presence": leaf(layers, queries), "semantic": leaf(queries, 6, 6)}
    for half in ("one_to_one", "one_to_many"):
        leaves[f"{half}.logits"] = leaf(layers, queries, predictions)
        leaves[f"{half}.boxes"] = leaf(layers, queries, predictions, 4, box=True)
        leaves[f"{half}.masks"] = leaf(queries, predictions, 6, 6)
    targets = Targets(
        counts=torch.tensor(counts),
        boxes=leaf(instances, 4, box=True).detach(),
        masks=crops((torch.rand(instances, 12, 12, generator=generator) > 0.5).numpy()),
        sample_ids=[f"data/{q}/concept" for q in range(queries)],
    )
    return leaves, output_of(leaves), targets


def output_of(tensors: dict[str, Tensor]) -> DetectorOutput:
    halves = [
        BranchOutput(tensors[f"{half}.logits"], tensors[f"{half}.boxes"], *as_products(tensors[f"{half}.masks"]))
        for half in ("one_to_one", "one_to_many")
    ]
    return DetectorOutput(halves[0], tensors["presence"], tensors["semantic"], halves[1])


def reference_name(name: str) -> str:
    """`box_aux_0_o2m` -> `loss_bbox_aux_0_o2m`."""
    kind = max((k for k in TERMS if name == k or name.startswith((f"{k}_aux_", f"{k}_o2m"))), key=len)
    return TERMS[kind] + name.removeprefix(kind)


def golden_result(case: GoldenCase, variant: str) -> tuple[LossResult, Tensor]:
    """The result, and the total as far as the reference run goes."""
    config = case.config(variant)
    result = SetPredictionLoss(config)(case.output, case.targets, case.semantic_presence)
    total = result.total
    if variant == "sam3" and case.facts["o2m"] and not case.facts["o2m_masks"]:
        focal, dice = result.terms.pop("mask_focal_o2m"), result.terms.pop("mask_dice_o2m")
        masks = config.mask.focal_weight * focal + config.mask.dice_weight * dice
        total = total - math.sqrt(case.facts["B"]) * config.one_to_many.weight * masks
    if not case.facts["semantic"]:
        result.terms = {k: v for k, v in result.terms.items() if not k.startswith("semantic")}
    return result, total


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", CASES)
def test_terms_and_total_equal_metas(name: str, variant: str) -> None:
    case = load_case(name)
    result, total = golden_result(case, variant)
    expected = json.loads(str(case.reference[f"terms__{VARIANTS[variant]}"]))
    expected = {k: v for k, v in expected.items() if "f1" not in k and "acc" not in k and "miou" not in k}
    for ours, value in result.terms.items():
        weight = 2.0 if ours.endswith("_o2m") else 1.0  # the reference values contain the branch's weight
        theirs = expected.pop(reference_name(ours))
        assert weight * value.item() == pytest.approx(theirs, rel=1e-4, abs=1e-4 * 1e-3), ours
    left = {k: v for k, v in expected.items() if v != 0.0}  # presence of the o2m half, semantic presence switched off
    assert not left
    assert total.item() == pytest.approx(case.reference[f"total__{VARIANTS[variant]}"].item(), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", CASES)
def test_gradients_equal_metas(name: str, variant: str) -> None:
    case = load_case(name)
    _, total = golden_result(case, variant)
    total.backward()
    keys = [k for k in case.reference if k.startswith(f"grad__{VARIANTS[variant]}__")]
    if variant == "sam3":  # the instance masks do not act on the other inputs
        keys += [k for k in case.reference if k.startswith("grad__paper__")]
    assert keys
    for key in keys:
        expected = torch.from_numpy(case.reference[key])
        gradient = case.inputs[key.split("__")[-1]].grad
        assert gradient is not None, key
        assert (gradient - expected).abs().max() <= 3e-4 * expected.abs().max(), key


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_batch_without_targets_has_finite_gradients_at_every_input(variant: str) -> None:
    leaves, output, targets = random_batch([0, 0])
    result = SetPredictionLoss(loss_config(variant))(output, targets)
    assert result.total.isfinite()
    assert result.terms.get("semantic_presence", 0.0) == 0.0
    assert not any(value.requires_grad for value in result.terms.values())
    result.total.backward()
    for name, leaf in leaves.items():
        supervised = variant == "sam3" or ("masks" not in name and (variant == "paper" or name != "semantic"))
        assert (leaf.grad is not None) == supervised, name
        if supervised and name == "presence":
            assert leaf.grad.abs().min() > 0
        elif supervised:
            assert (leaf.grad == 0).all(), name


@pytest.mark.parametrize("counts", [[3, 0, 2], [0, 0]])
def test_the_loss_waits_for_the_device_once(counts: list[int]) -> None:
    _, output, targets = random_batch(counts, layers=4)
    with Waits() as waits:
        SetPredictionLoss(loss_config("sam3"))(output, targets).total.backward()
    assert waits.operators > 100
    assert waits.found == ["cpu"]


def test_only_matched_masks_are_brought_to_the_size_of_the_targets() -> None:
    _, output, targets = random_batch([1, 2], predictions=50)
    with Waits() as watch:
        SetPredictionLoss(loss_config("sam3"))(output, targets)
    assert watch.largest < 50 * 12 * 12  # less than one query's predictions would take


def test_masks_in_parts_give_the_same_loss_and_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    totals, gradients = [], []
    for pixels in (10**6, 12 * 12 * 2):
        monkeypatch.setattr(medsam3.training.losses, "_PIXELS_AT_ONCE", pixels)
        leaves, output, targets = random_batch([3, 0, 2])
        total = SetPredictionLoss(loss_config("sam3"))(output, targets).total
        total.backward()
        totals.append(total)
        gradients.append(leaves["one_to_many.masks"].grad)
    torch.testing.assert_close(totals[0], totals[1])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_losses_are_float32_under_autocast() -> None:
    leaves, _, targets = random_batch([2, 1])
    half = {name: leaf.detach().bfloat16() for name, leaf in leaves.items()}
    loss = SetPredictionLoss(loss_config("sam3"))
    with torch.autocast("cpu", torch.bfloat16):
        result = loss(output_of(half), targets)
    exact = loss(output_of({name: value.float() for name, value in half.items()}), targets)
    assert result.total.dtype == torch.float32
    assert result.total.item() == exact.total.item()
    for name, value in result.terms.items():
        assert value.dtype == torch.float32, name
        assert value.item() == exact.terms[name].item(), name


@pytest.mark.parametrize("half", ["one_to_one", "one_to_many"])
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("what", ["logits", "boxes"])
def test_predictions_that_are_not_finite_are_found_even_where_the_total_is_finite(half, layer, what) -> None:
    leaves, _, targets = random_batch([1, 2, 1])
    with torch.no_grad():
        leaves[f"{half}.{what}"][layer, 1] = float("nan")
    output = output_of(leaves)
    SetPredictionLoss(loss_config("paper"))(output, targets)  # boxes of the second half match nothing then
    assert finite_queries(output).tolist() == [True, False, True]


def test_unknown_variant_is_refused_with_the_legal_ones() -> None:
    with pytest.raises(ValueError, match=r"loss.variant='boxes': must be one of paper, sam3, box_only"):
        SetPredictionLoss(loss_config("boxes"))


def test_total_is_scaled_by_the_root_of_the_queries() -> None:
    _, output, targets = random_batch([1, 2, 0, 1])
    config = loss_config("paper")
    scaled = SetPredictionLoss(config)(output, targets).total
    config.scale_by_batch = False
    assert scaled.item() == pytest.approx(2 * SetPredictionLoss(config)(output, targets).total.item(), rel=1e-6)


@pytest.mark.parametrize(("padded", "divisor"), [(5, 8), (8, 8), (40, 40)])
def test_the_class_loss_is_divided_by_padded_queries_or_by_the_predictions_where_these_are_more(
    padded, divisor
) -> None:
    _, output, targets = random_batch([1, 2], predictions=8)
    config = loss_config("box_only")
    config.find.padded_queries = 200
    of_200 = SetPredictionLoss(config)(output, targets).terms["class"].item()
    config.find.padded_queries = padded
    assert SetPredictionLoss(config)(output, targets).terms["class"].item() == pytest.approx(of_200 * 200 / divisor)


def test_semantic_presence_acts_on_the_decoders_final_presence_logit() -> None:
    leaves, output, targets = random_batch([1, 0])
    config = loss_config("paper")
    config.find.presence_weight = 0.0
    config.scale_by_batch = False
    result = SetPredictionLoss(config)(output, targets)
    result.total.backward()
    final = leaves["presence"][-1].detach()
    label = torch.tensor([1.0, 0.0])
    expected = torch.log1p(torch.exp(final)) - label * final
    torch.testing.assert_close(result.terms["semantic_presence"], expected.mean())
    torch.testing.assert_close(leaves["presence"].grad[-1], (final.sigmoid() - label) / 2)
    assert (leaves["presence"].grad[:-1] == 0).all()


def test_a_query_whose_only_box_is_empty_counts_as_absent() -> None:
    leaves, output, targets = random_batch([1, 1], layers=1)
    targets.boxes[0, 2] = 0.0
    result = SetPredictionLoss(loss_config("box_only"))(output, targets)
    result.total.backward()
    assert (leaves["one_to_one.logits"].grad[:, 0] == 0).all()
    assert (leaves["one_to_one.logits"].grad[:, 1] != 0).all()
    assert leaves["presence"].grad[0, 0] > 0  # pushed towards absent
    assert leaves["presence"].grad[0, 1] < 0
    assert all(leaf.grad.isfinite().all() for leaf in leaves.values() if leaf.grad is not None)


def test_a_matched_prediction_far_from_its_target_still_learns_the_least_label() -> None:
    leaves, _, targets = random_batch([1], layers=1, predictions=1)
    targets.boxes[0] = torch.tensor([0.9, 0.9, 0.1, 0.1])
    with torch.no_grad():
        leaves["one_to_one.boxes"][0, 0, 0] = torch.tensor([0.1, 0.1, 0.1, 0.1])
        leaves["one_to_one.logits"][0, 0, 0] = 0.5
    terms = SetPredictionLoss(loss_config("box_only"))(output_of(leaves), targets).terms
    p = 1 / (1 + math.exp(-0.5))
    cross_entropy = -0.01 * math.log(p) - 0.99 * math.log(1 - p)
    assert terms["class"].item() == pytest.approx(10 * cross_entropy / 200, rel=1e-5)
    assert terms["box"].item() == pytest.approx(1.6, rel=1e-5)
    assert terms["giou"].item() == pytest.approx(1 + (0.81 - 0.02) / 0.81, rel=1e-5)  # enclosing box 0.9 x 0.9


def _two_rank_cases() -> list[dict]:
    return json.loads((GOLDEN / "num_boxes_two_ranks.json").read_text())["cases"]


def _box_terms_of_rank(rank: int) -> Tensor:
    terms = []
    for case in _two_rank_cases():
        _, output, targets = random_batch(case[f"num_boxes_rank{rank}"], predictions=12)
        terms.append(SetPredictionLoss(loss_config("paper"))(output, targets).terms["box"])
    return torch.stack(terms)


def _run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    torch.save(_box_terms_of_rank(rank), f"{folder}/rank{rank}.pt")
    torch.distributed.destroy_process_group()


def test_boxes_are_normalised_by_the_mean_count_over_two_ranks(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(_run_rank, (str(tmp_path),), nprocs=2, start_method="fork")
    for rank in (0, 1):
        together = torch.load(tmp_path / f"rank{rank}.pt")
        alone = _box_terms_of_rank(rank)
        for i, case in enumerate(_two_rank_cases()):
            own_count = max(1, sum(case[f"num_boxes_rank{rank}"]))
            assert (together[i] * case["num_boxes_norm"]).item() == pytest.approx(
                (alone[i] * own_count).item(), rel=1e-5
            )
            assert (together[i] > 0) == (sum(case[f"num_boxes_rank{rank}"]) > 0)
