"""From pixels to the model's input, as Meta prepares it: square resize, values from -1 to 1 (paper, section 3.2).

Shapes: H x W the image, S the side of the model input, N instances.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tvf

from medsam3.data.batch import Query
from medsam3.layouts.instances import Instances


def image_to_tensor(image: NDArray[np.uint8], image_size: int) -> Tensor:
    """[H, W, 3] uint8 -> [3, S, S] float: bilinear with antialiasing, aspect ratio not kept, mean and std 0.5."""
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    square = tvf.resize(pixels, [image_size, image_size], v2.InterpolationMode.BILINEAR, antialias=True)
    return square.float().mul_(2 / 255).sub_(1)  # (x / 255 - 0.5) / 0.5 in two passes over the pixels instead of four


def to_query(sample_id: str, text: str, instances: Instances, mask_size: int) -> Query:
    """A query with its targets: boxes from the masks at full size, masks [N, S, S] by nearest neighbour.

    An instance that is too thin for the resized mask keeps one pixel there (see `Instances.resized`).
    """
    return Query(
        sample_id=sample_id,
        text=text,
        boxes=torch.from_numpy(instances.boxes_cxcywh),
        masks=torch.from_numpy(instances.resized((mask_size, mask_size))),
    )
