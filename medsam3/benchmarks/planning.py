"""Plans of training steps as tables: what `benchmark.py plan` prints."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import Sam3Config

from medsam3.benchmarks.parts import training_config
from medsam3.checkpoints.model_config import sized
from medsam3.model.tiny import tiny_config
from medsam3.training.kernels import Work
from medsam3.training.plan import CARDS, RESERVE_GIB, Load, Plan, chosen, load_of

LEAST_LAUNCHES, LEAST_GIB = 50, 0.05  # smaller parts have no row


def planned(
    model: str, card: str, overrides: Sequence[str], processes: int, queries: int | None, instances: int | None
) -> tuple[str, Plan]:
    """What a training computes anew on the card (`auto` settled) and its plan.

    Args:
        model: sam3 (the released size) | tiny.
        overrides: as on the command line of scripts/train.py.
        queries: per image; None: data.max_queries.
        instances: per query; None: typical ones.

    Raises:
        ValueError: a setting that does not fit.
    """
    config = training_config(f"model={model}", *overrides)
    size = config.model.image_size
    load = load_of(config)
    load = Load(load.images, queries or load.queries, instances or load.instances)
    model_config = tiny_config(size) if model == "tiny" else sized(Sam3Config(), size)
    return [*chosen(config, model_config, load, CARDS[card], processes).items()][-1]


def rows(plan: Plan, card: str) -> list[tuple[str, ...]]:
    """What is planned: part, GiB at the fullest moment, launches, TFLOP, ms."""
    lines: list[tuple[str, ...]] = []
    for part in sorted({*plan.memory_gib, *plan.work}, key=lambda part: -plan.memory_gib.get(part, 0)):
        work, gib = plan.work.get(part, Work()), plan.memory_gib.get(part, 0.0)
        if work.launches >= LEAST_LAUNCHES or gib >= LEAST_GIB:
            lines.append((part, f"{gib:.1f}", *_counts(work.launches, work.flops, work.seconds)))
    fits = "fits" if plan.gib + RESERVE_GIB <= CARDS[card].gib else "does not fit"
    every = ("**all**", f"**{plan.gib:.1f}**", *_counts(plan.launches, plan.flops, plan.device_s))
    return [every, *lines, (f"images/s on {card}", f"**{plan.images_per_s:.1f}**", fits, "", "")]


def _counts(launches: int, flops: float, seconds: float) -> tuple[str, str, str]:
    return f"{launches:,}", f"{flops / 1e12:.1f}", f"{1e3 * seconds:.0f}"
