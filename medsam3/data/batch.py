"""Packing samples into a batch: images once, queries flat over all images.

Shapes: I images, Q queries (image-concept pairs), T distinct phrases of C tokens, N target instances, S image side
(px), h x w px of a target mask.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medsam3.data.mask_crops import MaskCrops

Tokenizer = Callable[[Sequence[str]], tuple[Tensor, Tensor]]  # texts -> input_ids [T, C], attention_mask [T, C]


@dataclass
class Query:
    """One concept asked of one image. No instances: the concept is absent from the image."""

    sample_id: str  # "<data set>/<item>/<concept>", named in errors and result files
    text: str
    boxes: Tensor  # [N, 4] cxcywh in 0..1
    masks: MaskCrops  # N of h x w
    kind: str  # present, or why it is known to be absent: one of prompts.KINDS


@dataclass
class Sample:
    image: Tensor  # [3, S, S] uint8
    queries: list[Query]


@dataclass
class Targets:
    """Ground truth of Q queries; the instances of all queries lie one behind the other."""

    counts: Tensor  # [Q] int64, instances per query
    boxes: Tensor  # [N, 4] cxcywh in 0..1
    masks: MaskCrops  # N of h x w
    sample_ids: list[str] = field(default_factory=list)  # [Q]
    kinds: list[str] = field(default_factory=list)  # [Q] as Query.kind


@dataclass
class Batch:
    pixel_values: Tensor  # [I, 3, S, S] uint8, a quarter of the normalised ones
    image_index: Tensor  # [Q] int64, the image of each query
    input_ids: Tensor  # [T, C] int64, distinct phrases
    attention_mask: Tensor  # [T, C] int64, 1 = valid
    text_index: Tensor  # [Q] int64, the phrase of each query
    targets: Targets

    def __getstate__(self) -> dict[str, Any]:
        """By value, through the pipe of a data loading process: tensors would take a file descriptor each, and room in
        /dev/shm, of which a container has 64 MB."""
        return vars(with_tensors(self, Tensor.numpy))

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        vars(self).update(vars(with_tensors(self, torch.from_numpy, np.ndarray)))

    def pin_memory(self) -> Batch:
        """In memory that the device reads while the host goes on; the data loader looks for this method."""
        return with_tensors(self, Tensor.pin_memory)

    def to(self, device: torch.device) -> Batch:
        """On the device; the host does not wait for the copies of a pinned batch."""
        return with_tensors(self, lambda tensor: tensor.to(device, non_blocking=True))

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The arguments of the detector; pixels are normalised here, where the batch is."""
        pixels = normalised(self.pixel_values)
        return pixels, self.image_index, self.input_ids, self.attention_mask, self.text_index


def one_ahead(batches: Iterable[Batch], device: torch.device) -> Generator[Batch]:
    """The batches on the device, the copy of each begun before the one in front of it is handed out.

    On the stream of the computation: copied ahead of the step that is queued next, a batch costs the device 0.1 ms per
    image (3 MB) and the host nothing. A stream of its own would hide that, and every tensor would have to be recorded
    on both.
    """
    ready: list[Batch] = []
    for batch in batches:
        ready.append(batch.to(device))
        if len(ready) > 1:
            yield ready.pop(0)
    yield from ready


def normalised(pixels: Tensor) -> Tensor:
    """uint8 -> float from -1 to 1: (x / 255 - 0.5) / 0.5 in two passes over the pixels instead of four."""
    return pixels.float().mul_(2 / 255).sub_(1)


def with_tensors(data: Any, change: Callable[[Any], Any], kind: type = Tensor) -> Any:
    """A copy of a dataclass, every tensor (or what else it holds of a kind) in it and in its dataclasses changed."""
    values = {field.name: getattr(data, field.name) for field in fields(data)}
    for name, value in values.items():
        if isinstance(value, kind):
            values[name] = change(value)
        elif is_dataclass(value):
            values[name] = with_tensors(value, change, kind)
    return replace(data, **values)


def collate(samples: Sequence[Sample], tokenizer: Tokenizer) -> Batch:
    """Stack the images and lay the queries of all samples one behind the other; an image may have no query."""
    queries = [query for sample in samples for query in sample.queries]
    texts = {text: i for i, text in enumerate(dict.fromkeys(query.text for query in queries))}
    input_ids, attention_mask = tokenizer(list(texts))
    targets = Targets(
        counts=torch.tensor([len(query.boxes) for query in queries], dtype=torch.int64),
        boxes=torch.cat([query.boxes for query in queries]),
        masks=MaskCrops.together([query.masks for query in queries]),
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
