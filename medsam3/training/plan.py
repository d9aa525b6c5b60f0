"""The plan of a training step: memory and time on a GPU, computed without one from a step on fake tensors.

Not in it: the CUDA context, workspaces of libraries and memory that the allocator cannot use (RESERVE_GIB), and the
exchange of gradients. Seconds are a roofline, not a measurement: shares and ratios are what to use.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer
from transformers import Sam3Config, Sam3Model, pytorch_utils

from medsam3.config import TrainConfig
from medsam3.data.batch import Batch, Targets
from medsam3.data.mask_crops import MaskCrops
from medsam3.model.adapt import adapt
from medsam3.model.detector import DetectorOutput, TextDetector
from medsam3.model.freeze import freeze_unreached
from medsam3.model.tokenizer import TEXT_LENGTH
from medsam3.training.kernels import Card, CudaAutocast, Kernels, Work
from medsam3.training.losses import HEADS, SetPredictionLoss
from medsam3.training.matching import HungarianMatcher, Matching, OneToManyMatcher, Pairs, costs, packed
from medsam3.training.optim import PARTS, build_optimizer

RESERVE_GIB = 3.0  # of a card's memory, for what is not in a plan
CARDS = {  # data sheets
    "h200": Card(gib=140, bf16_flops=989e12, fp32_flops=67e12, bytes_per_s=4.8e12),
    "h100": Card(gib=79.6, bf16_flops=989e12, fp32_flops=67e12, bytes_per_s=3.35e12),
    "a100": Card(gib=79.2, bf16_flops=312e12, fp32_flops=19.5e12, bytes_per_s=2.04e12),
    "l40s": Card(gib=44.5, bf16_flops=362e12, fp32_flops=91.6e12, bytes_per_s=0.864e12),
    "rtx4090": Card(gib=23.6, bf16_flops=165e12, fp32_flops=82.6e12, bytes_per_s=1.008e12),
    "rtx4080": Card(gib=15.7, bf16_flops=97.5e12, fp32_flops=48.7e12, bytes_per_s=0.717e12),
    "rtx4070": Card(gib=11.7, bf16_flops=58.3e12, fp32_flops=29.1e12, bytes_per_s=0.504e12),
}
FUSED = {  # parts of which torch.compile makes one kernel between two matrix products, see `TextDetector.compile_parts`
    "none": frozenset[str](),
    "vision": frozenset(("vision",)),
    "all": frozenset(("vision", "encoder", "decoder", "mask_head", "loss")),
}
PER_IMAGE = ("vision", "geometry")  # parts that run once for all queries of an image
LAUNCH_S = 8e-6  # that the host takes to start a kernel
TYPICAL_INSTANCES = 3  # per query, where a run is planned before it has seen its data
REMEDIES = (
    "lower trainer.images_per_process or data.max_queries, set model.activation_checkpointing=all or "
    "model.adapt.mode=lora, or take the settings for a smaller card: hardware=gpu_24gb (see configs/hardware)"
)


@dataclass(frozen=True)
class Load:
    """What a step of one process works on."""

    images: int
    queries: int  # per image
    instances: int  # per query


@dataclass(frozen=True)
class Plan:
    """A step of one process with a single batch."""

    load: Load
    memory_gib: dict[str, float]  # at the fullest moment: parameters, average, optimizer, gradients, and by part
    work: dict[str, Work]  # by part of the model, loss and optimizer

    @property
    def gib(self) -> float:
        return sum(self.memory_gib.values())

    @property
    def launches(self) -> int:
        return sum(work.launches for work in self.work.values())

    @property
    def flops(self) -> float:
        return sum(work.flops for work in self.work.values())

    @property
    def model_flops(self) -> tuple[float, float]:
        """Of an image (vision backbone and geometry token), and of a query, without what targets add."""
        of_images = sum(work.flops for part, work in self.work.items() if part in PER_IMAGE)
        return of_images / self.load.images, (self.flops - of_images) / (self.load.images * self.load.queries)

    @property
    def device_s(self) -> float:
        return sum(work.seconds for work in self.work.values())

    @property
    def images_per_s(self) -> float:
        """By the slower one of the device and the host that starts its kernels."""
        return self.load.images / max(self.device_s, LAUNCH_S * self.launches)


def load_of(config: TrainConfig) -> Load:
    return Load(config.trainer.images_per_process, config.data.max_queries, TYPICAL_INSTANCES)


@dataclass(frozen=True)
class Fit:
    """What a run does on its GPU."""

    checkpointing: str  # what backward computes anew, `auto` settled by the memory of the GPU
    said: str  # a line for the log
    model_flops: tuple[float, float]  # of an image and of a query, nothing computed anew: see Plan


def fitting(config: TrainConfig, model_config: Sam3Config, total_gib: float, processes: int) -> Fit:
    """
    Raises:
        ValueError: what is planned takes all of the memory, before what is not in the plan; says what to change.
    """
    plans = chosen(config, model_config, load_of(config), dataclasses.replace(CARDS["h100"], gib=total_gib), processes)
    choice, plan = [*plans.items()][-1]
    largest = ", ".join(f"{part} {size:.1f}" for part, size in list(plan.memory_gib.items())[:4])
    said = f"plans {plan.gib:.1f} GiB of {total_gib:.1f} ({largest}), activation_checkpointing {choice}"
    if plan.gib > total_gib:
        raise ValueError(f"this run does not fit the GPU: it {said}. {REMEDIES[0].upper()}{REMEDIES[1:]}")
    if plan.gib + RESERVE_GIB > total_gib:
        said += f"; close to the limit: {REMEDIES}"
    if "none" not in plans:
        model = dataclasses.replace(config.model, activation_checkpointing="none")
        config = dataclasses.replace(config, model=model)
        plans |= chosen(config, model_config, load_of(config), CARDS["h100"], processes)
    return Fit(choice, said, plans["none"].model_flops)


def chosen(
    config: TrainConfig, model_config: Sam3Config, load: Load, card: Card, processes: int = 1
) -> dict[str, Plan]:
    """Plans by activation_checkpointing; the last is what a run takes, of `auto` the fastest that fits the card."""
    wanted = config.model.activation_checkpointing
    plans: dict[str, Plan] = {}
    for choice in ("none", "vision", "all") if wanted == "auto" else (wanted,):
        model = dataclasses.replace(config.model, activation_checkpointing=choice)
        plans[choice] = plan_step(dataclasses.replace(config, model=model), model_config, load, card, processes)
        if plans[choice].gib + RESERVE_GIB <= card.gib:
            break
    return plans


def card_of(device_name: str) -> str | None:
    """The key of CARDS; None: it is none of them, or a variant with another data sheet (H100 PCIe, RTX 4070 Ti).

    Args:
        device_name: as torch.cuda.get_device_name has it, "NVIDIA GeForce RTX 4090".
    """
    name = "".join(device_name.lower().split())
    return next((card for card in CARDS if re.search(rf"{card}(?!pcie|nvl|ti|super|laptop|d$)", name)), None)


def peak_flops(device_name: str, bf16: bool) -> float | None:
    """What a card can do by its data sheet, FLOP/s; None: see `card_of`."""
    key = card_of(device_name)
    return None if key is None else CARDS[key].bf16_flops if bf16 else CARDS[key].fp32_flops


def plan_step(config: TrainConfig, model_config: Sam3Config, load: Load, card: Card, processes: int = 1) -> Plan:
    """Plan a step of the trainer on a GPU, after the first one (the optimizer's states are there).

    Args:
        model_config: of the checkpoint, see `checkpoints.model_config.sized`.
        processes: more than one: gradients have their place all the time.
    """
    with torch.device("meta"):  # peft cannot move fake tensors
        model = Sam3Model(model_config)
        freeze_unreached(model, config.loss.variant)
        adapt(model, config.model.adapt)
    with FakeTensorMode(allow_non_fake_inputs=True), _nothing_cached():
        model.to_empty(device="cpu")
        detector = TextDetector(
            model,
            config.model.one_to_many_queries,
            config.model.activation_checkpointing,
            HEADS[config.loss.variant],
        ).train()
        optimizer = build_optimizer(model, config.optim)
        kernels = Kernels(card, FUSED["vision" if config.model.compile == "auto" else config.model.compile])
        _tell_parts(model, kernels)
        fixed = _fixed(model, optimizer, config.trainer.average_decay is not None, processes)
        with CudaAutocast(kernels, config.trainer.bf16) as autocast, kernels:
            for kind, tensors in fixed.items():
                kernels.part = kind
                for tensor in tensors:
                    kernels.hold(tensor)
            _step(detector, optimizer, config, _batch(load, config.model.image_size), kernels, autocast)
        gradients = {
            kernels.number_of(parameter.grad)
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        }
        memory: Counter[str] = Counter()
        for number, (size, part) in kernels.held(kernels.fullest()).items():
            memory["gradients" if number in gradients else part] += size
    return Plan(load, {part: size / 2**30 for part, size in memory.most_common()}, kernels.work)


def _nothing_cached() -> AbstractContextManager[Any]:
    """transformers keeps position embeddings of all models by shape; a fake one must not come to a real model.

    It keeps none while torch compiles, so that is what it is told.
    """
    return mock.patch.object(pytorch_utils, "is_torchdynamo_compiling", return_value=True)


def _tell_parts(model: Sam3Model, kernels: Kernels) -> None:
    """Work and memory are counted to the part of the module that was called last."""
    for name, module in model.named_modules():
        part = next((part for part, prefixes in PARTS.items() if f"{name}.".startswith(prefixes)), None)
        if part is not None:
            module.register_forward_pre_hook(lambda *_, part=part: setattr(kernels, "part", part))


def _fixed(model: nn.Module, optimizer: Optimizer, average: bool, processes: int) -> dict[str, list[Tensor]]:
    """What is there all the time."""
    weights = [*model.parameters(), *model.buffers()]
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for group in optimizer.param_groups:
        group["fused"] = True
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    fixed = {
        "parameters": weights,
        "optimizer": [value for state in optimizer.state.values() for value in state.values()],
        "average": [torch.empty_like(tensor) for tensor in weights] if average else [],
        "gradients": [parameter.grad for parameter in trained] if processes > 1 else [],  # views of DDP's buckets
    }
    if processes == 1:
        optimizer.zero_grad(set_to_none=True)
    return fixed


def _step(
    detector: TextDetector,
    optimizer: Optimizer,
    config: TrainConfig,
    batch: Batch,
    kernels: Kernels,
    autocast: CudaAutocast,
) -> None:
    """As training/step.py."""
    kernels.part = "batch"
    for tensor in (batch.pixel_values, batch.targets.boxes, batch.targets.masks.bits):
        kernels.hold(tensor)
    with autocast.forward_pass():
        output = detector(*batch.inputs)
    kernels.part = "loss"
    with autocast.off():
        total = SetPredictionLoss(config.loss, match=_match)(output, batch.targets).total
    del output  # the graph keeps what it needs
    autocast.backward(total)
    kernels.part = "optimizer"
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    nn.utils.clip_grad_norm_(trained, config.optim.clip_norm, foreach=True)
    optimizer.step()


def _batch(load: Load, size: int) -> Batch:
    queries = load.images * load.queries
    instances = queries * load.instances
    return Batch(
        pixel_values=torch.empty(load.images, 3, size, size, dtype=torch.uint8),
        image_index=torch.zeros(queries, dtype=torch.int64),
        input_ids=torch.zeros(queries, TEXT_LENGTH, dtype=torch.int64),
        attention_mask=torch.ones(queries, TEXT_LENGTH, dtype=torch.int64),
        text_index=torch.zeros(queries, dtype=torch.int64),
        targets=Targets(
            counts=torch.zeros(queries, dtype=torch.int64),
            boxes=torch.empty(instances, 4),
            masks=MaskCrops(
                (size, size),
                windows=torch.zeros(instances, 4, dtype=torch.int32),
                bits=torch.empty(instances * size * -(-size // 8), dtype=torch.uint8),  # as large as the image
            ),
        ),
    )


def _match(
    output: DetectorOutput, targets: Targets, hungarian: HungarianMatcher, one_to_many: OneToManyMatcher
) -> Matching:
    """As many matches as training has, of whatever predictions: fake tensors hold no numbers to match by."""
    layers, queries, predictions = output.one_to_one.logits.shape
    counts = [len(targets.boxes) // queries] * queries

    def pairs(per_target: int) -> list[Pairs]:
        places = [np.arange(count * per_target) for count in counts]
        return [(place % predictions, place // per_target) for place in places]

    device = targets.boxes.device
    halves = [[pairs(1)] * layers]
    with torch.no_grad():
        costs(output, targets, hungarian, one_to_many)
    if output.one_to_many is not None:
        halves.append([pairs(1)] * (layers - 1) + [pairs(one_to_many.config.top_k)])
    first, *second = (packed(half, counts, device) for half in halves)
    return Matching(first, second[0] if second else None)
