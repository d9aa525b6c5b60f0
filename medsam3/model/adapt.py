"""What of the model is trained: all of it, all but the encoders, or low-rank adapters in them (LoRA, by peft)."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from transformers import Sam3Config, Sam3Model

from medsam3.recipe import AdaptConfig

ENCODERS = ("vision_encoder.", "text_encoder.")
ADAPTED = ("vision_encoder.backbone.layers.", "text_encoder.text_model.encoder.layers.")  # the linear layers in these
ADAPTER = "default"  # peft's name of the only one


def adapt(model: Sam3Model, config: AdaptConfig) -> None:
    """Freeze the encoders, and with `lora` put adapters into their layers; the rest is trained as it is.

    An adapter adds alpha / rank x B A to a weight (LoRA, Hu et al. 2021); B starts at zero: at first nothing changes.

    Raises:
        ValueError: lora without peft.
    """
    if config.mode == "full":
        return
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    trained = {name for name in trained if not name.startswith(ENCODERS)}
    model.requires_grad_(False)
    if config.mode == "lora":
        _inject(model, config)
    for name, parameter in model.named_parameters():
        if name in trained or ".lora_" in name:
            parameter.requires_grad_(True)


def _inject(model: Sam3Model, config: AdaptConfig) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError("model.adapt.mode=lora needs peft: pip install '.[lora]'") from error
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    options = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=[name for name in linear if name.startswith(ADAPTED)],
    )
    inject_adapter_in_model(options, model, ADAPTER)


def merged(model: Sam3Model) -> Sam3Model:
    """The model without adapters, what they add put into the weights; itself if it has none."""
    weights = {name: value.detach() for name, value in model.state_dict().items() if ".lora_" not in name}
    if len(weights) == len(model.state_dict()):
        return model
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):
            weights[f"{name}.base_layer.weight"] = module.base_layer.weight.detach() + module.get_delta_weight(ADAPTER)
    with torch.random.fork_rng(devices=[]):  # the run goes on with its own random numbers
        plain = Sam3Model(cast(Sam3Config, model.config))
    plain.load_state_dict({name.replace(".base_layer.", "."): value for name, value in weights.items()}, strict=True)
    return plain
