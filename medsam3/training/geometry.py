"""Boxes and masks as coordinates.

Shapes: ... any leading axes, N instances, H x W mask (px).
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


def box_xyxy_to_cxcywh(boxes_xyxy: Tensor) -> Tensor:
    """[..., 4] corners -> [..., 4] centre and size, in the same unit."""
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return torch.cat([0.5 * (low + high), high - low], dim=-1)


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


def masks_to_boxes_cxcywh(masks: Tensor) -> Tensor:
    """The smallest box around each mask; the far edge is exclusive, so that one pixel has a width of 1 / W.

    Args:
        masks: [N, H, W] bool

    Returns:
        [N, 4] cxcywh in 0..1; zeros for an empty mask.
    """
    height_px, width_px = masks.shape[-2:]
    left, right = _extent_px(masks.any(dim=-2))
    top, bottom = _extent_px(masks.any(dim=-1))
    boxes_xyxy_px = torch.stack([left, top, right, bottom], dim=-1)
    side_px = torch.tensor([width_px, height_px, width_px, height_px], device=masks.device)
    return box_xyxy_to_cxcywh(boxes_xyxy_px / side_px)


def _extent_px(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """First and one past the last true position of [N, length]; 0 and 0 where there is none."""
    length = occupied.shape[-1]
    position = torch.arange(length, device=occupied.device)
    end = torch.where(occupied, position + 1, 0).amax(dim=-1)
    start = torch.where(occupied, position, length).amin(dim=-1)
    return torch.minimum(start, end), end
