"""Sam3Model as training needs it: every decoder layer's output and the one-to-many branch, without a new parameter.

Shapes: I images, Q queries (image-concept pairs), P predictions per query, L decoder layers, h x w mask logits.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class BranchOutput:
    """Predictions of one half of the decoder queries; the last layer index is the final layer."""

    logits: Tensor  # [L, Q, P]
    boxes: Tensor  # [L, Q, P, 4] cxcywh in 0..1
    masks: Tensor  # [Q, P, h, w] logits, final layer


@dataclass
class DetectorOutput:
    one_to_one: BranchOutput
    presence: Tensor  # [L, Q] logits of the decoder's presence token
    semantic: Tensor  # [Q, h, w] logits of the semantic head
    one_to_many: BranchOutput | None = None  # training only
