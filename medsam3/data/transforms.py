"""From pixels to the model's input, as Meta prepares it: square resize, values from -1 to 1 (paper, section 3.2).

Shapes: H x W the image, S the side of the model input, N instances.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tvf

from medsam3.data.batch import Query, normalised
from medsam3.data.mask_crops import MaskCrops
from medsam3.layouts.instances import Instances


@dataclass(frozen=True)
class Frame:
    """Where an image lies in the square of the model input, px. The rest is black."""

    size: int
    side: int
    left: int = 0
    top: int = 0

    @classmethod
    def full(cls, size: int) -> Frame:
        """The image fills the square."""
        return cls(size, size)

    @property
    def place(self) -> tuple[slice, ...]:
        """Of [..., S, S] the image's own part."""
        return ..., slice(self.top, self.top + self.side), slice(self.left, self.left + self.side)  # type: ignore[return-value]


def image_to_tensor(image: NDArray[np.uint8], image_size: int) -> Tensor:
    """[H, W, 3] uint8 -> [3, S, S] float: bilinear with antialiasing, aspect ratio not kept, mean and std 0.5."""
    return normalised(square(image, image_size))


def square(image: NDArray[np.uint8], side: int) -> Tensor:
    """[H, W, 3] uint8 -> [3, side, side] uint8."""
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    return tvf.resize(pixels, [side, side], v2.InterpolationMode.BILINEAR, antialias=True)


def framed(pixels: Tensor, frame: Frame) -> Tensor:
    """[3, side, side] -> [3, S, S] uint8."""
    if frame.side == frame.size:
        return pixels
    canvas = torch.zeros((3, frame.size, frame.size), dtype=torch.uint8)
    canvas[frame.place] = pixels
    return canvas


def to_query(sample_id: str, text: str, instances: Instances, frame: Frame, kind: str = "present") -> Query:
    """A query with its targets: boxes from the masks at full size, masks of S x S px by area.

    An instance that is too thin for the resized mask keeps a piece there (see `Instances.resized_pieces`).
    """
    pieces = instances.resized_pieces((frame.side, frame.side))
    framed_pieces = ((frame.top + row, frame.left + column, piece) for row, column, piece in pieces)
    masks = MaskCrops.packed(framed_pieces, (frame.size, frame.size))
    boxes = instances.boxes_cxcywh
    if frame.side != frame.size:
        scale = np.float32(frame.side / frame.size)
        boxes = boxes * scale + np.asarray([frame.left, frame.top, 0, 0], np.float32) / np.float32(frame.size)
    return Query(sample_id, text, torch.from_numpy(boxes), masks, kind)
