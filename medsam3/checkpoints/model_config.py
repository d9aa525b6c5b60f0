"""The configuration of a checkpoint: from config.json beside it, from the caller, or from the shapes of its tensors."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import Sam3Config, Sam3VideoConfig

from medsam3.checkpoints.conversion import Layout, detector_part
from medsam3.checkpoints.files import CONFIG, StoredWeights, read_json
from medsam3.checkpoints.names import DETECTOR

VIT_LAYER_NORM_EPS = 1e-5  # Meta's; transformers' default of 1e-6 moves mask logits by 2e-4
_WIDTHS = (  # in the released model; a checkpoint does not say how many attention heads share another width
    ("vision_encoder.backbone.layer_norm.weight", "vision backbone", 1024),
    ("text_encoder.text_model.final_layer_norm.weight", "text encoder", 1024),
    ("detr_decoder.output_layer_norm.weight", "detector", 256),
)
_SIZES = (  # a part of Sam3Config, its key, the tensor that has so many rows
    ("text_config", "vocab_size", "text_encoder.text_model.embeddings.token_embedding.weight"),
    ("text_config", "max_position_embeddings", "text_encoder.text_model.embeddings.position_embedding.weight"),
    ("text_config", "intermediate_size", "text_encoder.text_model.encoder.layers.0.mlp.fc1.weight"),
    ("text_config", "projection_dim", "text_encoder.text_projection.weight"),
    ("geometry_encoder_config", "intermediate_size", "geometry_encoder.layers.0.mlp.fc1.weight"),
    ("detr_encoder_config", "intermediate_size", "detr_encoder.layers.0.mlp.fc1.weight"),
    ("detr_decoder_config", "intermediate_size", "detr_decoder.layers.0.mlp.fc1.weight"),
    ("detr_decoder_config", "num_queries", "detr_decoder.query_embed.weight"),
)


def read_config(path: Path | str) -> Sam3Config | Sam3VideoConfig:
    """The configuration in a JSON file, or in the config.json of a folder: of Sam3Model or Sam3VideoModel.

    Raises:
        ValueError: not JSON, another kind of model, or values that transformers refuses.
    """
    path = Path(path)
    return _as_config(read_json(path / CONFIG if path.is_dir() else path), str(path))


def _as_config(content: dict[str, Any], source: str) -> Sam3Config | Sam3VideoConfig:
    kinds: dict[str, Any] = {"sam3": Sam3Config, "sam3_video": Sam3VideoConfig}
    kind = content.get("model_type", "sam3_video" if "detector_config" in content else "sam3")
    if kind not in kinds:
        raise ValueError(f"{source}: config.json is of a model of type {kind!r}, not of {' or '.join(kinds)}")
    try:
        return kinds[kind].from_dict(copy.deepcopy(content))
    except Exception as error:  # each version of transformers has its own class for this
        raise ValueError(f"{source}: config.json is refused by transformers: {' '.join(str(error).split())}") from error


def choose_config(
    stored: StoredWeights,
    layout: Layout,
    given: Sam3Config | Sam3VideoConfig | None,
    tensors: Mapping[str, Tensor],
    target: str,
) -> Sam3Config | Sam3VideoConfig:
    """The configuration of a Sam3Model (`target` "detector") or Sam3VideoModel ("video") for these tensors.

    A config.json beside the weights counts only where they are in the layout of transformers: the one of facebook/sam3
    stands beside sam3.pt too, but has not the layer-norm epsilon of Meta's code.

    Raises:
        ValueError: another kind of model; no configuration for tensors that are not of the released widths.
    """
    if given is None and layout.family == "transformers" and stored.config is not None:
        given = _as_config(stored.config, stored.source)
    if given is None:
        given = _config_from_shapes(tensors, stored.source)
    if target == "detector":
        return detector_part(given)
    return given if isinstance(given, Sam3VideoConfig) else Sam3VideoConfig(detector_config=given)


def _config_from_shapes(tensors: Mapping[str, Tensor], source: str) -> Sam3Config:
    """The released model's configuration, with as many queries, words and hidden units as the tensors have.

    Numbers of layers are not read off: a file in which a layer is missing must not pass for a smaller model.
    """
    shapes = {name.removeprefix(DETECTOR): value.shape for name, value in tensors.items()}
    for name, part, width in _WIDTHS:
        if name in shapes and shapes[name][0] != width:
            raise ValueError(
                f"{source}: its {part} is {shapes[name][0]} wide, the released SAM3's {width}. Tensors do not tell the "
                "number of attention heads: give the configuration of the model (config=, --config FILE)"
            )
    config: Any = Sam3Config()
    config.vision_config.backbone_config.layer_norm_eps = VIT_LAYER_NORM_EPS
    for part, key, name in _SIZES:
        if name in shapes:
            setattr(getattr(config, part), key, shapes[name][0])
    return config


def sized(config: Any, image_size: int | None) -> Any:
    """A copy of the configuration for another image size, px. Raises ValueError if the patches do not fill it."""
    config = copy.deepcopy(config)
    patch = detector_part(config).vision_config.backbone_config.patch_size
    size = config.image_size if image_size is None else image_size
    if size < patch or size % patch:
        raise ValueError(f"image_size={size}: must be a positive multiple of the patch size {patch}")
    config.image_size = size  # for a video model, of detector and tracker
    if isinstance(config, Sam3VideoConfig):
        config.low_res_mask_size = 4 * size // patch
    return config
