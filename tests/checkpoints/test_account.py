"""What does not fit is listed with its likely cause."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medsam3.checkpoints.weights import load_detector
from tests.tiny_sam3 import config, detector_part, meta_state, save


def tensor(*shape: int) -> Tensor:
    return torch.zeros(shape)


def without(state: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if part not in name}


NORM = "detector.transformer.decoder.norm.weight"
CHANGES = {  # of the reference state dict -> what the message says
    "a tensor missing": (lambda s: without(s, NORM), [f": 1 missing ({NORM});", "truncated file"]),
    "a layer missing": (lambda s: without(s, ".decoder.layers.2."), ["missing", ", ...)", "truncated file"]),
    "one of two parts": (lambda s: without(s, "language_backbone"), ["missing", "truncated file"]),
    "a tensor too much": (
        lambda s: s | {"detector.o2m.weight": tensor(2)},
        [": 1 unexpected (detector.o2m.weight);", "modified or newer version"],
    ),
    "a stranger": (lambda s: s | {"epoch_weights": tensor(2)}, [": 1 unexpected (epoch_weights);"]),
    "a stranger in the tracker": (lambda s: s | {"tracker.x": tensor(2)}, [": 1 unexpected (tracker.x);"]),
    "missing and too much": (
        lambda s: without(s, NORM) | {"detector.o2m.weight": tensor(2)},
        ["1 missing", "1 unexpected", "another version"],
    ),
    "another shape": (
        lambda s: s | {NORM: tensor(33)},
        [f": 1 of another shape ({NORM} [33] instead of [32]);", "of another size"],
    ),
    "quantised": (lambda s: s | {NORM: torch.zeros(32, dtype=torch.int8)}, ["1 not floating-point (quantised?)"]),
    "adapters beside": (lambda s: s | {"detector.x.lora_A.weight": tensor(2)}, ["adapters (LoRA)"]),
    "a mixture of prefixes": (lambda s: s | detector_part(s, "copy."), ["344 unexpected (copy."]),
}
OTHER_MODELS = {  # names of its tensors -> what the message says
    "SAM 2": (["image_encoder.trunk.blocks.0.norm1.weight", "sam_mask_decoder.iou_token.weight"], "a SAM 2 checkpoint"),
    "SAM 1": (["image_encoder.blocks.0.norm1.weight", "mask_decoder.iou_token.weight"], "a SAM 1 or MedSAM"),
    "DINOv2": (["cls_token", "mask_token", "blocks.0.ls1.gamma"], "a DINO vision backbone"),
    "Grounding DINO": (["transformer.level_embed", "bbox_embed.0.weight"], "a detector of the DETR or DINO kind"),
    "CLIP": (["logit_scale", "visual.proj"], "a CLIP checkpoint"),
    "adapters": (["base_model.model.q_proj.lora_A.weight"], "adapters (LoRA)"),
    "unknown": (["fc.weight"], "another model"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_what_does_not_fit_is_listed_with_the_likely_cause(case, tmp_path):
    change, words = CHANGES[case]
    path = save(change(meta_state()), tmp_path / "sam3.pt")
    with pytest.raises(ValueError, match="likely cause: ") as error:
        load_detector(path, config=config())
    assert str(error.value).startswith(f"{path} (Meta layout, ") and "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("case", OTHER_MODELS)
@pytest.mark.parametrize("key", [None, "model"])
def test_another_model_is_named(case, key, tmp_path):
    names, words = OTHER_MODELS[case]
    state = {name: tensor(2) for name in names}
    with pytest.raises(ValueError, match=r"none of its \d tensors is SAM3's \(it has .*likely cause: ") as error:
        load_detector(save({key: state} if key else state, tmp_path / "other.pt"))
    assert words in str(error.value)


def test_long_lists_are_cut(tmp_path):
    state = meta_state() | {f"detector.new.{i}": tensor(1) for i in range(50)}
    with pytest.raises(ValueError) as error:
        load_detector(save(state, tmp_path / "sam3.pt"), config=config())
    assert "50 unexpected" in str(error.value) and str(error.value).count("detector.new.") == 10
