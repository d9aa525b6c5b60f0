"""Pieces of Sam3Model's decoders that training calls one by one, in the order of transformers' own code.

Shapes: I images, Q queries (image-phrase pairs), P predictions per query, d width, h x w mask logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def of_images(values: Tensor, image_index: Tensor) -> Tensor:
    """Each query's image's [Q, ...] of [I, ...]; a single image is not copied for its queries."""
    return values.expand(len(image_index), *values.shape[1:]) if len(values) == 1 else values[image_index]


def mask_decoder(
    decoder: Any,  # Sam3MaskDecoder
    heads: tuple[str, ...],
    queries: Tensor,
    levels: tuple[Tensor, ...],
    image_index: Tensor,
    memory: Tensor,
    prompt: Tensor,
    mask: Tensor,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The parts of the mask decoder in its own order, without the product of all predictions with all pixels."""
    attended, _ = decoder.prompt_cross_attn(
        query=decoder.prompt_cross_attn_norm(memory), key=prompt, value=prompt, attention_mask=mask
    )
    memory = memory + decoder.prompt_cross_attn_dropout(attended)
    own = [of_images(level, image_index) for level in levels]
    pixels = decoder._embed_pixels(backbone_features=own, encoder_hidden_states=memory)
    semantic = decoder.semantic_projection(pixels).squeeze(1) if "semantic" in heads else None
    if "instances" not in heads:
        return semantic, None, None
    return semantic, decoder.mask_embedder(queries), decoder.instance_projection(pixels)


def decoder_layer(
    decoder: Any,  # Sam3DetrDecoder
    layer: Any,  # one of its layers
    attending: int | None,
    states: Tensor,
    boxes: Tensor,
    prompt: Tensor,
    memory: Tensor,
    memory_position: Tensor,
    text_mask: Tensor | None,
    grid: tuple[int, ...],
) -> Tensor:
    """One decoder layer with the bias of its reference boxes; only the first `attending` states self-attend."""
    query_position = decoder.ref_point_head(decoder.position_encoding.encode_boxes(boxes))
    bias = F.pad(decoder._get_rpb_matrix(boxes, grid), (0, 0, 1, 0))  # the presence token attends everywhere alike
    with _self_attention_among(layer.self_attn, attending):
        return layer(
            states,
            query_pos=query_position,
            text_features=prompt,
            vision_features=memory,
            vision_pos_encoding=memory_position,
            text_cross_attn_mask=text_mask,
            vision_cross_attn_mask=bias,
        )


@contextmanager
def _self_attention_among(attention: nn.Module, count: int | None) -> Iterator[None]:
    """Within the context, attend among the first `count` tokens only and return zero for the others.

    The residual connection and the norm that follow then treat the others as Meta's code does. None: attend among all.
    """
    if count is None:
        yield
        return

    def cut(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, kwargs | {name: kwargs[name][:, :count] for name in ("query", "key", "value")}

    def pad(_: nn.Module, args: Any, output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        attended, weights = output
        return F.pad(attended, (0, 0, 0, count - 1)), weights  # count - 1 predictions in each half

    hooks = (attention.register_forward_pre_hook(cut, with_kwargs=True), attention.register_forward_hook(pad))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def inverse_sigmoid(x: Tensor, eps: float = 1e-3) -> Tensor:
    """As in the decoder: inputs clamped to eps from 0 and 1."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))
