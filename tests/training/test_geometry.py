from __future__ import annotations

import pytest
import torch

from medsam3.training.geometry import (
    box_cxcywh_to_xyxy,
    box_iou,
    generalized_box_iou,
)


def test_corners_of_a_box_given_by_centre_and_size() -> None:
    box_cxcywh = torch.tensor([0.5, 0.4, 0.2, 0.6])
    box_xyxy = torch.tensor([0.4, 0.1, 0.6, 0.7])
    torch.testing.assert_close(box_cxcywh_to_xyxy(box_cxcywh), box_xyxy)


@pytest.mark.parametrize(
    ("a_xyxy", "b_xyxy", "iou", "giou"),
    [
        ([0, 0, 2, 2], [1, 1, 3, 3], 1 / 7, 1 / 7 - 2 / 9),  # overlap 1, union 7, enclosing 9
        ([0, 0, 1, 1], [0, 0, 1, 1], 1.0, 1.0),
        ([0, 0, 1, 1], [2, 0, 3, 1], 0.0, -1 / 3),  # a gap as wide as each box
        ([0, 0, 4, 4], [1, 1, 3, 2], 2 / 16, 2 / 16),  # one inside the other: nothing else is enclosed
        ([0, 0, 1, 1], [1, 0, 2, 1], 0.0, 0.0),  # a common edge
    ],
)
def test_iou_and_giou_worked_out_by_hand(a_xyxy: list, b_xyxy: list, iou: float, giou: float) -> None:
    a, b = torch.tensor(a_xyxy, dtype=torch.float32), torch.tensor(b_xyxy, dtype=torch.float32)
    assert box_iou(a, b).item() == pytest.approx(iou, abs=1e-6)
    assert generalized_box_iou(a, b).item() == pytest.approx(giou, abs=1e-6)
    assert generalized_box_iou(b, a).item() == pytest.approx(giou, abs=1e-6)


def test_all_pairs_by_broadcasting() -> None:
    a = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 1.0, 1.0]])
    b = torch.tensor([[1.0, 1.0, 3.0, 3.0], [0.0, 0.0, 2.0, 1.0], [5.0, 5.0, 6.0, 6.0]])
    expected = torch.tensor([[1 / 7, 1 / 2, 0.0], [0.0, 1 / 2, 0.0]])
    torch.testing.assert_close(box_iou(a[:, None], b), expected)


def test_empty_boxes_give_finite_values_and_gradients() -> None:
    point = torch.tensor([0.3, 0.3, 0.0, 0.0])
    line = torch.tensor([0.3, 0.3, 0.5, 0.0])
    for other in (point, line, torch.tensor([0.6, 0.6, 0.2, 0.2])):
        box_cxcywh = point.clone().requires_grad_()
        iou = box_iou(box_cxcywh_to_xyxy(box_cxcywh), box_cxcywh_to_xyxy(other))
        giou = generalized_box_iou(box_cxcywh_to_xyxy(box_cxcywh), box_cxcywh_to_xyxy(other))
        (iou + giou).backward()
        assert iou.item() == 0.0
        assert -1.0 <= giou.item() <= 0.0
        assert box_cxcywh.grad is not None
        assert box_cxcywh.grad.isfinite().all()
