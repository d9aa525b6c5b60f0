"""Sam3Model as training, evaluation and prediction run it: text prompts only, every decoder layer's output, and in
training the one-to-many branch; without a new parameter.

The branch (DAC in Meta's code): the decoder runs 2P queries, the P learned ones twice. In self-attention the first half
and the presence token see each other only, and the second half passes it by; all else is shared.

Shapes: I images, Q queries (image-concept pairs), P predictions per query, L decoder layers, C prompt tokens, d width,
h x w mask logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Sam3Model
from transformers.masking_utils import create_bidirectional_mask


@dataclass
class BranchOutput:
    """Predictions of one half of the decoder queries; the last layer index is the final layer."""

    logits: Tensor  # [L, Q, P]
    boxes: Tensor  # [L, Q, P, 4] cxcywh in 0..1
    masks: Tensor  # [Q, P, h, w] logits, final layer


@dataclass
class DetectorOutput:
    one_to_one: BranchOutput
    presence: Tensor  # [L, Q] logits of the decoder's presence token
    semantic: Tensor  # [Q, h, w] logits of the semantic head
    one_to_many: BranchOutput | None = None  # training only


@dataclass
class ImageFeatures:
    """Feature pyramid of I images, fine to coarse, and its position encoding: [I, d, h, w] each."""

    levels: tuple[Tensor, ...]
    positions: tuple[Tensor, ...]

    def of(self, image_index: Tensor) -> ImageFeatures:
        """The features of each query's image."""
        positions = tuple(p if p.shape[0] == 1 else p[image_index] for p in self.positions)
        return ImageFeatures(tuple(level[image_index] for level in self.levels), positions)


class TextDetector(nn.Module):
    """A Sam3Model with per-layer outputs and the one-to-many branch; in eval mode it computes the same function."""

    def __init__(self, model: Sam3Model, one_to_many: bool, activation_checkpointing: bool) -> None:
        super().__init__()
        self.sam3 = model
        self.one_to_many = one_to_many
        self.activation_checkpointing = activation_checkpointing
        if activation_checkpointing:
            for layer in (*model.vision_encoder.backbone.layers, *model.text_encoder.text_model.encoder.layers):
                layer.gradient_checkpointing = True
                layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)

    def forward(
        self, pixel_values: Tensor, image_index: Tensor, input_ids: Tensor, attention_mask: Tensor
    ) -> DetectorOutput:
        """
        Args:
            pixel_values: [I, 3, S, S] in -1..1
            image_index: [Q], the image of each query
            input_ids, attention_mask: [Q, 32]
        """
        return self.detect(self.encode_images(pixel_values), image_index, input_ids, attention_mask)

    def encode_images(self, pixel_values: Tensor) -> ImageFeatures:
        """Run the vision encoder, once per image. The coarsest level of the neck is not used by the detector."""
        encoded = self.sam3.vision_encoder(pixel_values)
        return ImageFeatures(encoded.fpn_hidden_states[:-1], encoded.fpn_position_encoding[:-1])

    def detect(
        self, features: ImageFeatures, image_index: Tensor, input_ids: Tensor, attention_mask: Tensor
    ) -> DetectorOutput:
        """All that follows the vision encoder; arguments as in `forward`."""
        features = features.of(image_index)
        prompt, prompt_mask = self._prompt(features, input_ids, attention_mask)
        memory, position = self._encode(features, prompt, prompt_mask)
        grid = features.levels[-1].shape[-2:]
        hidden, references, presence = self._decode(memory, position, grid, prompt, prompt_mask)
        logits, boxes = self._heads(hidden, references, prompt, prompt_mask)
        masked = self._recomputed(
            self.sam3.mask_decoder,
            decoder_queries=hidden[-1],
            backbone_features=list(features.levels),
            encoder_hidden_states=memory,
            prompt_features=prompt,
            prompt_mask=prompt_mask,
        )
        count = self.sam3.detr_decoder.query_embed.num_embeddings

        def half(part: slice) -> BranchOutput:
            return BranchOutput(logits[:, :, part], boxes[:, :, part], masked.pred_masks[:, part])

        return DetectorOutput(
            one_to_one=half(slice(0, count)),
            presence=presence,
            semantic=masked.semantic_seg.squeeze(1),
            one_to_many=half(slice(count, 2 * count)) if hidden.shape[2] == 2 * count else None,
        )

    def _prompt(self, features: ImageFeatures, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Text tokens and, as Meta's code always has, the geometry encoder's CLS token: [Q, C + 1, d] and valid.

        The geometry encoder gets zero boxes, so the token depends on the image alone.
        """
        text = self.sam3.get_text_features(input_ids=input_ids, attention_mask=attention_mask).pooler_output
        queries = len(input_ids)
        with torch.autocast(text.device.type, enabled=False):  # its pooling of boxes knows no bfloat16 on every device
            geometry = self._recomputed(
                self.sam3.geometry_encoder,
                box_embeddings=text.new_zeros(queries, 0, 4, dtype=torch.float32),
                box_mask=torch.zeros(queries, 0, dtype=torch.bool, device=text.device),
                box_labels=torch.zeros(queries, 0, dtype=torch.long, device=text.device),
                img_feats=[features.levels[-1].float()],
                img_pos_embeds=[features.positions[-1].float()],
            )
        prompt = torch.cat([text, geometry.last_hidden_state], dim=1)
        return prompt, torch.cat([attention_mask.bool(), geometry.attention_mask], dim=1)

    def _encode(self, features: ImageFeatures, prompt: Tensor, prompt_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse the coarsest level with the prompt: memory [Q, h * w, d] and its position encoding."""
        encoder = self.sam3.detr_encoder
        memory, position = (x[-1].flatten(2).transpose(1, 2) for x in (features.levels, features.positions))
        mask = create_bidirectional_mask(
            config=encoder.config, inputs_embeds=memory, attention_mask=prompt_mask, encoder_hidden_states=prompt
        )
        for layer in encoder.layers:
            memory = self._recomputed(
                layer, memory, prompt_feats=prompt, vision_pos_encoding=position, prompt_cross_attn_mask=mask
            )
        return memory, position

    def _decode(
        self, memory: Tensor, position: Tensor, grid: tuple[int, ...], prompt: Tensor, prompt_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the decoder layers; P or, with the one-to-many branch, 2P predictions.

        Returns:
            normed states [L, Q, P, d], reference boxes [L, Q, P, 4], presence logits [L, Q].
        """
        decoder = self.sam3.detr_decoder
        copies = 2 if self.training and self.one_to_many else 1
        queries, count = len(prompt), decoder.query_embed.num_embeddings
        states = torch.cat([decoder.presence_token.weight, decoder.query_embed.weight.repeat(copies, 1)])
        states = states.expand(queries, -1, -1)
        boxes = decoder.reference_points.weight.repeat(copies, 1).sigmoid().expand(queries, -1, -1)
        text_mask = create_bidirectional_mask(
            config=decoder.config, inputs_embeds=states, attention_mask=prompt_mask, encoder_hidden_states=prompt
        )
        reference = boxes
        hidden, references, presence = [], [], []
        for layer in decoder.layers:
            states = self._recomputed(
                partial(_decoder_layer, decoder, layer, count + 1 if copies == 2 else None),
                states,
                boxes,
                prompt,
                memory,
                position,
                text_mask,
                grid,
            )
            normed = decoder.output_layer_norm(states[:, 1:])
            hidden.append(normed)
            references.append(reference)
            presence.append(decoder.presence_head(decoder.presence_layer_norm(states[:, :1]))[:, 0, 0])
            # The next layer sees these boxes without gradient, but its output has one to them ("look forward twice").
            reference = (_inverse_sigmoid(boxes) + decoder.box_head(normed)).sigmoid()
            boxes = reference.detach()
        return torch.stack(hidden), torch.stack(references), torch.stack(presence)

    def _heads(self, hidden: Tensor, references: Tensor, prompt: Tensor, prompt_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [L, Q, P] and boxes [L, Q, P, 4] of every layer's states."""
        boxes = (_inverse_sigmoid(references) + self.sam3.detr_decoder.box_head(hidden)).sigmoid()
        return self.sam3.dot_product_scoring(hidden, prompt, prompt_mask).squeeze(-1), boxes

    def _recomputed(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a part of the model; with activation checkpointing its inner tensors are computed anew in backward."""
        if self.activation_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(function, *args, use_reentrant=False, **kwargs)
        return function(*args, **kwargs)


def _decoder_layer(
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


def _inverse_sigmoid(x: Tensor, eps: float = 1e-3) -> Tensor:
    """As in the decoder: inputs clamped to eps from 0 and 1."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))
