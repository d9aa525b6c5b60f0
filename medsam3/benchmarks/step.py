"""Speed and memory of optimizer steps on random weights."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from medsam3 import distributed
from medsam3.benchmarks.parts import SEED, small_corpus, training_config
from medsam3.registry.spec import load_specs


@dataclass(frozen=True)
class StepCosts:
    device: str
    parameters: int
    images: int  # in a step
    queries: int
    images_per_s: float
    memory_gib: float  # peak: on a GPU what torch holds there, on a CPU resident memory of the process


def step_costs(model: str, image_size: int, steps: int, overrides: Sequence[str], folder: Path) -> StepCosts:
    """Optimizer steps on one batch of MNI152 slices, by the trainer's own set-up and step.

    Args:
        model: sam3 (the released size, random weights) | tiny.
        overrides: of the training configuration, as on the command line of scripts/train.py.

    Raises:
        ValueError: a setting that does not fit; a loss that is not finite.
    """
    from medsam3.training.run import set_up  # brings transformers with it, so only here
    from medsam3.training.step import optimizer_step

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
    return StepCosts(
        device=run.device.type,
        parameters=sum(parameter.numel() for parameter in run.loaded.model.parameters()),
        images=len(batch.pixel_values),
        queries=len(batch.image_index),
        images_per_s=median(reading["speed/images_per_s"] for reading in readings[3:]),
        memory_gib=readings[-1]["memory/gib"],
    )


def _random_sam3(image_size: int, folder: Path) -> Path:
    """A checkpoint of the released size with random weights."""
    from transformers import Sam3Config, Sam3Model

    from medsam3.checkpoints.model_config import sized

    torch.manual_seed(SEED)
    Sam3Model(sized(Sam3Config(), image_size)).save_pretrained(folder)
    return folder
