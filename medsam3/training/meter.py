"""What a step costs and gives: means of the loss terms, speed, memory."""

from __future__ import annotations

import resource
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from medsam3 import distributed


@dataclass
class _Interval:
    """Sums since the last reading."""

    terms: dict[str, Tensor] = field(default_factory=dict)
    norm: Tensor | None = None  # of the last step's gradient, before clipping
    clipped: Tensor | None = None  # steps whose gradient was clipped
    steps: int = 0
    skipped: int = 0
    batches: int = 0
    images: int = 0
    queries: int = 0


class StepMeter:
    """Means of the loss terms between two readings, and the speed. Reading moves few tensors to the CPU."""

    def __init__(self, device: torch.device, state: Mapping[str, Any] | None = None) -> None:
        """
        Args:
            state: `state()` of a meter in the middle of an interval, which this one goes on with.
        """
        self._device = device
        self.asked: Counter[str] = Counter()  # concepts of the epoch by kind; whoever begins an epoch clears it
        self.restart()
        if state is not None:
            self._interval = _Interval(**_moved(state["interval"], device))
            self.asked.update(state["asked"])

    def state(self) -> dict[str, Any]:
        """What the interval so far adds to the next reading, the time apart; and what was asked."""
        return {"interval": _moved(vars(self._interval), torch.device("cpu")), "asked": dict(self.asked)}

    def restart(self) -> None:
        self._interval = _Interval()
        self._since = time.perf_counter()

    def add(self, total: Tensor, terms: Mapping[str, Tensor], *, images: int, queries: int) -> None:
        now = self._interval
        for name, value in {"total": total.detach(), **terms}.items():
            now.terms[name] = now.terms[name] + value if name in now.terms else value
        now.batches += 1
        now.images += images
        now.queries += queries

    def add_gradient_norm(self, norm: Tensor, limit: float) -> None:
        """Norm before clipping: the reading shows the last one, and the share of steps in which it was above."""
        now, clipped = self._interval, (norm > limit).float()
        now.norm = norm
        now.clipped = clipped if now.clipped is None else now.clipped + clipped
        now.steps += 1

    def add_skipped(self) -> None:
        """A step was left out; its losses are in no mean."""
        self._interval.skipped += 1

    def read(self, optimizer: Optimizer) -> dict[str, float]:
        """Named scalars, the losses averaged over ranks; starts the next interval. All ranks must call it."""
        now = self._interval
        names = sorted(now.terms)
        means: list[float] = []
        if names:  # on all ranks or on none
            sums = torch.stack([now.terms[name].float() for name in names]) / now.batches
            means = distributed.mean_over_ranks(sums).tolist()
        seconds = time.perf_counter() - self._since
        ranks = distributed.world_size()
        values = {f"loss/{name}": mean for name, mean in zip(names, means, strict=True)}
        values |= {f"lr/{name}": max(rates) for name, rates in _rates_by_part(optimizer).items()}
        values["gradient_norm"] = float(now.norm) if now.norm is not None else 0.0
        values["clipped_share"] = float(now.clipped) / now.steps if now.clipped is not None else 0.0
        values["skipped_steps"] = now.skipped
        values["speed/images_per_s"] = ranks * now.images / seconds
        values["speed/queries_per_s"] = ranks * now.queries / seconds
        values["memory/gib"] = _peak_memory_gib(self._device)
        self.restart()
        return values


def _moved(value: Any, device: torch.device) -> Any:
    """The same with its tensors on a device."""
    if isinstance(value, Mapping):
        return {key: _moved(inner, device) for key, inner in value.items()}
    return value.to(device) if isinstance(value, Tensor) else value


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
