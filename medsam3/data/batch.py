"""Packing samples into a batch: images once, queries flat over all images.

Shapes: I images, Q queries (image-concept pairs), T target instances, S image side (px), C text length (tokens), h x w
target mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Tokenizer = Callable[[Sequence[str]], tuple[Tensor, Tensor]]  # texts -> input_ids [Q, C], attention_mask [Q, C]


@dataclass
class Query:
    """One concept asked of one image. No instances: the concept is absent from the image."""

    sample_id: str  # "<data set>/<item>/<concept>", named in errors and result files
    text: str
    boxes: Tensor  # [N, 4] cxcywh in 0..1
    masks: Tensor  # [N, h, w] bool


@dataclass
class Sample:
    image: Tensor  # [3, S, S] float, normalised
    queries: list[Query]


@dataclass
class Targets:
    """Ground truth of Q queries; the instances of all queries lie one behind the other."""

    counts: Tensor  # [Q] int64, instances per query
    boxes: Tensor  # [T, 4] cxcywh in 0..1
    masks: Tensor  # [T, h, w] bool
    sample_ids: list[str] = field(default_factory=list)  # [Q]

    def to(self, device: torch.device) -> Targets:
        return Targets(
            self.counts.to(device, non_blocking=True),
            self.boxes.to(device, non_blocking=True),
            self.masks.to(device, non_blocking=True),
            self.sample_ids,
        )


@dataclass
class Batch:
    pixel_values: Tensor  # [I, 3, S, S]
    image_index: Tensor  # [Q] int64, the image of each query
    input_ids: Tensor  # [Q, C] int64
    attention_mask: Tensor  # [Q, C] int64, 1 = valid
    targets: Targets

    def to(self, device: torch.device) -> Batch:
        return Batch(
            self.pixel_values.to(device, non_blocking=True),
            self.image_index.to(device, non_blocking=True),
            self.input_ids.to(device, non_blocking=True),
            self.attention_mask.to(device, non_blocking=True),
            self.targets.to(device),
        )


def collate(samples: Sequence[Sample], tokenizer: Tokenizer) -> Batch:
    """Stack the images and lay the queries of all samples one behind the other; an image may have no query."""
    queries = [query for sample in samples for query in sample.queries]
    input_ids, attention_mask = tokenizer([query.text for query in queries])
    targets = Targets(
        counts=torch.tensor([len(query.boxes) for query in queries], dtype=torch.int64),
        boxes=torch.cat([query.boxes for query in queries]),
        masks=torch.cat([query.masks for query in queries]),
        sample_ids=[query.sample_id for query in queries],
    )
    return Batch(
        pixel_values=torch.stack([sample.image for sample in samples]),
        image_index=torch.tensor([i for i, sample in enumerate(samples) for _ in sample.queries], dtype=torch.int64),
        input_ids=input_ids,
        attention_mask=attention_mask,
        targets=targets,
    )
