"""A small SAM3 of random weights, for CPUs and tests."""

from __future__ import annotations

import copy
import math

from transformers import Sam3Config, Sam3VideoConfig

from medsam3.checkpoints.model_config import VIT_LAYER_NORM_EPS
from medsam3.model.tokenizer import TEXT_LENGTH

PATCH_PX = 14


def tiny_config(image_size: int, width: int = 64) -> Sam3Config:
    """A small SAM3 (4.6 million parameters, of these 3.2 the vocabulary) that learns on a CPU within minutes."""
    grid = image_size // PATCH_PX
    heads = 4
    part = {"hidden_size": width, "num_attention_heads": heads, "intermediate_size": 2 * width, "dropout": 0.0}
    backbone = {
        "model_type": "sam3_vit_model",
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 4,
        "num_attention_heads": heads,
        "image_size": image_size,
        "pretrain_image_size": image_size,
        "window_size": math.ceil(grid / 2),
        "global_attn_indexes": [1, 3],
        "layer_norm_eps": VIT_LAYER_NORM_EPS,
    }
    return Sam3Config(
        vision_config={
            "backbone_config": backbone,
            "fpn_hidden_size": width,
            "backbone_feature_sizes": [[scale * grid] * 2 for scale in (4, 2, 1)],
        },
        text_config={
            "vocab_size": 49408,
            "hidden_size": 64,
            "intermediate_size": 128,
            "projection_dim": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": heads,
            "max_position_embeddings": TEXT_LENGTH,
            "hidden_act": "gelu",
        },
        geometry_encoder_config=part | {"num_layers": 1},
        detr_encoder_config=part | {"num_layers": 2},
        detr_decoder_config=part | {"num_layers": 3, "num_queries": 20},
        mask_decoder_config={"hidden_size": width, "num_attention_heads": heads},
    )


def tiny_video_config(image_size: int) -> Sam3VideoConfig:
    """The smallest video model whose tracker runs: its memory attention needs 128 channels."""
    width = 128
    detector = tiny_config(image_size, width).to_dict()
    tracker = {
        "image_size": image_size,
        "vision_config": copy.deepcopy(detector["vision_config"]),
        "prompt_encoder_config": {"hidden_size": width, "image_size": image_size},
        "mask_decoder_config": {
            "hidden_size": width,
            "mlp_dim": width,
            "num_attention_heads": 4,
            "iou_head_hidden_dim": width,
        },
        "memory_attention_hidden_size": width,
        "memory_attention_num_layers": 1,
        "memory_attention_feed_forward_hidden_size": width,
        "memory_encoder_hidden_size": width,
        "mask_downsampler_embed_dim": width,
        "memory_fuser_embed_dim": width,
        "memory_fuser_intermediate_dim": width,
    }
    low_res = 4 * image_size // PATCH_PX
    return Sam3VideoConfig(detector_config=detector, tracker_config=tracker, low_res_mask_size=low_res)
