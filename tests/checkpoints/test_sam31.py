"""SAM 3.1's checkpoint: its image detector is SAM 3.0's and loads; its tracker is refused by name."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import Sam3Config

from medsam3.checkpoints.account import expected_tensors
from medsam3.checkpoints.conversion import convert_meta_to_transformers, recognise, select
from medsam3.checkpoints.names import DETECTOR
from medsam3.checkpoints.weights import load_detector, load_video_model
from tests.tiny_sam3 import GOLDEN, config, detector, meta_state, sam31_state, save, video_meta_state

NECK = "detector.backbone.vision_backbone."
LEVEL = "vision_encoder.neck.fpn_layers.3."


def listing() -> dict:
    return json.loads((GOLDEN / "checkpoint_names_sam31.json").read_text())


def test_every_tensor_of_the_released_file_is_known_and_all_but_one_level_of_the_detector_is_filled():
    names = listing()
    state = {k: torch.empty(v, device="meta") for part in ("detector", "tracker") for k, v in names[part].items()}
    layout = recognise(state)
    assert layout is not None and not layout.unexpected and not layout.has_tracker
    selection = select(state, layout, "detector")
    assert (selection.taken, selection.unused, selection.tracker_only, selection.zeros) == (1092, 38, 36 + 457, 4)
    shapes = {name: value.shape for name, value in selection.tensors.items()}
    assert shapes == expected_tensors(Sam3Config())
    assert {name: list(shapes[DETECTOR + name]) for name in shapes_of_zeros()} == shapes_of_zeros()


def shapes_of_zeros() -> dict[str, list[int]]:
    return listing()["zero_in_transformers"]


def test_the_detector_is_that_of_sam_30_and_the_level_it_lacks_changes_no_output(tmp_path):
    model, report = load_detector(
        save({"model": sam31_state(meta_state())}, tmp_path / "sam3.1_multiplex.pt"), config=config()
    )
    assert "426 of 430 tensors of Sam3Model" in report and "detector and tracker of SAM 3.1" in report
    assert "4 of a neck level that SAM 3.1 has not and no output depends on set to zero" in report
    expected = detector()
    for name, value in model.state_dict().items():
        assert torch.equal(value, torch.zeros_like(value) if name.startswith(LEVEL) else expected.state_dict()[name])
    inputs = {
        "pixel_values": torch.randn(1, 3, 112, 112, generator=torch.Generator().manual_seed(0)),
        "input_ids": torch.arange(32)[None],
        "attention_mask": torch.ones(1, 32, dtype=torch.long),
    }
    with torch.inference_mode():
        got, wanted = model(**inputs), expected.eval()(**inputs)
    for key in ("pred_logits", "pred_boxes", "pred_masks", "presence_logits", "semantic_seg"):
        assert torch.equal(got[key], wanted[key]), key


@pytest.mark.parametrize("detector_in", [None, "sam3.1.pt"])
def test_its_tracker_is_refused_by_name(detector_in, tmp_path):
    path = save(sam31_state(meta_state()), tmp_path / "sam3.1.pt")
    with pytest.raises(
        ValueError, match=r"sam3\.1\.pt: holds the tracker of SAM 3\.1 \(multiplex\), for which transform"
    ):
        load_video_model(path, detector_in and tmp_path / detector_in, config=config())


def test_a_sam_30_file_without_that_level_or_a_sam_31_file_with_half_of_it_is_not_complete(tmp_path):
    level = f"{NECK}convs.3.conv_1x1.weight"
    old = {name: value for name, value in meta_state().items() if not name.startswith(f"{NECK}convs.3.")}
    half = sam31_state(meta_state()) | {level: meta_state()[level]}
    for state, missing in ((old, 4), (half, 3)):
        with pytest.raises(ValueError, match=rf": {missing} missing \(detector\.backbone\.vision_backbone\.convs\.3"):
            load_detector(save(state, tmp_path / "x.pt"), config=config())


@pytest.mark.parametrize("name", [f"{NECK}interactive_convs.3.conv_1x1.weight", "tracker.multiplex.x", f"{NECK}new.x"])
def test_a_stranger_is_refused_all_the_same(name, tmp_path):
    path = save(sam31_state(meta_state()) | {name: torch.zeros(1)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=f"1 unexpected .{name}"):
        load_detector(path, config=config())


def test_the_tracker_of_sam_30_takes_nothing_from_it():
    """189 tensors of the new tracker have a name and shape of the old one, with another meaning."""
    state = sam31_state(video_meta_state())
    assert not any(not name.startswith(DETECTOR) for name in convert_meta_to_transformers(state, "video"))
