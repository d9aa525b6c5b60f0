"""What Meta's training of SAM3 drops at random and transformers' model does not: whole branches of the vision backbone
(stochastic depth), attention weights, and hidden units of the feed-forward networks. (The dropouts on residuals are in
both; they are what the checkpoint's configuration says.)

Done by hooks, an attention function of transformers' own registry, and the rates of dropouts that the model has. In
evaluation mode nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, Sam3Model
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from medsam3.recipe import RegularisationConfig


def regularise(model: Sam3Model, config: RegularisationConfig) -> None:
    """Switch on what has a rate above 0; call once. Copies of the model that are made before do without."""
    if config.stochastic_depth:
        layers = model.vision_encoder.backbone.layers
        for i, layer in enumerate(layers):
            _drop_branches(layer, config.stochastic_depth * i / max(1, len(layers) - 1))
    parts: tuple[Any, ...] = (model.geometry_encoder, model.detr_encoder, model.detr_decoder)
    if config.attention_dropout:
        name = f"sdpa_dropout_{config.attention_dropout}"
        AttentionInterface.register(name, _attention(config.attention_dropout))
        for part in parts:
            part.config._attn_implementation = name
    if config.feed_forward_dropout:
        for part in parts:
            for layer in part.layers:
                layer.mlp.dropout.p = config.feed_forward_dropout
        scoring = model.dot_product_scoring  # Meta drops its hidden units, transformers its outputs
        scoring.text_mlp_dropout.p = 0.0
        scoring.text_mlp.layer2.register_forward_pre_hook(
            lambda module, args: (F.dropout(args[0], config.feed_forward_dropout, module.training),)
        )


def _drop_branches(layer: Any, rate: float) -> None:
    """Leave out attention and feed-forward branch of a ViT layer, each for some images of the batch, independently; the
    others are scaled up by 1 / (1 - rate)."""
    images = [1]

    def count(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        images[0] = len(args[0])

    def attention(module: nn.Module, _: Any, output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        return _for_some(output[0], images[0], rate, module.training), output[1]

    def feed_forward(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        return _for_some(output, images[0], rate, module.training)

    layer.register_forward_pre_hook(count)
    layer.attention.register_forward_hook(attention)
    layer.mlp.register_forward_hook(feed_forward)


def _for_some(values: Tensor, images: int, rate: float, training: bool) -> Tensor:
    """[B, ...] or, by windows, [B x windows, ...]: zero for the images that draw it."""
    if not training or not rate:
        return values
    kept = torch.rand(images, device=values.device) >= rate
    factors = kept.to(values.dtype).repeat_interleave(len(values) // images) / (1 - rate)
    return values * factors.view(-1, *[1] * (values.ndim - 1))


def _attention(rate: float) -> Callable[..., Any]:
    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Any:
        options["dropout"] = rate if module.training else 0.0
        return sdpa_attention_forward(module, query, key, value, **options)

    return attend
