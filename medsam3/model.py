"""Loading SAM3 from wherever it comes, its tokenizer, and the parameters that training does not reach."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTokenizer, Sam3Config, Sam3Model


@dataclass
class LoadedModel:
    model: Sam3Model
    tokenizer: ConceptTokenizer
    report: str


class ConceptTokenizer:
    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        out = self.tokenizer(list(texts), padding="max_length", truncation=True, max_length=32, return_tensors="pt")
        return out.input_ids, out.attention_mask


def clip_tokenizer():
    import gzip

    path = Path(importlib.util.find_spec("open_clip").submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"
    merges = gzip.open(path).read().decode("utf-8").split("\n")[1 : 49152 - 256 - 2 + 1]
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    chars = [chr(b) for b in kept] + [chr(256 + i) for i in range(256 - len(kept))]
    vocab = chars + [c + "</w>" for c in chars] + ["".join(m.split()) for m in merges] + ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={t: i for i, t in enumerate(vocab)}, merges=[tuple(m.split()) for m in merges])


def tiny_config(image_size: int) -> Sam3Config:
    grid = image_size // 14
    d = 64
    small = dict(hidden_size=d, num_attention_heads=4, dropout=0.0)
    return Sam3Config(
        vision_config=dict(
            backbone_config=dict(hidden_size=96, intermediate_size=192, num_hidden_layers=4, num_attention_heads=4, image_size=image_size, window_size=grid // 2 if grid % 2 == 0 else grid, global_attn_indexes=[1, 3], pretrain_image_size=image_size, layer_norm_eps=1e-5),
            fpn_hidden_size=d,
            backbone_feature_sizes=[[4 * grid] * 2, [2 * grid] * 2, [grid] * 2],
        ),
        text_config=dict(vocab_size=49408, hidden_size=64, intermediate_size=128, projection_dim=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=32, hidden_act="gelu"),
        geometry_encoder_config=dict(**small, intermediate_size=128, num_layers=1),
        detr_encoder_config=dict(**small, intermediate_size=128, num_layers=2),
        detr_decoder_config=dict(**small, intermediate_size=128, num_layers=3, num_queries=20),
        mask_decoder_config=dict(hidden_size=d, num_attention_heads=4),
    )


def load_sam3(checkpoint: str, image_size: int) -> LoadedModel:
    if checkpoint == "tiny":
        model = Sam3Model(tiny_config(image_size))
        model.detr_decoder.clamp_presence_logit_max_val = float("inf")
        return LoadedModel(model, ConceptTokenizer(clip_tokenizer()), "tiny, random weights")
    from medsam3.checkpoint_io import load_detector
    model, report = load_detector(Path(checkpoint), image_size)
    return LoadedModel(model, ConceptTokenizer(clip_tokenizer()), report)


UNUSED = (
    "vision_encoder.neck.fpn_layers.3.proj1.weight",
    "vision_encoder.neck.fpn_layers.3.proj1.bias",
    "vision_encoder.neck.fpn_layers.3.proj2.weight",
    "vision_encoder.neck.fpn_layers.3.proj2.bias",
    "text_encoder.text_projection.weight",
    "mask_decoder.pixel_decoder.conv_layers.2.weight",
    "mask_decoder.pixel_decoder.conv_layers.2.bias",
    "mask_decoder.pixel_decoder.norms.2.weight",
    "mask_decoder.pixel_decoder.norms.2.bias",
)
UNREACHED = {
    "sam3": (),
    "paper": ("mask_decoder.mask_embedder.", "mask_decoder.instance_projection."),
    "box_only": ("mask_decoder.",),
}


def freeze_unreached(model: Sam3Model, variant: str) -> None:
    for name, parameter in model.named_parameters():
        if name in UNUSED or name.startswith(UNREACHED[variant] or "-"):
            parameter.requires_grad_(False)
