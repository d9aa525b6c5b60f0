"""Boxes as coordinates.

Shapes: ... any leading axes.
Boxes are fractions of the image side, 0..1; `cxcywh` is centre and size, `xyxy` the two corners.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Smaller than the area of any box of one pixel; keeps ratios of empty boxes at 0 and their gradients finite.
_SMALLEST_AREA = 1e-12


def box_cxcywh_to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    """[..., 4] centre and size -> [..., 4] corners, in the same unit."""
    center, size = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:]
    return torch.cat([center - 0.5 * size, center + 0.5 * size], dim=-1)


def box_iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Intersection over union of boxes whose leading axes broadcast; 0 where both boxes are empty.

    Args:
        a_xyxy: [..., 4]
        b_xyxy: [..., 4]; for all pairs of [N, 4] and [M, 4] pass `a[:, None]` and `b`.

    Returns:
        [...] in 0..1.
    """
    intersection, union = _intersection_and_union(a_xyxy, b_xyxy)
    return intersection / union.clamp(min=_SMALLEST_AREA)


def generalized_box_iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Generalized IoU (Rezatofighi et al., 2019): IoU less the empty share of the smallest enclosing box.

    Args:
        a_xyxy: [..., 4]
        b_xyxy: [..., 4]; for all pairs of [N, 4] and [M, 4] pass `a[:, None]` and `b`.

    Returns:
        [...] in -1..1; 0 for two empty boxes at the same place.
    """
    intersection, union = _intersection_and_union(a_xyxy, b_xyxy)
    low = torch.minimum(a_xyxy[..., :2], b_xyxy[..., :2])
    high = torch.maximum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    enclosing = (high - low).clamp(min=0).prod(dim=-1)
    iou = intersection / union.clamp(min=_SMALLEST_AREA)
    return iou - (enclosing - union) / enclosing.clamp(min=_SMALLEST_AREA)


def _intersection_and_union(a_xyxy: Tensor, b_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    low = torch.maximum(a_xyxy[..., :2], b_xyxy[..., :2])
    high = torch.minimum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    intersection = (high - low).clamp(min=0).prod(dim=-1)
    return intersection, _area(a_xyxy) + _area(b_xyxy) - intersection


def _area(boxes_xyxy: Tensor) -> Tensor:
    return (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).clamp(min=0).prod(dim=-1)
