"""SAM3 from wherever it comes, its tokenizer, and the parameters that training does not reach.

Q texts, C = 32 tokens each.
"""

from __future__ import annotations

import gzip
import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from torch import Tensor, nn
from transformers import CLIPTokenizer, Sam3Config, Sam3ImageProcessor, Sam3Model, Sam3Processor
from transformers.utils.logging import disable_progress_bar

from medsam3.checkpoints.weights import load_detector

TEXT_LENGTH = 32  # tokens, with begin and end; longer prompts are cut
PATCH_PX = 14
VIT_NORM_EPS = 1e-5
HUB_FILES = ["config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "vocab.json", "merges.txt"]
BPE_FILE = "bpe_simple_vocab_16e6.txt.gz"  # CLIP's vocabulary, in the open_clip_torch wheel
BPE_MERGES = 48894

# Text prompts never reach these tensors, in Meta's code as in transformers': the coarsest level of the neck, the text
# encoder's own projection, and the last stage of the pixel decoder.
UNUSED = (
    "vision_encoder.neck.fpn_layers.3.proj1.",
    "vision_encoder.neck.fpn_layers.3.proj2.",
    "text_encoder.text_projection.",
    "mask_decoder.pixel_decoder.conv_layers.2.",
    "mask_decoder.pixel_decoder.norms.2.",
)
# What a loss variant leaves without gradient besides.
UNREACHED = {
    "sam3": (),
    "paper": ("mask_decoder.mask_embedder.", "mask_decoder.instance_projection."),
    "box_only": ("mask_decoder.", "vision_encoder.neck.fpn_layers.0.", "vision_encoder.neck.fpn_layers.1."),
}


@dataclass(frozen=True)
class LoadedModel:
    model: Sam3Model
    tokenizer: ConceptTokenizer
    report: str  # which tensors came from where


def load_sam3(checkpoint: str, image_size: int) -> LoadedModel:
    """SAM3's detector, in float32, set as Meta's code has it (see below), for square images of `image_size` px.

    Args:
        checkpoint: `tiny` (random weights), a file of Meta's or of the Medical-SAM3 authors', a transformers folder, a
            run of this package, or a hub id such as facebook/sam3.

    As in Meta's code, the presence logit is not clamped and the norms of the vision backbone have eps 1e-5 (the
    defaults of transformers are 10 and 1e-6). Dropout is what the checkpoint's configuration says.

    Raises:
        ValueError: no such checkpoint, one that is not SAM3 or not complete, a gated one without permission, or an
            image size that is no multiple of 14.
    """
    disable_progress_bar()  # of transformers, for one file
    if image_size <= 0 or image_size % PATCH_PX:
        raise ValueError(f"image_size={image_size}: must be a multiple of {PATCH_PX}, for example 224 or 1008")
    if checkpoint == "tiny":
        model, report = Sam3Model(tiny_config(image_size)), "tiny, random weights"
        tokenizer = ConceptTokenizer(clip_tokenizer())
    else:
        path = Path(checkpoint)
        if not path.exists():
            path = _download(checkpoint)
        model, report = load_detector(path, image_size)
        tokenizer = ConceptTokenizer(_tokenizer_of(path))
    _as_meta(model)
    return LoadedModel(model, tokenizer, report)


def _as_meta(model: Sam3Model) -> None:
    model.detr_decoder.clamp_presence_logit_max_val = math.inf
    backbone = model.vision_encoder.backbone
    backbone.config.layer_norm_eps = VIT_NORM_EPS
    for module in backbone.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = VIT_NORM_EPS


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


def _tokenizer_of(path: Path) -> CLIPTokenizer:
    """The tokenizer that comes with the checkpoint, or CLIP's, which has the same ids."""
    for folder in (path, path / "best"):
        if (folder / "tokenizer.json").is_file() or (folder / "vocab.json").is_file():
            return CLIPTokenizer.from_pretrained(folder)
    return clip_tokenizer()


@cache
def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer (49,408 tokens) from the vocabulary in the open_clip_torch wheel; needs no network."""
    package = importlib.util.find_spec("open_clip")
    assert package is not None and package.submodule_search_locations, "open_clip_torch is a dependency"
    file = Path(package.submodule_search_locations[0]) / BPE_FILE
    lines = gzip.decompress(file.read_bytes()).decode("utf-8").split("\n")
    merges = [(first, second) for first, second in (line.split() for line in lines[1 : BPE_MERGES + 1])]
    # Printable bytes stand for themselves, the others for the characters from 256 on (the byte alphabet of GPT-2).
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    tokens = alphabet + [f"{c}</w>" for c in alphabet] + [a + b for a, b in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=merges,  # type: ignore[arg-type]  # pairs, as its own files hold them
        model_max_length=TEXT_LENGTH,
    )


class ConceptTokenizer:
    """Texts to ids and mask of fixed length; a text that was asked before costs a look-up."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        self.tokenizer = tokenizer
        self._known: dict[str, tuple[Tensor, Tensor]] = {}

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """
        Returns:
            ids [Q, C], padded with the end token, and mask [Q, C], 1 = valid. A longer text is cut
            and keeps its end token.

        Raises:
            ValueError: an empty text.
        """
        for text in texts:
            if text not in self._known:
                self._known[text] = self._encode(text)
        ids, masks = zip(*(self._known[text] for text in texts), strict=True)
        return torch.stack(ids), torch.stack(masks)

    def _encode(self, text: str) -> tuple[Tensor, Tensor]:
        if not text.strip():
            raise ValueError("an empty text is no prompt: give the name of a concept")
        encoded = self.tokenizer(
            text, padding="max_length", truncation=True, max_length=TEXT_LENGTH, return_tensors="pt"
        )
        return encoded.input_ids[0], encoded.attention_mask[0]


def image_processor(image_size: int) -> Sam3ImageProcessor:
    """transformers' image processor for this size, with Meta's mean and std."""
    return Sam3ImageProcessor(
        size={"height": image_size, "width": image_size}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )


def processor(tokenizer: CLIPTokenizer, image_size: int) -> Sam3Processor:
    """What users of the exported model prepare images and texts with."""
    return Sam3Processor(image_processor(image_size), tokenizer, target_size=image_size)


def freeze_unreached(model: Sam3Model, variant: str) -> None:
    """Freeze what the loss variant gives no gradient, so that data-parallel training need not search for it.

    Training does not change: without a gradient the optimizer leaves a parameter alone, weight decay included.
    """
    for prefix in (*UNUSED, *UNREACHED[variant]):
        named = [parameter for name, parameter in model.named_parameters() if name.startswith(prefix)]
        assert named, f"Sam3Model has no parameter {prefix}*: another version of transformers?"
        for parameter in named:
            parameter.requires_grad_(False)


def tiny_config(image_size: int) -> Sam3Config:
    """A small SAM3 (4.6 million parameters, of these 3.2 the vocabulary) that learns on a CPU within minutes."""
    grid = image_size // PATCH_PX
    width, heads = 64, 4
    part = {"hidden_size": width, "num_attention_heads": heads, "intermediate_size": 2 * width, "dropout": 0.0}
    backbone = {
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 4,
        "num_attention_heads": heads,
        "image_size": image_size,
        "pretrain_image_size": image_size,
        "window_size": math.ceil(grid / 2),
        "global_attn_indexes": [1, 3],
        "layer_norm_eps": VIT_NORM_EPS,
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
