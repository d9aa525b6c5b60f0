"""Matching and loss, forward and backward, on made-up predictions of the released size; and beside another version."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from medsam3.benchmarks.parts import SEED, training_config
from medsam3.benchmarks.reading import interleaved
from medsam3.data.batch import Targets
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
    truth = _targets(queries, targets, image_size if variant != "box_only" else 1, device)
    steps = {"now": partial(_step, SetPredictionLoss(config), output, truth, leaves)}
    if against is not None:
        steps["other"] = partial(_step, _loss_of(against)(config), output, truth, leaves)
    found = {name: step() for name, step in steps.items()}
    times = {name: median(values) for name, values in interleaved(steps, repeats).items()}
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


def _targets(queries: int, each: int, size_px: int, device: torch.device) -> Targets:
    """Squares at random places."""
    generator = torch.Generator().manual_seed(SEED)
    centers, sides = torch.rand(queries * each, 2, generator=generator), torch.full((queries * each, 2), 0.1)
    place = torch.arange(size_px) / size_px
    inside = [(place - centers[:, i, None]).abs() <= 0.05 for i in (0, 1)]  # [N, size] each, x and y
    masks = inside[1][:, :, None] & inside[0][:, None, :]
    counts = torch.full((queries,), each, dtype=torch.int64)
    return Targets(counts, torch.cat([centers, sides], dim=1), masks).to(device)


def _loss_of(checkout: Path) -> Any:
    """The class of the loss of another version, which stands beside this one as if it had other names."""
    with _other_package(checkout):
        for name in ("medsam3.training.losses", "medsam3.losses"):
            if importlib.util.find_spec(name.rpartition(".")[0]) and importlib.util.find_spec(name):
                return importlib.import_module(name).SetPredictionLoss
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
