"""Mask rules: which of the model's answers to a text make its mask. All of them come from one forward pass.

A new rule is one function and one line of RULES. P predictions of instances per query.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from medsam3.config import PredictionConfig
from medsam3.messages import listed

SEMANTIC = -1  # in place of the number of a prediction: the mask of the semantic head


@dataclass(frozen=True)
class Heads:
    """What the detector says of one query, on the CPU."""

    logits: Tensor  # [P]
    scores: Tensor  # [P], 0..1: sigmoid(logit) x sigmoid(presence)
    presence: float  # 0..1


@dataclass(frozen=True)
class Choice:
    """The masks that a rule lays over each other: a pixel is foreground where any of them is."""

    score: float  # 0..1, of the answer as a whole
    masks: list[int]  # numbers of predictions, or SEMANTIC; empty: nothing is there
    confidences: list[float]  # of each mask; times its probability at a pixel they decide overlaps


def top1(heads: Heads, config: PredictionConfig) -> Choice:
    """The mask of the highest score (paper, section 4.2); nothing if that is below `score_threshold`."""
    best = int(heads.logits.argmax())
    score = float(heads.scores[best])
    kept = heads.scores[best] >= config.score_threshold
    return Choice(score, [best] if kept else [], [score] if kept else [])


def union(heads: Heads, config: PredictionConfig) -> Choice:
    """All instances whose score reaches `union_threshold`, together."""
    kept = (heads.scores >= config.union_threshold).nonzero().flatten().tolist()
    return Choice(float(heads.scores.max()), kept, heads.scores[kept].tolist())


def semantic(heads: Heads, config: PredictionConfig) -> Choice:
    """The mask of the semantic head; nothing if the presence of the concept is below `presence_threshold`."""
    kept = heads.presence >= np.float32(config.presence_threshold)  # in the precision of the model, as the others
    return Choice(heads.presence, [SEMANTIC] if kept else [], [heads.presence] if kept else [])


Rule = Callable[[Heads, PredictionConfig], Choice]
RULES: dict[str, Rule] = {"top1": top1, "union": union, "semantic": semantic}
THRESHOLDS = {"top1": "score_threshold", "union": "union_threshold", "semantic": "presence_threshold"}  # of the scores
RULE_WORDS = {
    "top1": "the mask of the highest score (paper, section 4.2)",
    "union": "all instance masks above a score",
    "semantic": "the semantic head's mask, if the concept is present",
    "masks": "masks that came as files",
}


def refuse_not_finite(finite: Iterable[bool], prompts: Sequence[str]) -> None:
    """Raises a ValueError that names the prompts whose answers hold NaN or infinity: no rule could choose."""
    asked = [text for text, fine in zip(prompts, finite, strict=True) if not fine]
    if asked:
        raise ValueError(
            f"the model's scores or masks are not finite for: {listed(asked)}; check its weights, try bf16=false"
        )
