"""What a step costs and gives: means of the loss terms, speed, memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from medsam3 import distributed


class StepMeter:
    """Means of the loss terms between two readings, and the speed. Reading moves one tensor to the CPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.restart()

    def restart(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._batches = self._images = self._queries = self._skipped = 0
        self._norm: Tensor | None = None
        self._since = time.perf_counter()

    def add(self, total: Tensor, terms: Mapping[str, Tensor], *, images: int, queries: int) -> None:
        for name, value in {"total": total.detach(), **terms}.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._batches += 1
        self._images += images
        self._queries += queries

    def add_gradient_norm(self, norm: Tensor) -> None:
        """Norm before clipping; the reading shows the last one."""
        self._norm = norm

    def add_skipped(self) -> None:
        """A step was left out; its losses are in no mean."""
        self._skipped += 1

    def read(self, optimizer: Optimizer) -> dict[str, float]:
        """Named scalars, the losses averaged over ranks; starts the next interval. All ranks must call it."""
        names = sorted(self._sums)
        means: list[float] = []
        if names:  # on all ranks or on none
            sums = torch.stack([self._sums[name].float() for name in names]) / self._batches
            means = distributed.mean_over_ranks(sums).tolist()
        seconds = time.perf_counter() - self._since
        ranks = distributed.world_size()
        values = {f"loss/{name}": mean for name, mean in zip(names, means, strict=True)}
        values |= {f"lr/{name}": max(rates) for name, rates in _rates_by_part(optimizer).items()}
        values["gradient_norm"] = float(self._norm) if self._norm is not None else 0.0
        values["skipped_steps"] = self._skipped
        values["speed/images_per_s"] = ranks * self._images / seconds
        values["speed/queries_per_s"] = ranks * self._queries / seconds
        values["memory/gib"] = _peak_memory_gib(self._device)
        self.restart()
        return values


def _rates_by_part(optimizer: Optimizer) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {}
    for group in optimizer.param_groups:
        rates.setdefault(group["part"], []).append(group["lr"])
    return rates


def _peak_memory_gib(device: torch.device) -> float:
    """Peak of this process so far: GPU memory held by torch, or resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # ru_maxrss is in KiB on Linux
