"""Cases of the challenge through predict.py."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from medsam3.layouts.challenge_files import ANSWER, read_labels
from medsam3.prediction.command import predict
from tests.conftest import save_picture
from tests.metrics.test_challenge import case
from tests.prediction.predict_config import predict_config

PICTURES = np.random.RandomState(0).randint(0, 256, (3, 24, 20)).astype(np.uint8)
RULE = {"prediction__union_threshold": 0.05, "prompts": None, "format": "cvpr2025"}


def test_labels_are_those_of_the_slices_as_pictures(tmp_path):
    case(tmp_path / "in", "c.npz", PICTURES, {"7": "liver", "2": "spleen", "instance_label": 0})
    run = predict(predict_config(tmp_path, **RULE))
    assert not run.failures and [said["label"] for said in run.pictures[0]["prompts"]] == [2, 7]
    labels = read_labels(tmp_path / "out/c.npz", ANSWER)
    assert labels.shape == PICTURES.shape and set(np.unique(labels)) <= {0, 2, 7} and labels.any()
    for number, picture in enumerate(PICTURES):
        save_picture(tmp_path / f"slices/{number}.png", picture)
    asked = {"input": str(tmp_path / "slices"), "output_dir": str(tmp_path / "flat"), "prompts": ["spleen", "liver"]}
    predict(predict_config(tmp_path, **{**RULE, **asked, "format": "files", "outputs": ["masks"]}))
    for number in range(3):
        for label, name in ((2, "1_spleen"), (7, "2_liver")):
            mask = np.asarray(Image.open(tmp_path / f"flat/{number}.png/masks/{name}.png")) > 0
            assert np.array_equal(labels[number] == label, mask)
    assert json.loads((tmp_path / "out/run.json").read_text())["finished"] is True


def test_single_objects_are_the_parts_of_the_mask(tmp_path):
    case(tmp_path / "in", "c.npz", PICTURES, {"1": "tumor", "instance_label": 1})
    run = predict(predict_config(tmp_path, **RULE))
    labels = read_labels(tmp_path / "out/c.npz", ANSWER)
    assert (
        np.array_equal(labels, ndimage.label(labels > 0)[0]) and labels.max() == run.pictures[0]["prompts"][0]["parts"]
    )


def test_one_bad_case_stops_no_other(tmp_path):
    case(tmp_path / "in", "c.npz", PICTURES, {"1": "tumor", "instance_label": 1})
    (tmp_path / "in/bad.npz").write_bytes(b"no case")
    run = predict(predict_config(tmp_path, **RULE))
    assert len(run.pictures) == 1 and "no case of the challenge" in run.failures[0]["error"]
    with pytest.raises(ValueError, match=r"input=.*: must be cases of the challenge"):
        predict(predict_config(tmp_path, **{**RULE, "input": str(tmp_path / "none")}))
    with pytest.raises(ValueError, match="each case brings its own"):
        predict(predict_config(tmp_path, **{**RULE, "prompts": ["polyp"]}))
