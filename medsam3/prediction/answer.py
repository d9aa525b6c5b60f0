"""What the model answers to one concept asked of one image.

Shapes: h x w mask logits, H x W the original image.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from medsam3.layouts.instances import Instances, Mask
from medsam3.prediction.detections import ScoredInstances
from medsam3.prediction.rules import Choice, Heads


@dataclass(frozen=True)
class Answer:
    """What one rule makes of the model's answer."""

    score: float  # 0..1; NaN: a mask that came without
    pixels: Mask | Tensor  # [H, W] bool, where it was made: a mask on the GPU is copied only for who wants to see it

    @cached_property
    def mask(self) -> Mask:
        """[H, W]"""
        return self.pixels.cpu().numpy() if isinstance(self.pixels, Tensor) else self.pixels

    @property
    def device(self) -> torch.device:
        return self.pixels.device if isinstance(self.pixels, Tensor) else torch.device("cpu")


@dataclass(frozen=True)
class Prediction:
    """What the model answers to one concept."""

    concept: str
    presence: float  # 0..1: is the concept in the image? NaN as in `Answer`
    answers: dict[str, Answer]  # by rule, in the order of `prediction.rules`
    instances: tuple[tuple[float, Instances], ...] = ()  # score and mask of each, those of the first rule, if asked for
    detections: ScoredInstances | None = None  # whatever the rules, if asked for

    @property
    def answer(self) -> Answer:
        """That of the first rule."""
        return next(iter(self.answers.values()))


@dataclass(frozen=True)
class Query:
    """A query's heads and the mask logits that its rules chose, [h, w] by number of prediction or SEMANTIC."""

    heads: Heads
    choices: dict[str, Choice]
    logits: dict[int, Tensor]
    detections: ScoredInstances | None = None
