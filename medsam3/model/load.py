"""SAM3 from wherever it comes, set as Meta's code has it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from torch import nn
from transformers import CLIPTokenizer, Sam3ImageProcessor, Sam3Model, Sam3Processor
from transformers.utils.logging import disable_progress_bar

from medsam3.checkpoints.account import video_model_class
from medsam3.checkpoints.files import RECORD
from medsam3.checkpoints.model_config import VIT_LAYER_NORM_EPS, read_config, sized
from medsam3.checkpoints.weights import detector_model, load_video_model, open_checkpoint
from medsam3.model.tiny import PATCH_PX, tiny_config, tiny_video_config
from medsam3.model.tokenizer import ConceptTokenizer, clip_tokenizer, tokenizer_of

if TYPE_CHECKING:
    from transformers import Sam3VideoModel

HUB_FILES = [
    "config.json",
    RECORD,
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "vocab.json",
    "merges.txt",
]


@dataclass(frozen=True)
class LoadedModel:
    model: Sam3Model
    tokenizer: ConceptTokenizer
    report: str  # which tensors came from where
    own_image_size: int  # what the checkpoint was trained at, px

    @property
    def image_size(self) -> int:
        """Side of the square input that the model is built for, px."""
        return int(self.model.config.image_size)


def load_sam3(checkpoint: str, image_size: int | None) -> LoadedModel:
    """SAM3's detector, in float32, set as Meta's code has it (see below), for square images of `image_size` px.

    Args:
        image_size: None: what the checkpoint was trained at.
        checkpoint: `tiny` (random weights), a file of Meta's or of the Medical-SAM3 authors', a transformers folder, a
            run of this package, or a hub id such as facebook/sam3.

    As in Meta's code, the presence logit is not clamped and the norms of the vision backbone have eps 1e-5 (the
    defaults of transformers are 10 and 1e-6). Dropout is what the checkpoint's configuration says.

    Raises:
        ValueError: no such checkpoint, one that is not SAM3 or not complete, a gated one without permission, or an
            image size that is no multiple of 14; weights that are NaN or infinite.
    """
    disable_progress_bar()  # of transformers, for one file
    if image_size is not None and (image_size <= 0 or image_size % PATCH_PX):
        raise ValueError(f"image_size={image_size}: must be a multiple of {PATCH_PX}, for example 224 or 1008")
    path = local_checkpoint(checkpoint)
    if path is None:
        if image_size is None:
            raise ValueError(f"checkpoint={checkpoint} has no size of its own: set image_size, for example 168")
        model, report, own_size = Sam3Model(tiny_config(image_size)), "tiny, random weights", image_size
        tokenizer = ConceptTokenizer(clip_tokenizer())
    else:
        opened = open_checkpoint(path, "detector", image_size=image_size)
        own_size = opened.own_image_size
        model, report = detector_model(opened)
        tokenizer = ConceptTokenizer(tokenizer_of(path))
    _as_meta(model)
    return LoadedModel(model, tokenizer, report, own_size)


def shape_of_sam3(folder: Path, image_size: int) -> LoadedModel:
    """The model of a folder with random weights, set as in `load_sam3`: the weights come later."""
    model = Sam3Model(sized(read_config(folder), image_size))
    _as_meta(model)
    return LoadedModel(model, ConceptTokenizer(tokenizer_of(folder)), f"{folder}", image_size)


def local_checkpoint(checkpoint: str) -> Path | None:
    """The file or folder that holds the weights, downloaded if need be; None for `tiny`, which has none.

    Raises:
        ValueError: as `load_sam3`.
    """
    if checkpoint == "tiny":
        return None
    return Path(checkpoint) if Path(checkpoint).exists() else _download(checkpoint)


def load_tracker(checkpoint: str, image_size: int) -> tuple[Sam3VideoModel, str]:
    """SAM3 with its tracker, in float32, the vision backbone set as in `load_sam3`, and the report.

    Args:
        checkpoint: sam3.pt, a folder of Sam3VideoModel, or a hub id; fine-tuned detectors are loaded beside it; or
            `tiny` (random weights).

    Raises:
        ValueError: as `load_sam3`; also where the checkpoint has no tracker.
    """
    disable_progress_bar()
    path = local_checkpoint(checkpoint)
    if path is None:
        model, report = video_model_class()(tiny_video_config(image_size)), "tiny, random weights: it follows nothing"
    else:
        model, report = load_video_model(path, image_size=image_size)
    _as_meta(model.detector_model)
    return model, report


def _as_meta(model: Sam3Model) -> None:
    model.detr_decoder.clamp_presence_logit_max_val = math.inf
    backbone = model.vision_encoder.backbone
    backbone.config.layer_norm_eps = VIT_LAYER_NORM_EPS
    for module in backbone.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = VIT_LAYER_NORM_EPS


def _download(hub_id: str) -> Path:
    """The local copy of a model of the hub, downloaded if need be."""
    if hub_id.count("/") != 1 or hub_id.startswith((".", "/", "~")):
        raise ValueError(f"checkpoint={hub_id}: no such file or folder, and no hub id of the form owner/name")
    get = "or give a file or folder (model.checkpoint=/path in training, checkpoint=/path in evaluation)"
    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=HUB_FILES))
        if not list(folder.glob("*.safetensors")):  # a repository with a file of Meta's trainer only
            folder = Path(snapshot_download(hub_id, allow_patterns=["*.pt", "*.pth", "*.bin"]))
        return folder
    except GatedRepoError as error:
        raise ValueError(
            f"checkpoint={hub_id}: access is gated. Accept the licence at https://huggingface.co/{hub_id}, log in with "
            f"`hf auth login`, and run again, {get}"
        ) from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"checkpoint={hub_id}: no such file, folder or public model on the hub; log in, {get}"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ValueError(
            f"checkpoint={hub_id}: no such file or folder here, and the hub cannot be reached "
            f"({type(error).__name__}). Connect to the network, {get}"
        ) from error


def image_processor(image_size: int) -> Sam3ImageProcessor:
    """transformers' image processor for this size, with Meta's mean and std."""
    return Sam3ImageProcessor(
        size={"height": image_size, "width": image_size}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )


def processor(tokenizer: CLIPTokenizer, image_size: int) -> Sam3Processor:
    """What users of the exported model prepare images and texts with."""
    return Sam3Processor(image_processor(image_size), tokenizer, target_size=image_size)
