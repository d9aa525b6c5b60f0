"""What a step costs and gives, as named scalars: the word before the first slash groups them (docs/dashboards.md).

`speed/` and `memory/` depend on the machine; all others are the same for a run that was interrupted.
"""

from __future__ import annotations

import math
import resource
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from medsam3 import distributed
from medsam3.training.losses import LossResult
from medsam3.training.schedule import shown_blocks

T = TypeVar("T")
PRESENCE = ("present", "absent", "present_right", "absent_right")  # as LossResult.presence


@dataclass(frozen=True)
class Workload:
    """What a GPU has to do, for its model FLOPs utilisation (MFU)."""

    of_image: float  # FLOP of forward and backward, nothing computed anew: see plan.Plan
    of_query: float
    peak: float  # FLOP/s of the card

    def mfu(self, images: int, queries: int, seconds: float) -> float:
        return (images * self.of_image + queries * self.of_query) / (seconds * self.peak)

    def __str__(self) -> str:
        of_image, of_query, peak = (value / 1e12 for value in (self.of_image, self.of_query, self.peak))
        return f"MFU of {peak:.4g} TFLOP/s: {of_image:.3g} TFLOP an image and {of_query:.3g} a query, by the plan"


@dataclass
class _Interval:
    """Sums since the last reading."""

    terms: dict[str, Tensor] = field(default_factory=dict)
    presence: Tensor | None = None  # sums of LossResult.presence
    matched: dict[str, int] = field(default_factory=dict)  # sums of LossResult.matched
    norm: Tensor | None = None  # of the last step's gradient, before clipping
    norms: Tensor | None = None  # of its tensors
    parts: list[str] = field(default_factory=list)  # of the model that these belong to
    clipped: Tensor | None = None  # steps whose gradient was clipped
    steps: int = 0
    skipped: int = 0
    batches: int = 0
    queries: int = 0


@dataclass
class _Clock:
    """Of this process, so in no state: the time since the last reading, and what was done in it."""

    since: float
    waited_s: float = 0.0
    images: int = 0
    queries: int = 0


class StepMeter:
    """Means of the loss terms between two readings, and the speed. Reading moves few tensors to the CPU."""

    def __init__(
        self, device: torch.device, work: Workload | None = None, state: Mapping[str, Any] | None = None
    ) -> None:
        """
        Args:
            work: None: no MFU.
            state: `state()` of a meter in the middle of an interval, which this one goes on with.
        """
        self._device = device
        self.work = work
        self.asked: Counter[str] = Counter()  # concepts of the epoch by kind; whoever begins an epoch clears it
        self._restart()
        if state is not None:
            self._interval = _Interval(**_moved(state["interval"], device))
            self.asked.update(state["asked"])

    def state(self) -> dict[str, Any]:
        """What the interval so far adds to the next reading, its speed apart; and what was asked."""
        return {"interval": _moved(vars(self._interval), torch.device("cpu")), "asked": dict(self.asked)}

    def _restart(self) -> None:
        self._interval, self._clock = _Interval(), _Clock(time.perf_counter())

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The time within the context (a validation) is not that of the steps around it."""
        begun = time.perf_counter()
        yield
        self._clock.since += time.perf_counter() - begun

    def waiting(self, items: Iterable[T]) -> Iterator[T]:
        """The same; the time until each is there counts as waiting for data."""
        iterator = iter(items)
        while True:
            begun = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self._clock.waited_s += time.perf_counter() - begun
            yield item

    def add(self, result: LossResult, *, images: int, queries: int) -> None:
        now = self._interval
        for name, value in {"total": result.total.detach(), **result.terms}.items():
            now.terms[name] = now.terms[name] + value if name in now.terms else value
        now.presence = result.presence if now.presence is None else now.presence + result.presence
        now.matched = {name: now.matched.get(name, 0) + count for name, count in result.matched.items()}
        now.batches += 1
        now.queries += queries
        self._clock.images += images
        self._clock.queries += queries

    def add_gradient_norm(self, norm: Tensor, norms: Tensor, parts: list[str], limit: float) -> None:
        """Norm before clipping: the reading shows the last one, and the share of steps in which it was above.

        Args:
            norms: [n] of the tensors that have a gradient.
            parts: n names of the parts of the model that these belong to.
        """
        now, clipped = self._interval, (norm > limit).float()
        now.norm, now.norms, now.parts = norm, norms, parts
        now.clipped = clipped if now.clipped is None else now.clipped + clipped
        now.steps += 1

    def add_skipped(self) -> None:
        """A step was left out; its losses are in no mean."""
        self._interval.skipped += 1

    def read(self, optimizer: Optimizer) -> dict[str, float]:
        """Named scalars, the losses averaged over ranks; starts the next interval. All ranks must call it."""
        clock, ranks = self._clock, distributed.world_size()
        seconds = time.perf_counter() - clock.since
        values = self._of_batches() | _rates(optimizer) | _gradient(self._interval)
        values["speed/images_per_s"] = ranks * clock.images / seconds
        queries = distributed.mean_over_ranks(torch.tensor(float(clock.queries), device=self._device))
        values["speed/queries_per_s"] = ranks * queries.item() / seconds
        if self.work is not None:  # of this process's GPU
            values["speed/mfu"] = self.work.mfu(clock.images, clock.queries, seconds)
        values["speed/data_wait_share"] = clock.waited_s / seconds
        values["memory/gib"] = _peak_memory_gib(self._device)
        self._restart()
        return values

    def _of_batches(self) -> dict[str, float]:
        """Means of the loss terms, and shares of what was counted, over all ranks; empty if no step was taken."""
        now = self._interval
        if now.presence is None:  # on all ranks or on none
            return {}
        terms, matched = sorted(now.terms), sorted(now.matched)
        counts = torch.tensor([float(now.queries), *(now.matched[name] for name in matched)], device=self._device)
        sums = [torch.stack([now.terms[name].float() for name in terms]) / now.batches, now.presence.float(), counts]
        means = distributed.mean_over_ranks(torch.cat(sums)).tolist()
        values = {_panel_key(name): mean for name, mean in zip(terms, means, strict=False)}
        counted = dict(zip([*PRESENCE, "queries", *matched], means[len(terms) :], strict=True))
        for kind in ("present", "absent"):
            if counted[kind]:
                values[f"presence/accuracy_{kind}"] = counted[f"{kind}_right"] / counted[kind]
        values["matched/targets_per_query"] = counted["targets"] / counted["queries"]
        if counted["targets"]:
            values |= {f"matched/{name}": counted[name] / counted["targets"] for name in matched if name != "targets"}
        return values


def _panel_key(term: str) -> str:
    """What a term of LossResult is called: loss/<term>, loss_layers/<term>_<layer, from 1>; with _o2m of that half."""
    half = "_o2m" if term.endswith("_o2m") else ""
    name, _, layer = term.removesuffix("_o2m").partition("_aux_")
    return f"loss_layers{half}/{name}_{int(layer) + 1}" if layer else f"loss{half}/{name}"


def _rates(optimizer: Optimizer) -> dict[str, float]:
    """The highest rate of every part, and those of some blocks of the vision backbone where they have their own."""
    rates: dict[str, float] = {}
    blocks = shown_blocks(max(group["block"] for group in optimizer.param_groups))
    for group in optimizer.param_groups:
        names = [f"lr/{group['part']}"]
        names += [f"lr_vision/block_{group['block']:02d}"] if group["block"] in blocks else []
        rates |= {name: max(group["lr"], rates.get(name, 0.0)) for name in names}
    return rates


def _gradient(now: _Interval) -> dict[str, float]:
    """Only how many steps were left out where none was taken."""
    values: dict[str, float] = {"gradient/skipped_steps": now.skipped}
    if now.norm is None or now.norms is None or now.clipped is None:
        return values
    values |= {"gradient/norm": float(now.norm), "gradient/clipped_share": float(now.clipped) / now.steps}
    squares: dict[str, float] = {}
    for part, norm in zip(now.parts, now.norms.tolist(), strict=True):
        squares[part] = squares.get(part, 0.0) + norm**2
    return values | {f"gradient_norm/{part}": math.sqrt(square) for part, square in squares.items()}


def _moved(value: Any, device: torch.device) -> Any:
    """The same with its tensors on a device."""
    if isinstance(value, Mapping):
        return {key: _moved(inner, device) for key, inner in value.items()}
    return value.to(device) if isinstance(value, Tensor) else value


def _peak_memory_gib(device: torch.device) -> float:
    """Peak of this process so far: GPU memory held by torch, or resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # ru_maxrss is in KiB on Linux
