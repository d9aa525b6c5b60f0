"""Tiny SAM3 models for the tests of checkpoints: the reference detector in Meta's names, and a random video model."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Sam3Config, Sam3Model, Sam3VideoConfig

from medsam3.checkpoints.account import video_model_class
from medsam3.checkpoints.conversion import convert_meta_to_transformers, convert_transformers_to_meta

GOLDEN = Path(__file__).parent / "golden"
CONFIG_FILE = GOLDEN / "tiny_meta_config.json"
POINTS = "geometry_encoder.points_"
VISION = "detector.backbone.vision_backbone"


@cache
def reference() -> dict[str, np.ndarray]:
    """The arrays of tiny_meta.npz: weights, inputs, outputs."""
    with np.load(GOLDEN / "tiny_meta.npz") as file:
        return {name: file[name] for name in file.files}


def meta_state() -> dict[str, Tensor]:
    """The reference detector as in sam3.pt, with 26 random tensors of neck and tracker that a detector must ignore."""
    return {name[3:]: torch.from_numpy(value) for name, value in reference().items() if name.startswith("w__")}


def detector_part(state: dict[str, Tensor], prefix: str = "detector.") -> dict[str, Tensor]:
    """The detector of a state dict in Meta's names, under another prefix."""
    own = {name: value for name, value in state.items() if name.startswith("detector.") and "sam2_convs" not in name}
    return {name.replace("detector.", prefix, 1): value for name, value in own.items()}


def config() -> Sam3Config:
    return Sam3Config(**json.loads(CONFIG_FILE.read_text()))


def detector() -> Sam3Model:
    """The reference detector in transformers."""
    model = Sam3Model(config())
    model.load_state_dict(convert_meta_to_transformers(meta_state()))
    return model


def video_config() -> Sam3VideoConfig:
    """The smallest video model whose tracker runs: 128 channels, 112 px."""
    detector = json.loads(CONFIG_FILE.read_text())
    vision = {**detector["vision_config"], "fpn_hidden_size": 128}
    parts = ("geometry_encoder_config", "detr_encoder_config", "detr_decoder_config", "mask_decoder_config")
    detector |= {part: detector[part] | {"hidden_size": 128} for part in parts} | {"vision_config": vision}
    tracker: dict[str, Any] = {
        "image_size": 112,
        "vision_config": json.loads(json.dumps(vision)),
        "prompt_encoder_config": {"hidden_size": 128, "image_size": 112},
        "mask_decoder_config": {
            "hidden_size": 128,
            "mlp_dim": 64,
            "num_attention_heads": 4,
            "iou_head_hidden_dim": 128,
        },
        "memory_attention_hidden_size": 128,
        "memory_attention_num_layers": 1,
        "memory_attention_feed_forward_hidden_size": 64,
        "memory_encoder_hidden_size": 128,
        "mask_downsampler_embed_dim": 128,
        "memory_fuser_embed_dim": 128,
        "memory_fuser_intermediate_dim": 64,
    }
    return Sam3VideoConfig(detector_config=detector, tracker_config=tracker, low_res_mask_size=32)


@cache
def video_model() -> Any:
    """A random Sam3VideoModel; not to be changed."""
    torch.manual_seed(0)
    model = video_model_class()(video_config())
    with torch.no_grad():  # two names of one matrix in Meta's model
        matrix = model.tracker_model.prompt_encoder.shared_embedding.positional_embedding
        model.tracker_model.shared_image_embedding.positional_embedding.copy_(matrix)
    return model


def video_meta_state() -> dict[str, Tensor]:
    """The video model in Meta's names, complete as sam3.pt is."""
    state = convert_transformers_to_meta(video_model().state_dict(), "video", video_config())
    generator = torch.Generator().manual_seed(1)
    points = [name for name in meta_state() if POINTS in name]
    return state | {name: torch.randn(128, 2, generator=generator) for name in points}


def sam31_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of SAM 3.0 as SAM 3.1's file would hold it, with a tracker of one tensor."""
    gone = ("tracker.", f"{VISION}.convs.3.", f"{VISION}.sam2_convs.3.")
    state = {name.replace("sam2_", "interactive_"): v for name, v in state.items() if not name.startswith(gone)}
    state |= {name.replace("interactive", "propagation"): value for name, value in state.items() if "interac" in name}
    return state | {"tracker.model.maskmem_tpos_enc": torch.ones(7, 1, 1, 256)}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Same names, same bits."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def save(state: object, path: Path) -> Path:
    torch.save(state, path)
    return path
