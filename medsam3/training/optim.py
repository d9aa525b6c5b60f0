"""AdamW with a learning rate per part and layer-wise decay in the vision backbone (paper, sections 3.2 and 4.2).

A vision parameter of block l has the rate of the vision part times decay^(L - l + 1), l = 1..L: equation 1 with one
more layer, the neck, on top, as in Meta's code. The last block is one decay below the neck, the patch embedding L + 1.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from torch import nn
from torch.optim import AdamW

from medsam3.recipe import OptimConfig

# Part of the model -> prefixes of its parameters; the keys are the fields of LearningRates.
PARTS: dict[str, tuple[str, ...]] = {
    "decoder": ("detr_decoder.",),
    "mask_head": ("mask_decoder.",),
    "scoring": ("dot_product_scoring.",),
    "encoder": ("detr_encoder.",),
    "vision": ("vision_encoder.",),
    "text": ("text_encoder.", "text_projection."),
    "geometry": ("geometry_encoder.",),
}
BLOCK = re.compile(r"vision_encoder\.backbone\.layers\.(\d+)\.")
BELOW_THE_BLOCKS = ("vision_encoder.backbone.embeddings.patch_embeddings.", "vision_encoder.backbone.layer_norm.")
# They encode box prompts. Text-only training gives them zero gradients, and weight decay alone would shrink them away.
BOX_PROMPTS = re.compile(r"geometry_encoder\.(label_embed|boxes_\w+|vision_layer_norm)\.")
NORMS = (nn.LayerNorm, nn.GroupNorm)


def build_optimizer(model: nn.Module, config: OptimConfig, factor: float = 1.0) -> AdamW:
    """One group per part, layer and weight decay; frozen parameters are in none.

    Args:
        model: a Sam3Model.
        factor: on all rates; see `schedule.batch_factor`.

    Raises:
        ValueError: a parameter belongs to no part, or a part has no parameter: the model is not a Sam3Model.
    """
    depth = _blocks(model) if config.layer_decay_depth is None else config.layer_decay_depth
    undecayed = _without_weight_decay(model)
    rates = dataclasses.asdict(config.lr)
    groups: dict[tuple[str, float, float], dict[str, Any]] = {}
    parts_found = set()
    for name, parameter in model.named_parameters():
        part = part_of(name)
        parts_found.add(part)
        if not parameter.requires_grad:
            continue
        rate = rates[part] * layer_multiplier(name, config.layer_decay, depth) * factor
        weight_decay = 0.0 if name in undecayed else config.weight_decay
        found = BLOCK.match(name)
        block = int(found.group(1)) + 1 if found and config.layer_decay != 1 else 0  # else all have one rate
        group = groups.setdefault(
            (part, rate, weight_decay),
            {"params": [], "part": part, "block": block, "lr": rate, "base_lr": rate, "weight_decay": weight_decay},
        )
        group["params"].append(parameter)
    if missing := set(PARTS) - parts_found:
        raise ValueError(f"the model has no parameter of {', '.join(sorted(missing))}: is it a Sam3Model?")
    beta1, beta2 = config.betas
    on_gpu = next(model.parameters()).is_cuda
    return AdamW(list(groups.values()), betas=(beta1, beta2), fused=on_gpu or None)


def part_of(name: str) -> str:
    """The part (a field of LearningRates) that a parameter of Sam3Model belongs to; ValueError if it is none."""
    for part, prefixes in PARTS.items():
        if name.startswith(prefixes):
            return part
    raise ValueError(f"the parameter {name!r} belongs to none of {', '.join(PARTS)}: is the model a Sam3Model?")


def layer_multiplier(name: str, decay: float, depth: int) -> float:
    """Factor on the vision rate: decay^(depth + 1 - id) with id 0 below the blocks and l for block l = 1, 2, ...

    The neck and the position embedding keep the full rate, as in Meta's code; so does every block above `depth`, where
    a depth smaller than the model's is given (the paper writes 12 for a backbone of 32 blocks, which taken literally
    would multiply the rate of the last block by 25.8).
    """
    if name.startswith(BELOW_THE_BLOCKS):
        return decay ** (depth + 1)
    block = BLOCK.match(name)
    if block is None:
        return 1.0
    return decay ** max(0, depth - int(block.group(1)))


def _blocks(model: nn.Module) -> int:
    return 1 + max(int(found.group(1)) for name, _ in model.named_parameters() if (found := BLOCK.match(name)))


def _without_weight_decay(model: nn.Module) -> set[str]:
    """Names of biases, normalisation weights and the projections of box prompts."""
    norms = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, NORMS)}
    names = {name for name, _ in model.named_parameters()}
    return {name for name in names if name in norms or name.endswith(".bias") or BOX_PROMPTS.match(name)}
