"""What is found of a concept on one slice, by the detector or the tracker: instances, and the mask that they make.

Shapes: C concepts, N instances of one concept on one slice, h x w mask logits, H x W the slice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsam3.layouts.instances import Mask
from medsam3.messages import one_of
from medsam3.prediction.answer import Query
from medsam3.prediction.image import ImagePredictor
from medsam3.prediction.overlaps import laid_over
from medsam3.prediction.rules import Choice

# From a batch of B slices [H, W, 3] to what is found on each of each concept, [B][C].
DetectSlices = Callable[[Sequence[NDArray[np.uint8]]], "list[list[Found]]"]


@dataclass(frozen=True)
class Found:
    """Masks of a concept on one slice, whose union is the answer; none: nothing is there."""

    score: float  # 0..1, of the answer as a whole, see rules.Choice
    scores: Tensor  # [N]
    logits: Tensor  # [N, h, w]

    @classmethod
    def by_rule(cls, query: Query, rule: str) -> Found:
        choice = query.choices[rule]
        logits = [query.logits[number] for number in choice.masks]
        return cls(choice.score, torch.tensor(choice.confidences), torch.stack(logits) if logits else NOTHING)

    def only(self, kept: Sequence[int] | Tensor) -> Found:
        return Found(self.score, self.scores[kept], self.logits[kept])

    def stored(self) -> Found:
        """On the host, in half precision: what is kept of many slices."""
        return Found(self.score, self.scores.cpu(), self.logits.to("cpu", torch.float16))

    def distinct(self, limit: float) -> Found:
        """Best first; of two instances whose masks overlap more (IoU) than the limit the better one. 0: all."""
        ordered = self.only(self.scores.argsort(descending=True, stable=True))
        if limit <= 0 or len(self.scores) < 2:
            return ordered
        flat = (ordered.logits > 0).flatten(1).float()
        shared = flat @ flat.T
        areas = shared.diagonal()
        overlaps = (shared / (areas[:, None] + areas - shared).clamp(min=1) > limit).tolist()
        kept: list[int] = []
        for i, row in enumerate(overlaps):
            if not any(row[k] for k in kept):
                kept.append(i)
        return ordered.only(kept)

    def mask(self, size: tuple[int, int]) -> tuple[Mask, NDArray[np.float32]]:
        """[H, W] at the slice's size: the union, and at each pixel the highest of score x probability."""
        choice = Choice(self.score, list(range(len(self.scores))), self.scores.tolist())
        device = self.logits.device
        mask, confidence = laid_over(choice, dict(enumerate(self.logits)), size, device, with_confidence=True)
        assert confidence is not None
        return mask.cpu().numpy(), confidence.cpu().numpy()


NOTHING = torch.zeros(0, 1, 1)


def slice_detector(predictor: ImagePredictor, prompts: Sequence[str], rule: str) -> DetectSlices:
    """The detector as evaluation runs it, on batches of slices.

    Raises:
        ValueError: a rule that the predictor's configuration does not name; answers that are not finite.
    """
    one_of("rule", rule, predictor.config.rules)
    if predictor.config.tile is not None:
        raise ValueError(f"prediction.tile={predictor.config.tile}: slices of volumes are not cut; set null")

    def detect(pictures: Sequence[NDArray[np.uint8]]) -> list[list[Found]]:
        found = [Found.by_rule(query, rule) for query in predictor.ask(pictures, prompts)]
        return [found[start : start + len(prompts)] for start in range(0, len(found), len(prompts))]

    return detect
