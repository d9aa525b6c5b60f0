"""Sam3Model as training, evaluation and prediction run it: text prompts (and, to diagnose, boxes), every decoder
layer's output, and in training the one-to-many branch; without a new parameter.

The branch (DAC in Meta's code): the decoder runs 2P queries, the P learned ones twice. In self-attention the first half
and the presence token see each other only, and the second half passes it by; all else is shared.

Shapes: I images, T distinct phrases of C tokens, Q queries (image-phrase pairs), P predictions per query, L decoder
layers, M chosen predictions, N boxes per query, d width, h x w mask logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Sam3Model

from medsam3.model.decoders import decoder_layer, inverse_sigmoid, mask_decoder, of_images

HEADS = ("semantic", "instances")  # of the mask decoder
MASK_QUERIES = 8  # queries whose pixels are embedded at a time


@dataclass
class BranchOutput:
    """Predictions of one half of the decoder queries; the last layer index is the final layer.

    An instance mask is the product of its prediction's embedding with the embedded pixels of its query. The products
    are made where they are asked for: a loss needs those of the matched predictions, an evaluation a few of them.
    """

    logits: Tensor  # [L, Q, P]
    boxes: Tensor  # [L, Q, P, 4] cxcywh in 0..1
    mask_embeddings: Tensor | None  # [Q, P, d], final layer; None: not computed (see TextDetector)
    pixel_embeddings: Tensor | None  # [Q, d, h, w]

    @property
    def masks(self) -> Tensor:
        """[Q, P, h, w] mask logits of all predictions of the final layer."""
        assert self.mask_embeddings is not None and self.pixel_embeddings is not None
        return torch.einsum("qpd,qdhw->qphw", self.mask_embeddings, self.pixel_embeddings)

    def masks_of(self, query: Tensor, prediction: Tensor, per_query: Sequence[int]) -> Tensor:
        """[M, h, w] mask logits of some predictions.

        Args:
            query, prediction: [M], sorted by query.
            per_query: how many of them each query has; known to the host, so that nothing waits for the device.
        """
        assert self.mask_embeddings is not None and self.pixel_embeddings is not None
        chosen = self.mask_embeddings[query, prediction].split(list(per_query))
        pixels = self.pixel_embeddings.flatten(2).unbind()  # an index per query would have a gradient of full size each
        masks = [embeddings @ own for embeddings, own in zip(chosen, pixels, strict=True)]
        return torch.cat(masks).unflatten(1, self.pixel_embeddings.shape[-2:])


@dataclass
class DetectorOutput:
    one_to_one: BranchOutput
    presence: Tensor  # [L, Q] logits of the decoder's presence token
    semantic: Tensor | None  # [Q, h, w] logits of the semantic head; None: not computed
    one_to_many: BranchOutput | None = None  # training only


@dataclass
class ImageFeatures:
    """What the detector knows of I images before it hears a text."""

    levels: tuple[Tensor, ...]  # feature pyramid, fine to coarse: [I, d, h, w] each
    position: Tensor  # [1, d, h, w] position encoding of the coarsest level, float32
    token: Tensor  # [I, 1, d], the geometry encoder's CLS token


@dataclass
class TextFeatures:
    """T encoded phrases."""

    tokens: Tensor  # [T, C, d]
    valid: Tensor  # [T, C] bool

    def of(self, text_index: Tensor) -> TextFeatures:
        """The features of each query's phrase."""
        return TextFeatures(self.tokens[text_index], self.valid[text_index])


@dataclass
class BoxPrompts:
    """Boxes that show the model what is meant, all of them positive; a query may have fewer than N, or none."""

    boxes: Tensor  # [Q, N, 4] cxcywh in 0..1
    valid: Tensor  # [Q, N] bool; False: padding


class TextDetector(nn.Module):
    """A Sam3Model with per-layer outputs and the one-to-many branch; in eval mode it computes the same function."""

    def __init__(
        self,
        model: Sam3Model,
        one_to_many: bool = False,
        activation_checkpointing: str = "none",
        heads: tuple[str, ...] = HEADS,
    ) -> None:
        """
        Args:
            activation_checkpointing: what is computed anew in the backward pass: none | vision (with text) | all.
            heads: of the mask decoder, which are computed in training; a loss that reaches none needs none.
        """
        super().__init__()
        self.sam3 = model
        self.one_to_many = one_to_many
        self.activation_checkpointing = activation_checkpointing
        self.training_heads = heads
        self._mask_decoder: Callable[..., Any] = mask_decoder
        if activation_checkpointing != "none":
            for layer in (*model.vision_encoder.backbone.layers, *model.text_encoder.text_model.encoder.layers):
                layer.gradient_checkpointing = True
                layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)

    def compile_parts(self, parts: str, device: torch.device) -> None:
        """Fuse the small operations between the matrix products of some layers; the parameters keep their names.

        Args:
            parts: none | vision (the ViT's layers) | all (also the DETR encoder's and decoder's, and the mask decoder)
                | auto (vision on a GPU)

        The numbers stay the same to about 1e-6.
        """
        if parts == "none" or (parts == "auto" and device.type != "cuda"):
            return
        layers = [*self.sam3.vision_encoder.backbone.layers]
        if parts == "all":
            layers += [*self.sam3.detr_encoder.layers, *self.sam3.detr_decoder.layers]
            self._mask_decoder = torch.compile(mask_decoder, dynamic=True)
        for layer in layers:
            layer.compile()

    def forward(
        self,
        pixel_values: Tensor,
        image_index: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        text_index: Tensor | None = None,
    ) -> DetectorOutput:
        """
        Args:
            pixel_values: [I, 3, S, S] in -1..1
            image_index: [Q], the image of each query
            input_ids, attention_mask: [T, C], distinct phrases
            text_index: [Q], the phrase of each query; None: as many phrases as queries, in their order
        """
        texts = self.encode_texts(input_ids, attention_mask)  # before the long work: nothing then waits behind it
        return self.detect(self.encode_images(pixel_values), image_index, texts, text_index)

    def encode_texts(self, input_ids: Tensor, attention_mask: Tensor) -> TextFeatures:
        """Run the text encoder, once per phrase."""
        valid = attention_mask.bool()
        causal = torch.ones(valid.shape[1], valid.shape[1], dtype=torch.bool, device=valid.device).tril()
        # A mask of four dimensions is taken as it is; one of two would be looked at, and the host wait for the device.
        encoded = self.sam3.get_text_features(input_ids=input_ids, attention_mask=causal & valid[:, None, None])
        return TextFeatures(encoded.pooler_output, valid)

    def encode_images(self, pixel_values: Tensor) -> ImageFeatures:
        """Run the vision encoder, once per image. The coarsest level of the neck is not used by the detector."""
        encoder = self.sam3.vision_encoder
        levels = encoder(pixel_values).fpn_hidden_states[:-1]
        shape = torch.Size((1, *levels[-1].shape[1:]))
        # In float32 whatever the autocast: bfloat16 has no room for the steps of its sines (Meta's code has float32).
        position = encoder.neck.position_encoding(shape, levels[-1].device, torch.float32)
        return ImageFeatures(levels, position, self._recomputed(self._image_token, levels[-1], position))

    def _image_token(self, level: Tensor, position: Tensor) -> Tensor:
        """[I, 1, d]: what Meta's geometry encoder makes of no box at all, a CLS token that has seen the image.

        transformers leaves it out where there is no box, and so computes another function.
        """
        geometry = self.sam3.geometry_encoder
        token = geometry.prompt_layer_norm(geometry.final_proj(geometry.cls_embed.weight)).expand(len(level), 1, -1)
        image, where = (x.flatten(2).transpose(1, 2) for x in (level, position))
        for layer in geometry.layers:
            token = layer(prompt_feats=token, vision_feats=image, vision_pos_encoding=where, prompt_mask=None)
        return geometry.output_layer_norm(token)

    def _box_tokens(self, level: Tensor, position: Tensor, prompts: BoxPrompts) -> tuple[Tensor, Tensor]:
        """What the geometry encoder makes of boxes: tokens [Q, N + 1, d] and which of them are valid [Q, N + 1]."""
        encoded = self.sam3.geometry_encoder(
            box_embeddings=prompts.boxes,
            box_mask=prompts.valid,
            box_labels=prompts.valid.long(),  # 1: positive
            img_feats=(level,),
            img_pos_embeds=(position,),
        )
        return encoded.last_hidden_state, encoded.attention_mask

    def detect(
        self,
        features: ImageFeatures,
        image_index: Tensor,
        texts: TextFeatures,
        text_index: Tensor | None = None,
        box_prompts: BoxPrompts | None = None,
    ) -> DetectorOutput:
        """All that follows the encoders.

        Args:
            image_index: [Q], the image of each query.
            text_index: [Q], the phrase of each query; None: as many phrases as queries, in their order.
            box_prompts: beside the text; SAM3 has the text "visual" where the boxes alone are to tell what is meant.
        """
        texts = texts if text_index is None else texts.of(text_index)
        level, tokens = of_images(features.levels[-1], image_index), of_images(features.token, image_index)
        valid = torch.ones_like(texts.valid[:, :1])
        if box_prompts is not None:
            tokens, valid = self._box_tokens(level, features.position, box_prompts)
        prompt = torch.cat([texts.tokens, tokens], dim=1)  # [Q, C + 1, d], with boxes [Q, C + N + 1, d]
        mask = torch.cat([texts.valid, valid], dim=1)[:, None, None]  # [Q, 1, 1, ...], see encode_texts
        memory, position = self._encode(level, features.position, prompt, mask)
        hidden, references, presence = self._decode(memory, position, level.shape[-2:], prompt, mask)
        logits, boxes = self._heads(hidden, references, prompt, mask[:, 0, 0])
        semantic, embeddings, pixels = self._masks(hidden[-1], features.levels, image_index, memory, prompt, mask)
        count = self.sam3.detr_decoder.query_embed.num_embeddings

        def half(part: slice) -> BranchOutput:
            own = None if embeddings is None else embeddings[:, part]
            return BranchOutput(logits[:, :, part], boxes[:, :, part], own, pixels)

        return DetectorOutput(
            one_to_one=half(slice(0, count)),
            presence=presence,
            semantic=semantic,
            one_to_many=half(slice(count, 2 * count)) if hidden.shape[2] == 2 * count else None,
        )

    def _encode(self, level: Tensor, position: Tensor, prompt: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse the coarsest level with the prompt: memory [Q, h * w, d] and its position encoding [1, h * w, d]."""
        memory, position = (x.flatten(2).transpose(1, 2) for x in (level, position))
        for layer in self.sam3.detr_encoder.layers:
            memory = self._recomputed(
                layer, memory, prompt_feats=prompt, vision_pos_encoding=position, prompt_cross_attn_mask=mask
            )
        return memory, position

    def _decode(
        self, memory: Tensor, position: Tensor, grid: tuple[int, ...], prompt: Tensor, mask: Tensor
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
        reference = boxes
        hidden, references, presence = [], [], []
        for layer in decoder.layers:
            states = self._recomputed(
                partial(decoder_layer, decoder, layer, count + 1 if copies == 2 else None),
                states,
                boxes,
                prompt,
                memory,
                position,
                mask,
                grid,
            )
            normed = decoder.output_layer_norm(states[:, 1:])
            hidden.append(normed)
            references.append(reference)
            presence.append(decoder.presence_head(decoder.presence_layer_norm(states[:, :1]))[:, 0, 0])
            # The next layer sees these boxes without gradient, but its output has one to them ("look forward twice").
            reference = (inverse_sigmoid(boxes) + decoder.box_head(normed)).sigmoid()
            boxes = reference.detach()
        return torch.stack(hidden), torch.stack(references), torch.stack(presence)

    def _heads(self, hidden: Tensor, references: Tensor, prompt: Tensor, prompt_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [L, Q, P] and boxes [L, Q, P, 4] of every layer's states."""
        boxes = (inverse_sigmoid(references) + self.sam3.detr_decoder.box_head(hidden)).sigmoid()
        return self.sam3.dot_product_scoring(hidden, prompt, prompt_mask).squeeze(-1), boxes

    def _masks(
        self,
        queries: Tensor,
        levels: tuple[Tensor, ...],  # of the images
        image_index: Tensor,
        memory: Tensor,
        prompt: Tensor,
        mask: Tensor,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The mask decoder, a few queries at a time, so that backward holds the pixels of a few, not those of all.

        Returns:
            semantic logits [Q, h, w], embeddings of the predictions [Q, P, d] and of the pixels [Q, d, h, w]; None for
            heads that are not computed.
        """
        heads = self.training_heads if self.training else HEADS
        results: tuple[list[Tensor], ...] = ([], [], [])
        for start in range(0, len(queries) if heads else 0, MASK_QUERIES):
            part = slice(start, start + MASK_QUERIES)
            parts = (queries[part], levels, image_index[part], memory[part], prompt[part], mask[part])
            found = self._recomputed(partial(self._mask_decoder, self.sam3.mask_decoder, heads), *parts)
            for result, one in zip(results, found, strict=True):
                if one is not None:
                    result.append(one)
        semantic, embeddings, pixels = (torch.cat(parts) if parts else None for parts in results)
        return semantic, embeddings, pixels

    def _recomputed(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a part of the model; with activation checkpointing its inner tensors are computed anew in backward."""
        if self.activation_checkpointing == "all" and self.training and torch.is_grad_enabled():
            return checkpoint(function, *args, use_reentrant=False, **kwargs)
        return function(*args, **kwargs)
