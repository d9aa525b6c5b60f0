"""The ViT's output for the tracker, slice by slice: from the tracker's own ViT, or from the detector's.

The tracker was trained on the features of the released ViT. Fine-tuning of the ViT shifts what it reads, and no loss
sees that. With its own ViT a tracker is exact, for a second pass over each slice (5.4 of some 6.3 TFLOP at 1008 px).
With the detector's ViT the slice is seen once, and `drift` says by how much the tracker's features change.

Shapes: D slices of H x W px, T tokens of a slice.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medsam3.data.transforms import image_to_tensor
from medsam3.prediction.volume import Pictures

HiddenOf = Callable[[int], Tensor]  # number of a slice -> [1, T, width]
DRIFT_SLICES = 3


class OwnVision:
    """Runs the tracker's ViT on a slice when asked."""

    def __init__(self, backbone: nn.Module, image_size: int) -> None:
        self.backbone = backbone
        self.image_size = image_size

    @contextmanager
    def opened(self, pictures: Pictures) -> Iterator[HiddenOf]:
        device = next(self.backbone.parameters()).device

        @torch.inference_mode()
        def hidden_of(index: int) -> Tensor:
            return self.backbone(image_to_tensor(pictures[index], self.image_size)[None].to(device)).last_hidden_state

        yield hidden_of


class SharedVision:
    """Keeps what the detector's ViT gives while the slices are detected, in their order, in a scratch file."""

    def __init__(self, backbone: nn.Module) -> None:
        self.backbone = backbone

    @contextmanager
    def opened(self, pictures: Pictures) -> Iterator[HiddenOf]:
        device = next(self.backbone.parameters()).device
        shape: torch.Size | None = None
        dtype: torch.dtype | None = None
        with tempfile.TemporaryFile() as file:

            def keep(_module: nn.Module, _args: Any, output: Any) -> None:
                nonlocal shape, dtype
                hidden = output.last_hidden_state.contiguous()
                shape, dtype = hidden.shape[1:], hidden.dtype
                file.seek(0, os.SEEK_END)
                file.write(hidden.cpu().view(torch.uint8).numpy())

            def hidden_of(index: int) -> Tensor:
                assert shape is not None and dtype is not None, "nothing was detected yet"
                size = shape.numel() * dtype.itemsize
                file.seek(index * size)
                return torch.frombuffer(bytearray(file.read(size)), dtype=dtype).view(1, *shape).to(device)

            hook = self.backbone.register_forward_hook(keep)
            try:
                yield hidden_of
            finally:
                hook.remove()


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    """Whether two modules hold the same numbers under the same names."""
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(
        value.shape == second[name].shape and torch.equal(value.cpu(), second[name].cpu())
        for name, value in first.items()
    )


@torch.inference_mode()
def drift(video: Any, pictures: Pictures, exact: HiddenOf, shared: HiddenOf) -> list[float]:
    """How much the tracker's feature maps change with the shared ViT: |change| / |exact| on a few slices.

    Args:
        video: a Sam3VideoModel, for its tracker neck.

    Returns:
        One number for each map, fine to coarse.
    """
    change, size = np.zeros(3), np.zeros(3)
    for index in np.linspace(0, len(pictures) - 1, min(DRIFT_SLICES, len(pictures))).round().astype(int).tolist():
        maps = [
            video.get_vision_features_for_tracker(SimpleNamespace(last_hidden_state=hidden_of(index)))[0]
            for hidden_of in (exact, shared)
        ]
        for level, (own, other) in enumerate(zip(*maps, strict=True)):
            change[level] += float((own.float() - other.float()).square().sum())
            size[level] += float(own.float().square().sum())
    return np.sqrt(change / size).tolist()
