from __future__ import annotations

import re

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from medsam3.config import OptimConfig, ScheduleConfig

PARTS = {
    "vision": "vision_encoder.", "text": ("text_encoder.", "text_projection."), "geometry": "geometry_encoder.",
    "encoder": "detr_encoder.", "decoder": "detr_decoder.", "mask_head": "mask_decoder.", "scoring": "dot_product_scoring.",
}


def build_optimizer(model: nn.Module, cfg: OptimConfig) -> Optimizer:
    groups = {}
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        part = next(k for k, v in PARTS.items() if name.startswith(v))
        decay = 0.0 if name.endswith("bias") or "norm" in name or "boxes_" in name or "label_embed" in name else cfg.weight_decay
        groups.setdefault((part, decay), []).append(p)
    return AdamW([
        {"params": ps, "lr": getattr(cfg.lr, part), "base_lr": getattr(cfg.lr, part), "part": part, "weight_decay": d}
        for (part, d), ps in groups.items()
    ], betas=tuple(cfg.betas))


def learning_rate_factor(step, total_steps, schedule: ScheduleConfig):
    s = schedule
    factor = ((step + s.timescale_steps - s.warmup_steps) / s.timescale_steps) ** -0.5 if step > s.warmup_steps else 1.0
    if s.warmup_steps:
        factor *= min(1.0, step / s.warmup_steps)
    if s.cooldown_steps:
        factor *= min(1.0, (total_steps - step) / s.cooldown_steps)
    return factor


def set_learning_rates(optimizer, step, total_steps, cfg: OptimConfig):
    f = learning_rate_factor(step, total_steps, cfg.schedule)
    for g in optimizer.param_groups:
        g["lr"] = g["base_lr"] * (1.0 if g["part"] in cfg.schedule.constant_parts else f)
