"""Packing samples into a batch: images once, queries flat over all images.

Shapes: I images, Q queries (image-concept pairs), T distinct phrases of C tokens, N target instances, S image side
(px), h x w target mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Tokenizer = Callable[[Sequence[str]], tuple[Tensor, Tensor]]  # texts -> input_ids [T, C], attention_mask [T, C]


@dataclass
class Query:
    """One concept asked of one image. No instances: the concept is absent from the image."""

    sample_id: str  # "<data set>/<item>/<concept>", named in errors and result files
    text: str
    boxes: Tensor  # [N, 4] cxcywh in 0..1
    masks: Tensor  # [N, h, w] bool
    kind: str  # present, or why it is known to be absent: one of prompts.KINDS


@dataclass
class Sample:
    image: Tensor  # [3, S, S] float, normalised
    queries: list[Query]


@dataclass
class Targets:
    """Ground truth of Q queries; the instances of all queries lie one behind the other."""

    counts: Tensor  # [Q] int64, instances per query
    boxes: Tensor  # [N, 4] cxcywh in 0..1
    masks: Tensor  # [N, h, w] bool
    sample_ids: list[str] = field(default_factory=list)  # [Q]
    kinds: list[str] = field(default_factory=list)  # [Q] as Query.kind

    def pin_memory(self) -> Targets:
        """In memory that the device reads while the host goes on; the data loader looks for this method."""
        pinned = (self.counts.pin_memory(), self.boxes.pin_memory(), self.masks.pin_memory())
        return Targets(*pinned, self.sample_ids, self.kinds)

    def to(self, device: torch.device) -> Targets:
        return Targets(
            self.counts.to(device, non_blocking=True),
            self.boxes.to(device, non_blocking=True),
            self.masks.to(device, non_blocking=True),
            self.sample_ids,
            self.kinds,
        )


@dataclass
class Batch:
    pixel_values: Tensor  # [I, 3, S, S]
    image_index: Tensor  # [Q] int64, the image of each query
    input_ids: Tensor  # [T, C] int64, distinct phrases
    attention_mask: Tensor  # [T, C] int64, 1 = valid
    text_index: Tensor  # [Q] int64, the phrase of each query
    targets: Targets

    def pin_memory(self) -> Batch:
        """See `Targets.pin_memory`."""
        return self._with([tensor.pin_memory() for tensor in self.inputs], self.targets.pin_memory())

    def to(self, device: torch.device) -> Batch:
        return self._with([tensor.to(device, non_blocking=True) for tensor in self.inputs], self.targets.to(device))

    @staticmethod
    def _with(inputs: list[Tensor], targets: Targets) -> Batch:
        pixel_values, image_index, input_ids, attention_mask, text_index = inputs
        return Batch(pixel_values, image_index, input_ids, attention_mask, text_index, targets)

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The arguments of the detector."""
        return self.pixel_values, self.image_index, self.input_ids, self.attention_mask, self.text_index


def collate(samples: Sequence[Sample], tokenizer: Tokenizer) -> Batch:
    """Stack the images and lay the queries of all samples one behind the other; an image may have no query."""
    queries = [query for sample in samples for query in sample.queries]
    texts = {text: i for i, text in enumerate(dict.fromkeys(query.text for query in queries))}
    input_ids, attention_mask = tokenizer(list(texts))
    targets = Targets(
        counts=torch.tensor([len(query.boxes) for query in queries], dtype=torch.int64),
        boxes=torch.cat([query.boxes for query in queries]),
        masks=torch.cat([query.masks for query in queries]),
        sample_ids=[query.sample_id for query in queries],
        kinds=[query.kind for query in queries],
    )
    return Batch(
        pixel_values=torch.stack([sample.image for sample in samples]),
        image_index=torch.tensor([i for i, sample in enumerate(samples) for _ in sample.queries], dtype=torch.int64),
        input_ids=input_ids,
        attention_mask=attention_mask,
        text_index=torch.tensor([texts[query.text] for query in queries], dtype=torch.int64),
        targets=targets,
    )
