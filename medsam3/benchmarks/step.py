"""Speed and memory of optimizer steps on random weights."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import cast

import torch
from transformers import Sam3Config, Sam3Model

from medsam3 import distributed
from medsam3.benchmarks.parts import SEED, small_corpus, training_config
from medsam3.checkpoints.model_config import sized
from medsam3.data.batch import Batch
from medsam3.registry.spec import load_specs
from medsam3.training.plan import CARDS, Load, Plan, card_of, plan_step
from medsam3.training.run import Run, set_up
from medsam3.training.step import optimizer_step


@dataclass(frozen=True)
class StepCosts:
    device: str
    parameters: int
    images: int  # in a step
    queries: int
    seconds: float  # of a step, median
    memory_gib: float  # peak: on a GPU what torch holds there, on a CPU resident memory of the process
    kernels: int | None  # of a step; None: not counted, on a CPU
    card: str  # of the plan: the GPU that measured, else an H100
    plan: Plan  # of the same configuration


def step_costs(model: str, image_size: int, steps: int, overrides: Sequence[str], folder: Path) -> StepCosts:
    """Optimizer steps on one batch of MNI152 slices, by the trainer's own set-up and step.

    Args:
        model: sam3 (the released size, random weights) | tiny.
        overrides: of the training configuration, as on the command line of scripts/train.py.

    Raises:
        ValueError: a setting that does not fit; a loss that is not finite.
    """
    corpus = small_corpus(load_specs("mni152")["mni152"], folder, folder, images=32, mp=None)
    checkpoint = "tiny" if model == "tiny" else str(_random_sam3(image_size, folder / "sam3"))
    own = [f"model={model}", f"model.checkpoint={checkpoint}", f"model.image_size={image_size}"]
    own += ["datasets=mni152", "data.workers=0", f"output_root={folder}/runs", "wandb.mode=off"]
    config = training_config(*own, *overrides)
    with contextlib.redirect_stdout(sys.stderr):
        run = set_up(config, corpus, distributed.select_device(config.device))
    batch = next(iter(run.loader))
    readings = []
    for _ in range(steps + 3):  # the first ones choose kernels and fill the allocator
        optimizer_step(run, [batch], run.meter)
        readings.append(run.meter.read(run.optimizer))
    run.log.close()
    on_gpu = run.device.type == "cuda"
    kernels = _kernels(lambda: optimizer_step(run, [batch], run.meter)) if on_gpu else None
    card = (card_of(torch.cuda.get_device_name()) if on_gpu else None) or "h100"
    return StepCosts(
        device=run.device.type,
        parameters=sum(parameter.numel() for parameter in run.loaded.model.parameters()),
        images=len(batch.pixel_values),
        queries=len(batch.image_index),
        seconds=len(batch.pixel_values) / median(reading["speed/images_per_s"] for reading in readings[3:]),
        memory_gib=readings[-1]["memory/gib"],
        kernels=kernels,
        card=card,
        plan=_plan(run, batch, card),
    )


def _kernels(step: Callable[[], object]) -> int:
    """That a step starts on the GPU."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events() or ())


def _plan(run: Run, batch: Batch, card: str) -> Plan:
    """Of a step on as many images, queries and instances."""
    images, queries, instances = len(batch.pixel_values), len(batch.image_index), len(batch.targets.boxes)
    load = Load(images, round(queries / images), round(instances / queries))
    model = dataclasses.replace(run.config.model, activation_checkpointing=run.detector.activation_checkpointing)
    config = dataclasses.replace(run.config, model=model)
    return plan_step(config, cast(Sam3Config, run.loaded.model.config), load, CARDS[card])


def _random_sam3(image_size: int, folder: Path) -> Path:
    """A checkpoint of the released size with random weights."""
    torch.manual_seed(SEED)
    Sam3Model(sized(Sam3Config(), image_size)).save_pretrained(folder)
    return folder
