"""A SAM3 with its tracker from files, and predict.py in mode tracker: whose ViT the tracker reads, and what is said."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from medsam3.checkpoints.account import video_model_class
from medsam3.model.load import load_tracker
from medsam3.model.tiny import tiny_video_config
from medsam3.prediction.command import predict
from tests import tiny_sam3
from tests.conftest import once
from tests.prediction.predict_config import predict_config

SIZE = 56
RULE = {"prediction__union_threshold": 0.05}  # that random weights find something


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    """video/ is a whole SAM3; tuned/ is its detector, whose ViT went on learning."""

    def make(folder: Path) -> None:
        torch.manual_seed(0)
        video = video_model_class()(tiny_video_config(SIZE))
        matrix = video.tracker_model.prompt_encoder.shared_embedding.positional_embedding.data
        video.tracker_model.shared_image_embedding.positional_embedding.data.copy_(matrix)  # two names of one matrix
        video.save_pretrained(folder / "video")
        torch.save(video.state_dict(), folder / "video.pt")
        for weights in video.detector_model.vision_encoder.backbone.parameters():
            weights.data += 0.01 * weights.data.std(correction=0) * torch.randn_like(weights)
        video.detector_model.save_pretrained(folder / "tuned")

    return once(tmp_path_factory, "video_checkpoints", make)


@pytest.fixture
def volume(tmp_path) -> Path:
    voxels = np.random.RandomState(0).randint(0, 256, (20, 24, 3)).astype(np.uint8)
    (tmp_path / "in").mkdir()
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([0.7, 0.7, 4, 1])), tmp_path / "in/v.nii.gz")
    return tmp_path


def track(folder: Path, checkpoint: Path, **changes: Any) -> tuple[dict[str, Any], dict[str, Any], np.ndarray]:
    """The run's record, the volume's, and its mask."""
    asked = {"image_size": SIZE, "checkpoint": str(checkpoint), "volume__mode": "tracker", "outputs": ["masks"]}
    run = predict(predict_config(folder, **asked | RULE | changes))
    assert not run.failures
    mask = np.asarray(nibabel.load(folder / "out/v.nii.gz/masks/1_polyp.nii.gz").dataobj)
    record, result = (
        json.loads((folder / "out" / name).read_text()) for name in ("run.json", "v.nii.gz/prediction.json")
    )
    return record, result, mask


def test_a_tracker_is_loaded_whole_and_set_as_meta_has_it(checkpoints):
    model, report = load_tracker(str(checkpoints / "video"), SIZE)
    stored = torch.load(checkpoints / "video.pt")
    assert tiny_sam3.equal(dict(model.state_dict()), stored)
    assert report.startswith(f"{len(model.state_dict())} of {len(model.state_dict())} tensors of Sam3VideoModel from")
    backbone = model.detector_model.vision_encoder.backbone
    norms = {module.eps for module in backbone.modules() if isinstance(module, torch.nn.LayerNorm)}
    assert norms == {1e-5} and model.detector_model.detr_decoder.clamp_presence_logit_max_val == math.inf


def test_a_tiny_tracker_has_random_weights_that_the_seed_decides():
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        model, report = load_tracker("tiny", SIZE)
        states.append(dict(model.state_dict()))
    assert "random" in report and model.low_res_mask_size == 4 * SIZE // 14
    assert tiny_sam3.equal(states[0], states[1]) and not tiny_sam3.equal(states[0], states[2])


def test_one_checkpoint_for_both_shares_its_vit(volume, checkpoints):
    record, result, mask = track(volume, checkpoints / "video")
    assert record["asked"]["tracker_vision"] == "shared" and mask.any()
    assert "tracker_drift" not in result and any(
        "which is the one that it was trained on" in r for r in record["remarks"]
    )


def test_beside_a_fine_tuned_detector_the_tracker_keeps_its_own_vit(volume, checkpoints):
    record, result, mask = track(volume, checkpoints / "tuned", volume__tracker=str(checkpoints / "video"))
    assert record["asked"]["tracker_vision"] == "original" and "tracker_drift" not in result and mask.any()
    other = track(volume, checkpoints / "tuned", volume__tracker="tiny")[0]
    assert other["asked"]["tracker_sha256"] != record["asked"]["tracker_sha256"]


def test_a_shared_vit_is_warned_of_and_the_drift_is_recorded(volume, checkpoints):
    changes = {"volume__tracker": str(checkpoints / "video"), "volume__tracker_vision": "shared"}
    record, result, _ = track(volume, checkpoints / "tuned", **changes)
    assert record["asked"]["tracker_vision"] == "shared" and any(
        "WARNING reads the detector's" in r for r in record["remarks"]
    )
    assert len(result["tracker_drift"]) == 3 and all(0.001 < change < 0.05 for change in result["tracker_drift"])
    first = f"{100 * result['tracker_drift'][0]:.2g} %"
    assert any(first in note for note in record["pictures"][0]["notes"])


def test_a_detector_alone_has_no_tracker(volume, checkpoints):
    with pytest.raises(ValueError, match=r"the tracker is missing.*set volume.tracker=facebook/sam3"):
        track(volume, checkpoints / "tuned")
    with pytest.raises(ValueError, match=r"^volume.mode=tracker: volume.tracker=./no/such: no such"):
        track(volume, checkpoints / "tuned", volume__tracker="./no/such")
