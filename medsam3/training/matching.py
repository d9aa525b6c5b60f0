"""Which prediction answers for which target: one-to-one (Hungarian) and one-to-many (paper, section 3.4 and Table 2).

Shapes: Q queries (image-concept pairs), P predictions per query, T targets of all queries, L decoder layers,
K layers that share a matcher, M matched pairs.

Costs are kept per target, [K, T, P]: a target meets only the predictions of its own query, and nothing is padded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from medsam3.data.batch import Targets
from medsam3.model.detector import DetectorOutput
from medsam3.recipe import MatcherConfig, OneToManyConfig
from medsam3.training.geometry import box_cxcywh_to_xyxy, box_iou, generalized_box_iou

HostArray = npt.NDArray[np.float32]
Pairs = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]  # prediction and packed target of each match, [M] and [M]

_COSTS_AT_ONCE = 1 << 16  # expanded to many targets, all layers at once would not stay in a processor's cache


@dataclass
class Matches:
    """Matched pairs of one half of the decoder queries, all layers one behind the other; on the outputs' device."""

    layer: Tensor  # [M] int64
    batch: Tensor  # [M] int64, the query 0..Q-1
    source: Tensor  # [M] int64, the prediction 0..P-1
    target: Tensor  # [M] int64, the packed target 0..T-1
    per_layer: list[int]  # matches of each layer; adds up to M
    per_query: list[int]  # [Q] matches of each query in the final layer

    def of_final_layer(self) -> Matches:
        start = len(self.layer) - self.per_layer[-1]
        fields = (self.layer[start:], self.batch[start:], self.source[start:], self.target[start:])
        return Matches(*fields, per_layer=self.per_layer[-1:], per_query=self.per_query)


@dataclass
class Matching:
    """Both halves' matches."""

    one_to_one: Matches
    one_to_many: Matches | None


class HungarianMatcher:
    """One prediction per target with the least total cost (equation 2's pi)."""

    def __init__(self, config: MatcherConfig) -> None:
        self.config = config

    def cost(self, logits: Tensor, boxes_cxcywh: Tensor, targets: Targets) -> Tensor:
        """Cost of every (target, prediction of the same query): weighted L1 distance, focal class cost and -GIoU.

        Args:
            logits: [K, Q, P]
            boxes_cxcywh: [K, Q, P, 4]

        Returns:
            [K, T, P]
        """
        cfg = self.config
        logits, boxes_cxcywh = _of_targets(logits, boxes_cxcywh, targets)
        probability = logits.sigmoid()
        positive = -cfg.alpha * (1 - probability) ** cfg.gamma * F.logsigmoid(logits)
        negative = -(1 - cfg.alpha) * probability**cfg.gamma * F.logsigmoid(-logits)
        truth_cxcywh = targets.boxes.float()[:, None]  # [T, 1, 4]
        distance = (boxes_cxcywh - truth_cxcywh).abs().sum(dim=-1)
        giou = generalized_box_iou(box_cxcywh_to_xyxy(boxes_cxcywh), box_cxcywh_to_xyxy(truth_cxcywh))
        return cfg.box_cost * distance + cfg.class_cost * (positive - negative) - cfg.giou_cost * giou

    @staticmethod
    def assign(cost: HostArray) -> Pairs:
        """Predictions and targets (both counted from 0) of the best assignment of one query's [targets, P] costs.

        With more targets than predictions some targets stay without one.
        """
        target, source = linear_sum_assignment(cost)
        return source, target


class OneToManyMatcher:
    """Several predictions per target: the top k by score, if they are good enough (Table 2)."""

    def __init__(self, config: OneToManyConfig) -> None:
        self.config = config

    def margin(self, logits: Tensor, boxes_cxcywh: Tensor, targets: Targets) -> Tensor:
        """By how much alpha * p + (1 - alpha) * IoU exceeds the threshold and the 1 - k / P quantile of the target.

        Args:
            logits: [K, Q, P]
            boxes_cxcywh: [K, Q, P, 4]

        Returns:
            [K, T, P]; positive = matched. One prediction may be matched to several targets.
        """
        cfg = self.config
        logits, boxes_cxcywh = _of_targets(logits, boxes_cxcywh, targets)
        truth_xyxy = box_cxcywh_to_xyxy(targets.boxes.float())[:, None]
        iou = box_iou(box_cxcywh_to_xyxy(boxes_cxcywh), truth_xyxy)
        score = cfg.alpha * logits.sigmoid() + (1 - cfg.alpha) * iou
        if score.numel() == 0:  # no layer or no target; torch.quantile wants at least one value
            return score
        quantile = score.quantile(max(0.0, 1 - cfg.top_k / score.shape[-1]), dim=-1, keepdim=True)
        return torch.minimum(score - quantile, score - cfg.threshold)

    @staticmethod
    def assign(margin: HostArray) -> Pairs:
        """Predictions and targets (both counted from 0) of one query's [targets, P] margins."""
        target, source = np.nonzero(margin > 0)
        return source, target


def query_of_target(targets: Targets) -> Tensor:
    """[T] int64: the query that each packed target belongs to."""
    return torch.repeat_interleave(targets.counts, output_size=len(targets.boxes))


def _of_targets(logits: Tensor, boxes_cxcywh: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    """[K, T, P] logits and [K, T, P, 4] boxes: for each target the predictions of its query, in float32."""
    query = query_of_target(targets)
    return logits.float()[:, query], boxes_cxcywh.float()[:, query]


@torch.no_grad()
def match(
    output: DetectorOutput, targets: Targets, hungarian: HungarianMatcher, one_to_many: OneToManyMatcher
) -> Matching:
    """Match all layers of both halves with a single copy from the device.

    The one-to-one half always uses the Hungarian matcher. The one-to-many half uses its own matcher on the final layer,
    and on the others too if `on_auxiliary_layers` is set.

    Predictions that are not finite are matched somehow: the step that finds them is not taken.
    """
    values, assigned = costs(output, targets, hungarian, one_to_many)
    values_host, counts = _copy_to_host(values, targets)
    ends = np.cumsum(counts)[:-1]
    pairs = [
        [(hungarian if k < assigned else one_to_many).assign(v) for v in np.split(layer_values, ends)]
        for k, layer_values in enumerate(values_host)
    ]
    layers, device = len(output.one_to_one.logits), targets.boxes.device
    first_half, *second_half = (packed(half, counts, device) for half in (pairs[:layers], pairs[layers:]) if half)
    return Matching(first_half, second_half[0] if second_half else None)


def costs(
    output: DetectorOutput, targets: Targets, hungarian: HungarianMatcher, one_to_many: OneToManyMatcher
) -> tuple[Tensor, int]:
    """[K, T, P] values of the layers of both halves, and how many of them, the first ones, are Hungarian costs."""
    first, second = output.one_to_one, output.one_to_many
    layers = len(first.logits)
    logits, boxes = first.logits, first.boxes
    own_from = layers  # layers of the second half from here on use the one-to-many matcher
    if second is not None:
        own_from = 0 if one_to_many.config.on_auxiliary_layers else layers - 1
        logits = torch.cat([logits, second.logits[:own_from]])
        boxes = torch.cat([boxes, second.boxes[:own_from]])
    at_once = max(1, _COSTS_AT_ONCE // max(1, len(targets.boxes) * logits.shape[-1]))
    parts = zip(logits.split(at_once), boxes.split(at_once), strict=True)
    values = [hungarian.cost(*part, targets) for part in parts]
    if second is not None:
        values.append(one_to_many.margin(second.logits[own_from:], second.boxes[own_from:], targets))
    return torch.cat(values), len(logits)


def _copy_to_host(values: Tensor, targets: Targets) -> tuple[HostArray, list[int]]:
    """The [K, T, P] values and the targets per query. The only point where the loss waits for the device."""
    flat = torch.cat([targets.counts.float(), values.flatten()]).cpu().numpy()
    queries = len(targets.counts)
    counts = flat[:queries].astype(np.int64)  # float32 holds integers up to 2^24 exactly
    host = flat[queries:].reshape(values.shape)
    np.nan_to_num(host, copy=False)  # the assignment wants numbers
    return host, counts.tolist()


def packed(pairs: list[list[Pairs]], counts: list[int], device: torch.device) -> Matches:
    """Matches of one half from the pairs of each layer and query."""
    starts = np.cumsum([0, *counts])
    columns = [
        np.stack([np.full_like(source, layer), np.full_like(source, query), source, target + starts[query]])
        for layer, per_query in enumerate(pairs)
        for query, (source, target) in enumerate(per_query)
    ]
    per_layer = [sum(len(source) for source, _ in per_query) for per_query in pairs]
    index = torch.from_numpy(np.concatenate(columns, axis=1))
    if device.type == "cuda":
        index = index.pin_memory()  # else the host waits for the copy, and with it for all that is queued
    layer, batch, source, target = index.to(device, non_blocking=True).unbind()
    per_query = [len(source) for source, _ in pairs[-1]]
    return Matches(layer, batch, source, target, per_layer, per_query)
