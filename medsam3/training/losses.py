"""The set-prediction loss (paper, section 3.4, equations 2 to 4; Table 2 for the numbers).

Shapes: Q queries (image-concept pairs), P predictions per query, L decoder layers, T targets of all queries,
M matches, h x w mask logits, H x W target masks.

total = sqrt(Q) * (find of the one-to-one half + weight * find of the one-to-many half + masks), where `find` sums the
class, presence, box and GIoU terms over all decoder layers. What the masks are is the variant's choice:

    box_only   nothing
    paper      the semantic head against the union of a query's instances
    sam3       paper + the instance masks of the final layer, both halves
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from medsam3.checks import LEGAL
from medsam3.data.batch import Targets
from medsam3.distributed import mean_over_ranks
from medsam3.messages import one_of
from medsam3.model.detector import BranchOutput, DetectorOutput
from medsam3.recipe import FindLossConfig, LossConfig
from medsam3.training.geometry import box_cxcywh_to_xyxy, box_iou, generalized_box_iou
from medsam3.training.matching import HungarianMatcher, Matches, Matching, OneToManyMatcher, match, query_of_target

# Heads of the mask decoder that each variant's loss reaches.
HEADS = {"box_only": (), "paper": ("semantic",), "sam3": ("semantic", "instances")}
# Masks are compared at the size of the targets, in parts of at most so many pixels: 64 MiB per float32 tensor.
_PIXELS_AT_ONCE = 2**24
# Least label of a matched prediction (Meta's code; not in the paper).
_LEAST_LABEL = 0.01


@dataclass
class LossResult:
    """The total with its graph, and the terms and counts without.

    Terms are unweighted scalars: `class`, `box`, `giou`, `presence`, `semantic_focal`, `semantic_dice`,
    `semantic_presence`, `mask_focal`, `mask_dice` for the final layer; `_aux_<l>` marks another layer, `_o2m` the
    one-to-many half.
    """

    total: Tensor
    terms: dict[str, Tensor]
    presence: Tensor  # [4] queries whose concept is there, is not; of each, where the final presence logit says so
    matched: dict[str, int]  # `targets` of the batch; matches of the final layer, `one_to_one` and `one_to_many`


class SetPredictionLoss:
    """Matching and loss of one batch."""

    def __init__(self, config: LossConfig, compiled: bool = False, match: Callable[..., Matching] = match) -> None:
        """
        Args:
            compiled: fuse the small operations of the comparison of masks; the same numbers to about 1e-6.
            match: which prediction answers for which target; the planner has one that needs no numbers.

        Raises:
            ValueError: unknown variant.
        """
        one_of("loss.variant", config.variant, LEGAL["loss.variant"])
        self.config = config
        self.match = match
        self.compare_masks = torch.compile(_part_of_mask_losses, dynamic=True) if compiled else _part_of_mask_losses
        self.hungarian = HungarianMatcher(config.matcher)
        self.one_to_many = OneToManyMatcher(config.one_to_many)

    def __call__(self, output: DetectorOutput, targets: Targets, semantic_presence: Tensor | None = None) -> LossResult:
        """The loss of a batch, in float32 whatever the autocast state.

        Args:
            output: predictions of all layers.
            targets: ground truth; even without any instance the total stays connected to every output it uses.
            semantic_presence: [Q] logits for the semantic presence term (lambda_sp in equation 4); None: those of the
                decoder's final layer, the only presence logits that the model has.

        Predictions that are not finite can leave the total finite: whoever takes a step looks at both.
        """
        if semantic_presence is None:
            semantic_presence = output.presence[-1]
        with torch.autocast(output.presence.device.type, enabled=False):
            return self._evaluate(output, targets, semantic_presence)

    def _evaluate(self, output: DetectorOutput, targets: Targets, semantic_presence: Tensor) -> LossResult:
        cfg = self.config
        instances, queries = len(targets.boxes), len(targets.counts)
        # Targets per rank, not matches, so that the mean gradient over ranks weighs every target the same.
        normaliser = mean_over_ranks(torch.full((), float(instances), device=targets.boxes.device)).clamp(min=1)
        matching = self.match(output, targets, self.hungarian, self.one_to_many)
        present = _present(targets)
        masks = targets.masks.paint() if cfg.variant == "sam3" else None  # [T, H, W]
        terms: dict[str, Tensor] = {}

        presence = _presence_loss(output.presence, present, cfg.find)
        terms |= _per_layer("presence", presence)
        total = cfg.find.presence_weight * presence.sum()
        halves = [(output.one_to_one, matching.one_to_one, 1.0, "")]
        if output.one_to_many is not None and matching.one_to_many is not None:
            halves.append((output.one_to_many, matching.one_to_many, cfg.one_to_many.weight, "_o2m"))
        for branch, matches, weight, suffix in halves:
            find, find_terms = _find_loss(branch, matches, targets, present, normaliser, cfg.find, suffix)
            total = total + weight * find
            terms |= find_terms
            if masks is not None:
                focal, dice = self._instance_masks(branch, matches.of_final_layer(), masks, normaliser)
                total = total + weight * (cfg.mask.focal_weight * focal + cfg.mask.dice_weight * dice)
                terms |= {f"mask_focal{suffix}": focal, f"mask_dice{suffix}": dice}
        if cfg.variant != "box_only":
            assert output.semantic is not None
            semantic, semantic_terms = self._semantic(output.semantic, semantic_presence, targets)
            total = total + semantic
            terms |= semantic_terms
        if cfg.scale_by_batch:
            total = math.sqrt(queries) * total
        matched = {"targets": instances, "one_to_one": len(matching.one_to_one.of_final_layer().batch)}
        if matching.one_to_many is not None:
            matched["one_to_many"] = len(matching.one_to_many.of_final_layer().batch)
        told = _presence_told(output.presence[-1].detach(), present)
        return LossResult(total, {name: value.detach() for name, value in terms.items()}, told, matched)

    def _instance_masks(
        self, branch: BranchOutput, matches: Matches, masks: Tensor, normaliser: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Focal and dice loss of the matched masks of the final layer, each summed over matches / normaliser."""
        logits = branch.masks_of(matches.batch, matches.source, matches.per_query)
        cfg = self.config.mask
        focal, dice = self._mask_losses(logits, masks, matches.target, cfg.alpha, cfg.gamma)
        return focal.sum() / normaliser, dice.sum() / normaliser

    def _semantic(self, logits: Tensor, presence: Tensor, targets: Targets) -> tuple[Tensor, dict[str, Tensor]]:
        """Equation 4: the [Q, h, w] semantic logits against the union of each query's instances."""
        cfg = self.config.semantic
        union = targets.masks.united(targets.counts)  # [Q, H, W]
        present = union.flatten(1).any(dim=1).float()
        each = torch.arange(len(union), device=union.device)
        focal, dice = self._mask_losses(logits, union, each, cfg.alpha, cfg.gamma)
        positives = present.sum() + 1e-6
        terms = {
            "semantic_focal": (focal * present).sum() / positives,
            "semantic_dice": (dice * present).sum() / positives,
        }
        total = cfg.focal_weight * terms["semantic_focal"] + cfg.dice_weight * terms["semantic_dice"]
        if cfg.presence_weight:
            # Meta's code drops the whole semantic loss of a batch without any target.
            any_target = float(len(targets.boxes) > 0)
            loss = any_target * F.binary_cross_entropy_with_logits(presence.float(), present)
            terms["semantic_presence"] = loss
            total = total + cfg.presence_weight * loss
        return total, terms

    def _mask_losses(
        self, logits: Tensor, masks: Tensor, mask_index: Tensor, alpha: float, gamma: float
    ) -> tuple[Tensor, Tensor]:
        """Focal loss (mean over pixels) and dice loss of each mask, [M] and [M], at the size of the targets.

        Goes through the masks in parts and computes each part again in the backward pass, so that what is kept for it
        are the small logits alone: at 1008 px the intermediate values take about 40 MB per mask.

        Args:
            logits: [M, h, w]
            masks: [*, H, W] bool
            mask_index: [M] int64, the row of `masks` that each of the logits is compared with
        """
        at_once = max(1, _PIXELS_AT_ONCE // (masks.shape[-2] * masks.shape[-1]))
        parts = [
            checkpoint(
                self.compare_masks, part, masks, index, alpha, gamma, use_reentrant=False, preserve_rng_state=False
            )
            for part, index in zip(logits.split(at_once), mask_index.split(at_once), strict=True)
        ]
        focal, dice = zip(*parts, strict=True)
        return torch.cat(focal), torch.cat(dice)


def _find_loss(
    branch: BranchOutput,
    matches: Matches,
    targets: Targets,
    present: Tensor,
    normaliser: Tensor,
    cfg: FindLossConfig,
    suffix: str,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Class, box and GIoU terms of one half, weighted and summed over layers (equation 3 without presence)."""
    classification = _class_loss(branch, matches, targets, present, cfg)
    distance, giou = _box_losses(branch, matches, targets)
    distance, giou = distance / normaliser, giou / normaliser
    total = (cfg.class_weight * classification + cfg.box_weight * distance + cfg.giou_weight * giou).sum()
    terms = _per_layer("class", classification, suffix)
    terms |= _per_layer("box", distance, suffix) | _per_layer("giou", giou, suffix)
    return total, terms


def _class_loss(
    branch: BranchOutput, matches: Matches, targets: Targets, present: Tensor, cfg: FindLossConfig
) -> Tensor:
    """IoU-aware classification, [L].

    A matched prediction learns p^alpha * IoU^(1 - alpha), without gradient through it; the others learn 0, weighted by
    p^gamma. Queries without a visible target count nothing here: there the presence logit does the work.
    """
    logits, boxes_cxcywh = branch.logits.float(), branch.boxes.detach().float()
    queries, predictions = logits.shape[1:]
    assigned = _assigned_target(matches, logits)
    # One box more than there are targets: index -1 (not matched) points to it, also where there is no target.
    truth_cxcywh = F.pad(targets.boxes.float(), (0, 0, 0, 1))[assigned]
    iou = box_iou(box_cxcywh_to_xyxy(boxes_cxcywh), box_cxcywh_to_xyxy(truth_cxcywh))
    probability = logits.sigmoid()
    label = (probability.detach() ** cfg.alpha * iou ** (1 - cfg.alpha)).clamp(min=_LEAST_LABEL)
    positive = cfg.positive_weight * F.binary_cross_entropy_with_logits(logits, label, reduction="none")
    negative = probability**cfg.gamma * F.softplus(logits)
    loss = torch.where(assigned >= 0, positive, negative) * present[:, None]
    return loss.sum(dim=(1, 2)) / (max(cfg.padded_queries, predictions) * queries)


def _assigned_target(matches: Matches, logits: Tensor) -> Tensor:
    """[L, Q, P] int64: the target of each prediction, -1 for none.

    A prediction that the one-to-many matcher gave to several targets learns the last of them (Meta's code on a CPU);
    a maximum makes that the same on every device.
    """
    _, queries, predictions = logits.shape
    position = (matches.layer * queries + matches.batch) * predictions + matches.source
    assigned = torch.full((logits.numel(),), -1, dtype=torch.int64, device=logits.device)
    return assigned.scatter_reduce_(0, position, matches.target, "amax").view(logits.shape)


def _box_losses(branch: BranchOutput, matches: Matches, targets: Targets) -> tuple[Tensor, Tensor]:
    """L1 distance of cxcywh and 1 - GIoU, each [L], summed over the layer's matches."""
    boxes_cxcywh = branch.boxes[matches.layer, matches.batch, matches.source].float()  # [M, 4]
    truth_cxcywh = targets.boxes.float()[matches.target]
    distance = (boxes_cxcywh - truth_cxcywh).abs().sum(dim=-1)
    giou = generalized_box_iou(box_cxcywh_to_xyxy(boxes_cxcywh), box_cxcywh_to_xyxy(truth_cxcywh))
    zeros = distance.new_zeros(len(branch.boxes))
    return zeros.index_add(0, matches.layer, distance), zeros.index_add(0, matches.layer, 1 - giou)


def _present(targets: Targets) -> Tensor:
    """[Q] float: 1 where the query has a target whose box is not empty."""
    visible = (targets.boxes[:, 2:] > 0).all(dim=-1).float()
    count = visible.new_zeros(len(targets.counts)).index_add(0, query_of_target(targets), visible)
    return (count > 0).float()


def _presence_loss(logits: Tensor, present: Tensor, cfg: FindLossConfig) -> Tensor:
    """Cross-entropy of the decoder's [L, Q] presence logits, balanced by `presence_alpha`, mean over queries: [L]."""
    label = present.expand_as(logits)
    balance = cfg.presence_alpha * label + (1 - cfg.presence_alpha) * (1 - label)
    loss = F.binary_cross_entropy_with_logits(logits.float(), label, reduction="none")
    return (balance * loss).mean(dim=1)


def _presence_told(logits: Tensor, present: Tensor) -> Tensor:
    """See `LossResult.presence`; [Q] logits and [Q] 1 where the concept is there."""
    asked = torch.stack([present, 1 - present])
    right = (logits > 0) == (present > 0)
    return torch.cat([asked, asked * right]).sum(dim=1)


def _part_of_mask_losses(
    logits: Tensor, masks: Tensor, mask_index: Tensor, alpha: float, gamma: float
) -> tuple[Tensor, Tensor]:
    truth = masks[mask_index].flatten(1).float()  # [M, H * W]
    size_px = masks.shape[-2:]
    logits = F.interpolate(logits.float()[:, None], size=size_px, mode="bilinear", align_corners=False).flatten(1)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    miss = -torch.expm1(-cross_entropy)  # 1 - probability of the true label
    balance = alpha * truth + (1 - alpha) * (1 - truth)
    focal = (balance * miss**gamma * cross_entropy).mean(dim=1)
    probability = logits.sigmoid()
    overlap = (probability * truth).sum(dim=1)
    dice = 1 - (2 * overlap + 1) / (probability.sum(dim=1) + truth.sum(dim=1) + 1)
    return focal, dice


def _per_layer(name: str, values: Tensor, suffix: str = "") -> dict[str, Tensor]:
    """The entries of [L] as terms; the last layer carries the plain name."""
    *auxiliary, final = values.unbind()
    return {f"{name}{suffix}": final} | {f"{name}_aux_{i}{suffix}": value for i, value in enumerate(auxiliary)}
