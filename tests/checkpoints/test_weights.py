"""Loading from Meta's files, folders of transformers and runs; the video model; another detector in it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import Sam3Model

from medsam3.checkpoints.account import video_model_class
from medsam3.checkpoints.files import StoredWeights
from medsam3.checkpoints.weights import Checkpoint, load_detector, load_video_model, open_checkpoint, write_transformers
from tests.tiny_sam3 import (
    CONFIG_FILE,
    GOLDEN,
    config,
    detector,
    equal,
    meta_state,
    save,
    video_config,
    video_meta_state,
    video_model,
)

BACKBONE = "vision_encoder.backbone."


def test_the_report_says_what_came_from_where(tmp_path):
    report = load_detector(save({"model": meta_state()}, tmp_path / "sam3.pt"), config=config())[1]
    assert report == (
        f"430 of 430 tensors of Sam3Model from 334 of 370 in {tmp_path}/sam3.pt ['model'] (Meta layout, detector and "
        "tracker, prefix 'detector.'); 10 known to be unused; 26 of the tracker left out"
    )


def test_a_folder_of_transformers_loads_and_so_do_its_shards(tmp_path):
    model = detector()
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="500KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    for name in ("whole", "shards", "whole/model.safetensors"):
        loaded, report = load_detector(tmp_path / name)
        assert equal(loaded.state_dict(), model.state_dict()) and "transformers layout" in report
        assert loaded.config.vision_config.backbone_config.num_attention_heads == 2


def test_a_folder_of_a_video_model_gives_its_detector(tmp_path):
    video_model().save_pretrained(tmp_path)
    loaded, report = load_detector(tmp_path)
    assert equal(loaded.state_dict(), video_model().detector_model.state_dict())
    assert "of the tracker left out" in report


def test_a_run_gives_its_best_and_says_so(tmp_path):
    """best is a folder of transformers, last holds state.pt beside config.json."""
    model, last = detector(), tmp_path / "run/last"
    last.mkdir(parents=True)
    (last / "config.json").write_text(model.config.to_json_string())
    torch.save({"model": model.state_dict(), "optimizer": {}, "progress": {"epoch": 1}}, last / "state.pt")
    assert "last/state.pt ['model'] (last of a run)" in load_detector(tmp_path / "run")[1]
    model.save_pretrained(tmp_path / "run/best")
    loaded, report = load_detector(tmp_path / "run")
    assert "(best of a run; last is there too)" in report and equal(loaded.state_dict(), model.state_dict())
    for path in (last, last / "state.pt"):
        assert equal(load_detector(path)[0].state_dict(), model.state_dict())


def test_half_precision_becomes_float32_and_is_said(tmp_path):
    half = {name: value if value.is_complex() else value.bfloat16() for name, value in meta_state().items()}
    model, report = load_detector(save(half, tmp_path / "sam3.pt"), config=config())
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    assert report.endswith("; stored as bfloat16; cast to float32")


def test_the_weights_do_not_depend_on_the_file(tmp_path):
    path = save(meta_state(), tmp_path / "sam3.pt")
    model, _ = load_detector(path, config=config())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert equal(torch.load(path, weights_only=True), meta_state())


def test_another_image_size_is_set_and_a_wrong_one_refused(tmp_path):
    path, small = save(meta_state(), tmp_path / "sam3.pt"), config()
    model, _ = load_detector(path, 168, small)
    assert model.config.image_size == 168 and small.image_size == 112
    assert model.vision_encoder.backbone.layers[1].position_ids.shape[0] == (168 // 14) ** 2
    with pytest.raises(ValueError, match="image_size=100: must be a positive multiple of the patch size 14"):
        load_detector(path, 100, small)


def released(**changed_rows: int) -> Checkpoint:
    """The released detector in Meta's names, as tensors without values, which no file can hold."""
    table = json.loads((GOLDEN / "checkpoint_names_detector.json").read_text())["rows"]
    state = {row["meta"]: torch.empty(row["shape"], device="meta") for row in table}
    for name, rows in changed_rows.items():
        full = f"detector.transformer.decoder.{name}.weight"
        state[full] = torch.empty(rows, state[full].shape[1], device="meta")
    return open_in_memory(state)


def open_in_memory(state: dict[str, Tensor]) -> Checkpoint:
    with pytest.MonkeyPatch.context() as patch:
        stored = StoredWeights("released.pt", None, state)
        patch.setattr("medsam3.checkpoints.weights.read_weights", lambda path: stored)
        return open_checkpoint("released.pt", "detector")


def test_metas_file_needs_no_config_and_gets_metas_epsilon():
    opened = released()
    backbone = opened.config.vision_config.backbone_config
    assert (backbone.layer_norm_eps, backbone.num_attention_heads, opened.config.image_size) == (1e-5, 16, 1008)
    assert len(opened.tensors) == 1468


def test_the_number_of_queries_is_read_off_the_tensors():
    opened = released(query_embed=300, reference_points=300)
    assert opened.config.detr_decoder_config.num_queries == 300


def test_a_small_model_without_config_is_asked_for_one(tmp_path):
    path = save(meta_state(), tmp_path / "sam3.pt")
    words = "its vision backbone is 32 wide, the released SAM3's 1024. .* give the configuration"
    with pytest.raises(ValueError, match=words):
        load_detector(path)
    shutil.copy(CONFIG_FILE, tmp_path / "config.json")  # beside Meta's file it does not count: another epsilon
    with pytest.raises(ValueError, match=words):
        load_detector(path)


def test_weights_are_written_as_they_are(tmp_path):
    wanted = detector().state_dict()
    (tmp_path / "folder").mkdir()
    write_transformers(
        open_checkpoint(save(meta_state(), tmp_path / "sam3.pt"), "detector", config()), tmp_path / "folder"
    )
    assert equal(load_file(tmp_path / "folder/model.safetensors"), dict(wanted))
    model, problems = Sam3Model.from_pretrained(tmp_path / "folder", output_loading_info=True)
    assert not any(problems.values()) and equal(model.state_dict(), wanted)
    assert model.config.vision_config.backbone_config.layer_norm_eps == 1e-5


def test_metas_video_file_fills_the_video_model(tmp_path):
    path, wanted = save(video_meta_state(), tmp_path / "sam3.pt"), video_model().state_dict()
    loaded, report = load_video_model(path, config=video_config())
    assert equal(loaded.state_dict(), wanted)
    assert f"{len(wanted)} of {len(wanted)} tensors of Sam3VideoModel" in report
    (tmp_path / "video").mkdir()
    write_transformers(open_checkpoint(path, "video", video_config()), tmp_path / "video")
    opened, problems = video_model_class().from_pretrained(tmp_path / "video", output_loading_info=True)
    assert not any(problems.values()) and equal(opened.state_dict(), wanted)
    part = Sam3Model.from_pretrained(tmp_path / "video")
    assert equal(part.state_dict(), video_model().detector_model.state_dict())


@pytest.mark.parametrize("frozen_backbone", [True, False])
def test_a_fine_tuned_detector_in_a_video_model_is_judged_by_its_backbone(frozen_backbone, tmp_path):
    video_model().save_pretrained(tmp_path / "video")
    tuned = tuned_detector(tmp_path / "video", frozen_backbone)
    tuned.save_pretrained(tmp_path / "tuned")
    loaded, report = load_video_model(tmp_path / "video", detector=tmp_path / "tuned")
    assert equal(loaded.detector_model.state_dict(), tuned.state_dict())
    assert equal(loaded.tracker_model.state_dict(), video_model().tracker_model.state_dict())
    count = sum(name.startswith(BACKBONE) for name in tuned.state_dict())
    if frozen_backbone:
        assert "WARNING" not in report and "the tracker sees the features it was trained on" in report
    else:
        assert f"WARNING: the vision backbone of the detector differs from the video model's in {count} of" in report


def tuned_detector(folder: Path, frozen_backbone: bool) -> Sam3Model:
    model, _ = load_detector(folder)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not (frozen_backbone and name.startswith(BACKBONE)):
                parameter += 0.01
    return model


def test_a_video_model_at_another_size_follows_in_all_its_parts(tmp_path):
    video_model().save_pretrained(tmp_path)
    loaded, _ = load_video_model(tmp_path, image_size=168)
    assert loaded.config.detector_config.image_size == loaded.config.tracker_config.image_size == 168
    assert loaded.config.low_res_mask_size == 48
    assert loaded.config.tracker_config.vision_config.backbone_feature_sizes == [[48, 48], [24, 24], [12, 12]]


def test_a_detector_does_not_pass_for_a_video_model(tmp_path):
    detector().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"329 missing .*the tracker is missing, this is a detector alone"):
        load_video_model(tmp_path)


def test_a_detector_of_another_size_does_not_fit_a_video_model(tmp_path):
    video_model().save_pretrained(tmp_path / "video")
    detector().save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"other.* does not fit .*video.*of another shape"):
        load_video_model(tmp_path / "video", detector=tmp_path / "other")
