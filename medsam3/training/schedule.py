"""Learning rates over a run: warm-up, decay and cool-down as pure functions of the step, and what they amount to.

The schedule is Meta's: linear warm-up, inverse square root decay, linear cool-down to zero. Its lengths are steps, or,
below 1, fractions of the run.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from torch.optim import Optimizer

from medsam3.config import TrainerConfig
from medsam3.messages import listed
from medsam3.recipe import OptimConfig, ScheduleConfig

SHOWN_BLOCKS = 5  # of the vision backbone, in the table of rates and in the log


def learning_rate_factor(step: int, total_steps: float, schedule: ScheduleConfig) -> float:
    """What the rates are multiplied by in the step after `step`.

    Args:
        step: optimizer steps done. The first step has factor 0 where there is a warm-up, as in Meta's code.
    """
    warmup, timescale, cooldown = lengths(total_steps, schedule)
    factor = 1.0
    if step > warmup:
        factor = ((step + timescale - warmup) / timescale) ** -0.5
    if warmup:
        factor *= min(1.0, step / warmup)
    if cooldown:
        factor *= min(1.0, (total_steps - step) / cooldown)
    return factor


def lengths(total_steps: float, schedule: ScheduleConfig) -> tuple[float, float, float]:
    """Warm-up, timescale and cool-down in steps."""
    warmup, timescale, cooldown = (
        value if value >= 1 else value * total_steps
        for value in (schedule.warmup, schedule.timescale, schedule.cooldown)
    )
    return warmup, timescale, cooldown


def set_learning_rates(optimizer: Optimizer, step: int, total_steps: int, schedule: ScheduleConfig) -> None:
    """Set the rate of every group for the step after `step`; constant parts keep theirs."""
    factor = learning_rate_factor(step, total_steps, schedule)
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * (1.0 if group["part"] in schedule.constant_parts else factor)


def batch_factor(optim: OptimConfig, trainer: TrainerConfig, processes: int) -> float:
    """What the written rates are multiplied by for the images of a step: the square root rule of Adam (Malladi et al.
    2022, "On the SDEs and scaling rules for adaptive gradient algorithms"); 1 without optim.reference_batch."""
    if optim.reference_batch is None:
        return 1.0
    return math.sqrt(trainer.images_per_process * trainer.accumulation_steps * processes / optim.reference_batch)


@dataclass(frozen=True)
class Rates:
    """Of one part, or one block of the vision backbone."""

    name: str
    written: float
    peak: float
    mean: float


def rates_of_run(optimizer: Optimizer, total_steps: int, config: OptimConfig) -> list[Rates]:
    """Written, peak and mean rate of every part, and of some blocks of the vision backbone from the last to the first.

    Args:
        optimizer: of optim.build_optimizer.
    """
    factors = [learning_rate_factor(step, total_steps, config.schedule) for step in range(total_steps)] or [0.0]
    peak, mean = max(factors), sum(factors) / len(factors)
    base: dict[tuple[str, int], float] = {}  # (part, block, 0 for what lies in none) -> rate
    for group in optimizer.param_groups:
        key = (group["part"], group["block"])
        base[key] = max(group["base_lr"], base.get(key, 0.0))
    depth = max(block for _, block in base)
    shown = shown_blocks(depth)
    rows = []
    for part, written in dataclasses.asdict(config.lr).items():
        blocks = [0, *sorted(shown, reverse=True)] if part == "vision" else [0]
        for block in blocks:
            rate = base.get((part, block))
            if rate is not None:
                constant = part in config.schedule.constant_parts
                name = f"{part} block {block}" if block else part
                rows.append(Rates(name, written, rate * (1 if constant else peak), rate * (1 if constant else mean)))
    return rows


def shown_blocks(depth: int) -> set[int]:
    """Some of the blocks 1 to `depth`, the first and the last among them."""
    return {round(1 + i * (depth - 1) / (SHOWN_BLOCKS - 1)) for i in range(SHOWN_BLOCKS)} if depth else set()


def describe(rates: list[Rates], total_steps: int, config: OptimConfig, factor: float) -> str:
    """What the log says of the rates before the first step."""
    warmup, timescale, cooldown = lengths(total_steps, config.schedule)
    constant = config.schedule.constant_parts
    lines = [
        f"rates    over {total_steps} steps, warm-up {warmup:.0f}, timescale {timescale:.0f}, cool-down {cooldown:.0f}"
        + (f"; constant: {listed(constant)}" if constant else "")
        + (f"; x {factor:.3g} for the images of a step" if factor != 1 else ""),
        f"         {'part':<16}{'written':>10}{'peak':>10}{'mean':>10}  mean / written",
    ]
    for row in rates:
        share = f"{row.mean / row.written:16.1%}" if row.written else ""
        lines.append(f"         {row.name:<16}{row.written:10.1e}{row.peak:10.1e}{row.mean:10.1e}{share}")
    return "\n".join(lines)
