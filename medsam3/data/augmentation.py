"""What another picture of the same kind might look like: position, size and looks by modality, drawn for each image.

Every draw comes from a generator that the caller seeds by run, epoch and image. Masks move as crops (`Instances`) with
the image; torchvision changes the pixels. A new step is one function here and one key of LookConfig.

Shapes: H x W the image, S the side of the model input.
"""

from __future__ import annotations

import dataclasses
import math
import random
import re
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf

from medsam3.config import AugmentationConfig, LookConfig
from medsam3.data.transforms import Frame
from medsam3.layouts.instances import Instances
from medsam3.messages import one_of
from medsam3.registry.spec import MODALITIES, DatasetSpec

ORIENTATIONS = ("none", "mirror", "all")
Masks = dict[str, Instances]
Image = NDArray[np.uint8]  # [H, W, 3]
Window = tuple[int, int, int, int]  # x0, y0, x1, y1 in px, the far edge exclusive
# Absorption of haematoxylin, eosin and a third stain in red, green and blue (Ruifrok and Johnston 2001), one a row.
STAINS = torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])


class Augmentation:
    """The steps of a configuration for the data sets of a run."""

    def __init__(self, config: AugmentationConfig, specs: Mapping[str, DatasetSpec]) -> None:
        """
        Raises:
            ValueError: an unknown or a missing modality, an unknown orientation.
        """
        self.chance = config.chance
        self.smallest = config.smallest
        for modality, look in config.modalities.items():
            one_of("data.augmentation.modalities", modality, MODALITIES)
            one_of(f"data.augmentation.modalities.{modality}.orientation", look.orientation, ORIENTATIONS)
        self._looks: dict[str, LookConfig] = {}
        self._unpadded: set[str] = set()
        for name, spec in specs.items():
            one_of(f"data.augmentation.modalities: {name} is of modality", spec.modality, config.modalities)
            look = config.modalities[spec.modality]
            words = {word for concept in spec.concept_names for word in re.findall(r"[a-z]+", concept.lower())}
            sided = not words.isdisjoint(config.sided)
            self._looks[name] = dataclasses.replace(look, orientation="none") if sided else look
            if not words.isdisjoint(config.unpadded):
                self._unpadded.add(name)

    def moved(self, dataset: str, image: Image, masks: Masks, draw: random.Random) -> tuple[Image, Masks]:
        """A part of the image, perhaps mirrored and turned, and its masks. Some concept keeps a piece."""
        look = self._looks[dataset]
        if self._does(look.crop < 1, draw):
            window = window_around(masks.values(), image.shape[:2], draw.uniform(look.crop, 1), draw)
            image, masks = cut_out(image, masks, window)
        pixels = torch.from_numpy(np.ascontiguousarray(image))  # torch turns ten times as fast as numpy
        if look.orientation != "none" and draw.random() < 0.5:
            pixels, masks = pixels.flip(1), {concept: found.mirrored() for concept, found in masks.items()}
        for _ in range(draw.randrange(4) if look.orientation == "all" else 0):
            pixels, masks = pixels.rot90(), {concept: found.turned() for concept, found in masks.items()}
        image = pixels.contiguous().numpy()
        return image, masks

    def frame(self, dataset: str, size: int, draw: random.Random) -> Frame:
        """The place of the image in its padded square of `size` px."""
        if dataset in self._unpadded:
            return Frame.full(size)
        side = draw.randint(math.ceil(self.smallest * size), size)
        return Frame(size, side, left=draw.randint(0, size - side), top=draw.randint(0, size - side))

    def repainted(self, dataset: str, pixels: Tensor, draw: random.Random) -> Tensor:
        """[3, S, S] uint8 with other colours, brightness, contrast, sharpness and noise."""
        look = self._looks[dataset]
        if self._does(look.stain, draw):
            pixels = restained(pixels, [draw.uniform(1 - look.stain, 1 + look.stain) for _ in STAINS])
        brightness, contrast = (
            draw.uniform(1 - most, 1 + most) if self._does(most, draw) else 1.0
            for most in (look.brightness, look.contrast)
        )
        gamma = (1 + look.gamma) ** draw.uniform(-1, 1) if self._does(look.gamma, draw) else 1.0
        if (brightness, contrast, gamma) != (1.0, 1.0, 1.0):
            pixels = toned(pixels, brightness, contrast, gamma)
        if self._does(look.blur, draw):
            pixels = blurred(pixels, draw.uniform(0, look.blur))
        if self._does(look.noise, draw):
            pixels = noisy(pixels, draw.uniform(0, look.noise), draw.getrandbits(63))
        return pixels

    def _does(self, step: float, draw: random.Random) -> bool:
        return bool(step) and draw.random() < self.chance


def cut_out(image: Image, masks: Masks, window: Window) -> tuple[Image, Masks]:
    """What lies in a window of an image."""
    x0, y0, x1, y1 = window
    return image[y0:y1, x0:x1], {concept: found.cropped(window) for concept, found in masks.items()}


def window_around(found: Iterable[Instances], size: tuple[int, ...], fraction: float, draw: random.Random) -> Window:
    """A window of a fraction of the image's sides that holds a pixel of some instance, if there is one."""
    height, width = max(round(size[0] * fraction), 1), max(round(size[1] * fraction), 1)
    top, left = draw.randint(0, size[0] - height), draw.randint(0, size[1] - width)
    pieces = [(box, crop) for one in found for box, crop in zip(one.boxes_px.tolist(), one.crops, strict=True)]
    if pieces:
        (x0, y0, _, _), crop = draw.choice(pieces)
        rows, columns = np.nonzero(crop)
        pixel = draw.randrange(len(rows))
        y, x = y0 + int(rows[pixel]), x0 + int(columns[pixel])
        top = draw.randint(max(y - height + 1, 0), min(y, size[0] - height))
        left = draw.randint(max(x - width + 1, 0), min(x, size[1] - width))
    return left, top, left + width, top + height


def thinned(image: Image, masks: Masks, most: int, draw: random.Random) -> tuple[Image, Masks]:
    """A part of the image in which no concept has more than `most` instances; the image itself where none has.

    Raises:
        ValueError: more instances than that lie in one place.
    """
    while (count := max((len(found) for found in masks.values()), default=0)) > most:
        if max(image.shape[:2]) < 16:
            raise ValueError(f"{count} instances within {image.shape[1]} x {image.shape[0]} px: do masks come twice?")
        fraction = min(math.sqrt(0.9 * most / count), 0.95)
        image, masks = cut_out(image, masks, window_around(masks.values(), image.shape[:2], fraction, draw))
    return image, masks


def toned(pixels: Tensor, brightness: float, contrast: float, gamma: float) -> Tensor:
    """[3, H, W] uint8 by torchvision's adjust_brightness, adjust_contrast and adjust_gamma, in one table."""
    values = (np.arange(256) / 255 * brightness).clip(0, 1)
    mean = float(tvf.rgb_to_grayscale(pixels).float().mean()) / 255 * brightness
    table = ((values - mean) * contrast + mean).clip(0, 1) ** gamma
    return torch.from_numpy(np.take((255 * table).round().astype(np.uint8), pixels.numpy()))


def blurred(pixels: Tensor, lost: float) -> Tensor:
    """[3, H, W] uint8 as if its resolution were less by a fraction: resized and resized back."""
    size = list(pixels.shape[1:])
    fewer = [max(round(side * (1 - lost)), 1) for side in size]
    return tvf.resize(tvf.resize(pixels, fewer, antialias=True), size, antialias=True)


def restained(pixels: Tensor, strengths: Iterable[float]) -> Tensor:
    """[3, H, W] uint8 of an H&E section with each stain as much stronger; bare glass stays white."""
    mixing = torch.linalg.inv(STAINS) @ torch.diag(torch.tensor(list(strengths))) @ STAINS
    density = -torch.log(torch.arange(256).clamp(min=1) / 255)[pixels.long()]
    return torch.exp(-torch.einsum("chw,cd->dhw", density, mixing)).mul_(255).round_().clamp_(0, 255).to(torch.uint8)


def noisy(pixels: Tensor, sigma: float, seed: int) -> Tensor:
    """[3, H, W] uint8 with Gaussian noise of sigma (as a fraction of the grey scale), the same in all channels."""
    noise = torch.randn(pixels.shape[1:], generator=torch.Generator().manual_seed(seed))
    return pixels.float().add_(noise, alpha=255 * sigma).round_().clamp_(0, 255).to(torch.uint8)
