"""The reference detector in Meta's names: every layout gives its weights and outputs, and conversion is reversible."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from torch import Tensor

from medsam3.checkpoints.conversion import convert_meta_to_transformers, convert_transformers_to_meta
from medsam3.checkpoints.weights import load_detector
from tests.tiny_sam3 import (
    POINTS,
    config,
    detector_part,
    equal,
    meta_state,
    reference,
    save,
    video_config,
    video_meta_state,
    video_model,
)

POS_EMBED = "detector.backbone.vision_backbone.trunk.pos_embed"
LAYOUTS = {
    "flat": lambda state: state,
    "under model": lambda state: {"model": state, "optimizer": {"state": {}}, "epoch": 3},
    "under state_dict": lambda state: {"state_dict": state},
    "without prefix": lambda state: {"model": detector_part(state, "")},
    "module": lambda state: {f"module.{name}": value for name, value in state.items()},
    "module without detector": lambda state: {"model": detector_part(state, "module.")},
    "another wrapper": lambda state: {f"sam3_model.{name}": value for name, value in state.items()},
    "without unused": lambda state: {n: v for n, v in state.items() if "freqs_cis" not in n and POINTS not in n},
}


def digests(state: dict[str, Tensor]) -> dict[str, list]:
    return {
        name: [list(value.shape), hashlib.sha256(value.contiguous().numpy().astype("<f4").tobytes()).hexdigest()[:16]]
        for name, value in state.items()
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_meta_gives_the_reference_weights(layout, tmp_path):
    path = save(LAYOUTS[layout](meta_state()), tmp_path / "sam3.pt")
    model, report = load_detector(path, config=config())
    assert digests(model.state_dict()) == json.loads(str(reference()["hf_digest_json"]))
    assert "430 of 430 tensors of Sam3Model" in report and "Meta layout" in report
    # 4 rotary tables, 6 projections of point prompts
    assert ("10 known to be unused" in report) == (layout != "without unused")
    assert ("26 of the tracker left out" in report) == ("detector and tracker" in report)


def test_the_converted_detector_gives_metas_outputs(tmp_path):
    """Tolerances: README of the reference values."""
    golden = reference()
    model, _ = load_detector(save(meta_state(), tmp_path / "sam3.pt"), config=config())
    image_index = torch.from_numpy(golden["in__image_index"])
    queries = len(image_index)
    with torch.inference_mode():
        output = model(
            pixel_values=torch.from_numpy(golden["in__pixel_values"])[image_index],
            input_ids=torch.from_numpy(golden["in__input_ids"]),
            attention_mask=torch.from_numpy(golden["in__attention_mask"]).long(),
            input_boxes=torch.zeros(queries, 1, 4),
            input_boxes_labels=torch.full((queries, 1), -10),
        )
    for got, name, tolerance in (
        (output.pred_logits, "logits", 1e-5),
        (output.pred_boxes, "boxes_xyxy", 1e-5),
        (output.presence_logits, "presence", 1e-5),
        (output.pred_masks, "masks", 1e-4),
        (output.semantic_seg, "semantic", 2e-5),
    ):
        wanted = torch.from_numpy(golden[f"eval__{name}"])
        assert (got.reshape(wanted.shape) - wanted).abs().max() < tolerance, name


def test_a_round_trip_is_bit_equal():
    state = meta_state()
    converted = convert_meta_to_transformers(state)
    back = convert_transformers_to_meta(converted, config=config(), template=state)
    assert equal(back, detector_part(state))  # the rotary tables, which are recomputed, included
    assert equal(convert_meta_to_transformers(back), converted)


def test_without_template_the_point_projections_stay_away_and_the_class_token_row_is_zero():
    state = meta_state()
    back = convert_transformers_to_meta(convert_meta_to_transformers(state), config=config())
    absent = detector_part(state).keys() - back.keys()
    assert len(absent) == 6 and all(POINTS in name for name in absent)
    assert not back[POS_EMBED][:, 0].any() and torch.equal(back[POS_EMBED][:, 1:], state[POS_EMBED][:, 1:])


def test_a_template_of_another_size_is_refused():
    state = meta_state()
    template = detector_part(state) | {POS_EMBED: torch.zeros(1, 26, 32)}
    with pytest.raises(ValueError, match=r"of another size: its .*pos_embed is \[1, 26, 32\] instead of \[1, 17, 32\]"):
        convert_transformers_to_meta(convert_meta_to_transformers(state), config=config(), template=template)


def test_a_video_model_survives_the_round_trip():
    state = video_meta_state()
    assert {name.split(".")[0] for name in state} == {"detector", "tracker"}
    assert equal(convert_meta_to_transformers(state, "video"), dict(video_model().state_dict()))


def test_a_detector_is_cut_out_of_a_video_model():
    state = convert_transformers_to_meta(video_model().state_dict(), "detector", video_config())
    assert {name.split(".")[0] for name in state} == {"detector"} and not any("sam2_convs" in name for name in state)
    assert equal(convert_meta_to_transformers(state), dict(video_model().detector_model.state_dict()))


def test_one_matrix_of_metas_may_not_have_two_values():
    state = dict(video_model().state_dict())
    state["tracker_model.shared_image_embedding.positional_embedding"] = torch.zeros(2, 64)
    with pytest.raises(ValueError, match="positional_embedding differ, but Meta's model has one tensor for both"):
        convert_transformers_to_meta(state, "video")


def test_one_of_q_k_v_without_the_others_is_an_error():
    state = convert_meta_to_transformers(meta_state())
    del state["vision_encoder.backbone.layers.0.attention.k_proj.weight"]
    with pytest.raises(ValueError, match="not all of q, k and v"):
        convert_transformers_to_meta(state)


def test_names_of_another_model_are_an_error():
    with pytest.raises(ValueError, match="1 tensors have no name of Meta's SAM3: conv1"):
        convert_meta_to_transformers({"conv1": torch.zeros(1)})
    with pytest.raises(ValueError, match="1 tensors have no name of SAM3 in transformers: conv1"):
        convert_transformers_to_meta({"conv1": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"1 tensors have no name of Meta's SAM3: detector\.extra"):
        convert_meta_to_transformers(meta_state() | {"detector.extra": torch.zeros(1)})
