"""Matching and loss, forward and backward, on made-up predictions of the released size; and beside another version."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from medsam3.benchmarks.loader import interleaved
from medsam3.benchmarks.parts import SEED, training_config
from medsam3.data.batch import Targets, with_tensors
from medsam3.data.mask_crops import MaskCrops
from medsam3.model.detector import BranchOutput, DetectorOutput
from medsam3.training.losses import SetPredictionLoss

LAYERS, PREDICTIONS, WIDTH = 6, 200, 256  # of the released model
CELL_PX = 3.5  # of the image, to a value of the mask logits


@dataclass(frozen=True)
class LossTimes:
    """Medians, ms; of the other version None where there is none."""

    now: float
    other: float | None
    total: float | None  # relative difference
    gradient: float | None  # greatest difference of a gradient, relative to the greatest gradient of its tensor


def loss_times(
    queries: int, targets: int, variant: str, image_size: int, repeats: int, device: torch.device, against: Path | None
) -> LossTimes:
    """
    Args:
        targets: of each query.
        against: a checkout with another version of this package.

    Raises:
        ValueError: no loss is there.
    """
    config = training_config(f"loss.variant={variant}").loss
    output, leaves = _predictions(queries, image_size, variant, device)
    truth = with_tensors(_targets(queries, targets, image_size), lambda tensor: tensor.to(device))
    steps = {"now": partial(_step, SetPredictionLoss(config), output, truth, leaves)}
    if against is not None:
        criterion, packed = _loss_of(against)
        other: Any = truth if packed else replace(truth, masks=cast(Any, truth.masks.paint()))
        steps["other"] = partial(_step, criterion(config), output, other, leaves)
    found = {name: step() for name, step in steps.items()}
    clock = time.process_time if device.type == "cpu" else time.perf_counter  # others use the processor too
    times = {name: median(values) for name, values in interleaved(steps, repeats, clock).items()}
    if against is None:
        return LossTimes(times["now"], None, None, None)
    (total, gradients), (other_total, other_gradients) = found["now"], found["other"]
    gaps = [
        ((one - other).abs().max() / other.abs().max()).item()
        for one, other in zip(gradients, other_gradients, strict=True)
    ]
    return LossTimes(times["now"], times["other"], abs(total / other_total - 1), max(gaps))


def _step(
    criterion: Callable[..., Any], output: DetectorOutput, targets: Targets, leaves: list[Tensor]
) -> tuple[float, list[Tensor]]:
    """The total, and the gradients of the predictions that it reaches. Waits for the device."""
    total = criterion(output, targets).total
    gradients = torch.autograd.grad(total, leaves, allow_unused=True)
    return total.item(), [gradient for gradient in gradients if gradient is not None]


def _predictions(
    queries: int, image_size: int, variant: str, device: torch.device
) -> tuple[DetectorOutput, list[Tensor]]:
    """Random ones of both halves, and the tensors that have a gradient."""
    generator = torch.Generator().manual_seed(SEED)
    side = round(image_size / CELL_PX)
    leaves: list[Tensor] = []

    def leaf(*shape: int, box: bool = False) -> Tensor:
        values = torch.randn(*shape, generator=generator)
        leaves.append((values.sigmoid() if box else values).to(device).requires_grad_())
        return leaves[-1]

    def half() -> BranchOutput:
        logits, boxes = leaf(LAYERS, queries, PREDICTIONS), leaf(LAYERS, queries, PREDICTIONS, 4, box=True)
        if variant != "sam3":
            return BranchOutput(logits, boxes, None, None)
        return BranchOutput(logits, boxes, leaf(queries, PREDICTIONS, WIDTH), leaf(queries, WIDTH, side, side))

    output = DetectorOutput(half(), leaf(LAYERS, queries), leaf(queries, side, side), half())
    return output, leaves


def _targets(queries: int, each: int, size_px: int) -> Targets:
    """Squares at random places, a tenth of the image wide."""
    number, side = queries * each, max(1, size_px // 10)
    corners = torch.randint(0, size_px - side + 1, (number, 2), generator=torch.Generator().manual_seed(SEED))
    square = np.ones((side, side), bool)
    masks = MaskCrops.packed(((y, x, square) for x, y in corners.tolist()), (size_px, size_px))
    boxes = torch.cat([corners + side / 2, torch.full((number, 2), float(side))], dim=1) / size_px
    return Targets(torch.full((queries,), each, dtype=torch.int64), boxes, masks)


def _loss_of(checkout: Path) -> tuple[Any, bool]:
    """The class of the loss of another version, and whether it takes masks as crops."""
    with _other_package(checkout):
        for name in ("medsam3.training", "medsam3"):  # before there were rooms
            if (checkout / name.replace(".", "/") / "losses.py").is_file():
                criterion = importlib.import_module(f"{name}.losses").SetPredictionLoss
                return criterion, (checkout / "medsam3/data/mask_crops.py").is_file()
    raise ValueError(f"--against {checkout}: no medsam3/training/losses.py nor medsam3/losses.py there")


@contextmanager
def _other_package(checkout: Path) -> Iterator[None]:
    """Within, `medsam3` is that of the checkout; functions keep the modules that they were made with."""
    own = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "medsam3"}
    for name in own:
        del sys.modules[name]
    sys.path.insert(0, str(checkout))
    try:
        yield
    finally:
        sys.path.remove(str(checkout))
        for name in [name for name in sys.modules if name.partition(".")[0] == "medsam3"]:
            del sys.modules[name]
        sys.modules |= own
