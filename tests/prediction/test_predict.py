"""Prediction as a user runs it, with the tiny model: files, records, resuming, and the same masks as evaluate.py."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from medsam3.layouts.readers import open_reader
from medsam3.metrics.masks import dice
from medsam3.prediction import segmentation
from medsam3.prediction.command import predict
from medsam3.prediction.jobs import RESULT
from medsam3.registry.spec import load_specs
from tests.conftest import ROOT, save_picture
from tests.metrics.test_masks import overlap
from tests.prediction.predict_config import predict_config
from tests.scripts import run_script

RULE = {"prediction__union_threshold": 0.05}  # that random weights find something
TINY = ("checkpoint=tiny", "image_size=56", "device=cpu")


@pytest.fixture
def pictures(tmp_path) -> Path:
    random = np.random.RandomState(0)
    save_picture(tmp_path / "in/a.png", random.randint(0, 256, (30, 40, 3)).astype(np.uint8))
    save_picture(tmp_path / "in/sub/b.png", random.randint(0, 256, (24, 16)).astype(np.uint8))
    return tmp_path


def read(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as file:
        return np.asarray(file)


def test_all_outputs_say_the_same(pictures):
    run = predict(
        predict_config(pictures, prompts=["polyp", "liver"], outputs=["index", "masks", "coco", "overlays"], **RULE)
    )
    coco = read(pictures / "out/coco.json")
    assert [image["file_name"] for image in coco["images"]] == [f"{pictures}/in/a.png", f"{pictures}/in/sub/b.png"]
    for image, name, size in zip(coco["images"], ("a.png", "sub/b.png"), ((30, 40), (24, 16)), strict=True):
        folder = pictures / "out" / name
        index, legend = pixels(folder / "index.png"), read(folder / "legend.json")
        assert index.shape == size == (image["height"], image["width"]) and index.any()
        result = read(folder / "prediction.json")
        for number, prompt in enumerate(("polyp", "liver"), 1):
            mask = pixels(folder / f"masks/{number}_{prompt}.png")
            assert set(np.unique(mask)) <= {0, 255} and np.array_equal(index == number, mask == 255)
            entry = result["prompts"][number - 1]
            assert legend[str(number)]["prompt"] == entry["prompt"] == prompt
            assert entry["area_px"] == (index == number).sum() and entry["found"] is bool((index == number).any())
            runs = [a for a in coco["annotations"] if a["image_id"] == image["id"] and a["category_id"] == number]
            decoded = [coco_mask.decode(a["segmentation"]).astype(bool) for a in runs]
            assert np.array_equal(np.any([np.zeros(size, bool), *decoded], axis=0), index == number)
        assert pixels(folder / "overlay.png").shape[0] > size[0]
    assert run.finished and read(pictures / "out/run.json")["asked"]["weights_sha256"]


def test_masks_and_scores_are_those_of_evaluate(data, tmp_path):
    small = ("evaluation.images=3", "evaluation.workers=0", "evaluation.overlays=0", "split=[mni152]")
    run_script("evaluate.py", *TINY, *data, *small, cwd=tmp_path)
    with (tmp_path / "runs/evaluation/results.csv").open() as file:
        rows = list(csv.DictReader(file))
    cache = Path(data[1].partition("=")[2])
    reader = open_reader(load_specs(["mni152"])["mni152"], Path("data"), cache)
    for item in {row["item"] for row in rows}:
        save_picture(tmp_path / f"in/{item}.png", reader.image(reader.item(item)))
    names = ["brain", "gray matter", "white matter"]
    rule = {"prediction__rules": ["top1"], "prediction__score_threshold": 0.0}
    predict(predict_config(tmp_path, prompts=names, exclusive=names[1:], outputs=["masks"], **rule))
    assert len(rows) == 9
    for row in rows:
        folder, number = tmp_path / f"out/{row['item']}.png", names.index(row["concept"])
        entry = read(folder / "prediction.json")["prompts"][number]
        assert all(str(entry[key]) == row[key] for key in ("score", "presence"))
        mask = pixels(folder / f"masks/{number + 1}_{row['concept'].replace(' ', '_')}.png") > 0
        truth = reader.masks(reader.item(row["item"]))[row["concept"]].union()
        assert f"{dice(overlap(mask, truth)):.6f}" == row["dice"] and str(mask.sum()) == row["prediction_px"]


def test_one_bad_file_stops_no_other_and_stands_at_the_end(pictures):
    (pictures / "in/bad.png").write_text("no picture")
    done = run_script("predict.py", *TINY, "input=in", "prompts=polyp", cwd=pictures, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "failed   1 pictures:\n  in/bad.png: cannot be read" in done.stderr
    record = read(pictures / "runs/prediction/run.json")
    assert [entry["input"] for entry in record["pictures"]] == ["in/a.png", "in/sub/b.png"]
    assert [entry["input"] for entry in record["failures"]] == ["in/bad.png"]
    assert not (pictures / "runs/prediction/bad.png").exists()
    (pictures / "in/bad.png").unlink()
    assert run_script("predict.py", *TINY, "input=in", "prompts=polyp", cwd=pictures).returncode == 0


def test_what_is_done_is_not_done_again_unless_it_was_asked_otherwise(pictures, monkeypatch):
    asked = []
    answer = segmentation._segment_picture
    monkeypatch.setattr(segmentation, "_segment_picture", lambda *a: asked.append(a[0].path.name) or answer(*a))
    predict(predict_config(pictures))
    assert asked == ["a.png", "b.png"]
    assert [entry["resumed"] for entry in predict(predict_config(pictures)).pictures] == [True, True]
    assert len(asked) == 2
    save_picture(pictures / "in/a.png", np.zeros((8, 9, 3), np.uint8))  # the file changed
    predict(predict_config(pictures))
    assert asked[2:] == ["a.png"] and pixels(pictures / "out/a.png/index.png").shape == (8, 9)
    predict(predict_config(pictures, seed=1))  # other weights
    predict(predict_config(pictures, seed=1, prompts=["liver"]))
    predict(predict_config(pictures, seed=1, prompts=["liver"], prediction__union_threshold=0.4))
    assert len(asked) == 9


def test_a_run_that_was_killed_comes_to_the_same_files(pictures, capsys):
    asked = {"prompts": ["polyp", "liver"], "outputs": ["index", "masks", "coco", "overlays"], **RULE}
    predict(predict_config(pictures, **asked))
    whole = {path: path.read_bytes() for path in (pictures / "out").rglob("*") if path.is_file()}
    shutil.rmtree(pictures / "out/a.png")  # b.png alone is done
    (pictures / "out/coco.json").unlink()
    (pictures / "out/.a.png.partial").mkdir()
    (pictures / "out/.a.png.partial/index.png").write_bytes(b"half")
    run = predict(predict_config(pictures, **asked))
    assert [entry["resumed"] for entry in run.pictures] == [False, True]
    again = {path: path.read_bytes() for path in (pictures / "out").rglob("*") if path.is_file()}
    record = pictures / "out/run.json"
    assert whole.pop(record) == again.pop(record).replace(b'"resumed": true', b'"resumed": false') and whole == again
    assert "coco.json" not in capsys.readouterr().out
    predict(predict_config(pictures, **asked | {"input": str(pictures / "in/sub/b.png")}))
    assert f"coco.json holds this run's pictures; no more: {pictures}/in/a.png" in capsys.readouterr().out


def test_two_runs_do_not_mix_their_files(pictures):
    (pictures / "out").mkdir()
    hold = "import fcntl, sys; f = open('out/.lock', 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(1); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-uc", hold], cwd=pictures, stdin=-1, stdout=-1) as other:
        other.stdout.readline()
        with pytest.raises(ValueError, match="out is in use by another process"):
            predict(predict_config(pictures))
        other.stdin.close()
    assert len(predict(predict_config(pictures)).pictures) == 2


def test_instances_apart_are_numbered_by_their_scores(pictures):
    kinds = ["index", "masks", "coco"]
    predict(predict_config(pictures, instances="apart", outputs=kinds, prompts=["polyp"], **RULE))
    folder = pictures / "out/a.png"
    legend, index = read(folder / "legend.json"), pixels(folder / "index.png")
    scores = [legend[str(value)]["score"] for value in range(1, len(legend))]
    assert len(scores) > 1 and scores == sorted(scores, reverse=True)
    masks = [pixels(folder / f"masks/1_polyp_{i}.png") > 0 for i in range(1, len(legend))]
    first = np.argmax(masks, axis=0) + 1
    assert np.array_equal(index, np.where(np.any(masks, axis=0), first, 0))
    assert (index > 0).sum() == read(folder / "prediction.json")["prompts"][0]["area_px"]


def test_not_found_is_an_answer(pictures):
    run = predict(predict_config(pictures, prediction__union_threshold=1.0, outputs=["index", "coco"]))
    assert [entry["prompts"][0]["found"] for entry in run.pictures] == [False, False] and not run.failures
    assert not run.pictures[0]["notes"]
    assert not pixels(pictures / "out/a.png/index.png").any() and read(pictures / "out/coco.json")["annotations"] == []


def test_200_prompts_on_one_picture(pictures):
    prompts = [f"thing {i}" for i in range(200)]
    run = predict(predict_config(pictures, input=str(pictures / "in/a.png"), prompts=prompts, **RULE))
    asked = run.pictures[0]["prompts"]
    assert [entry["prompt"] for entry in asked] == prompts
    lost = [
        entry["prompt"] for entry in asked if entry["score"] > 0.05 and not entry["found"]
    ]  # to surer ones: it is said
    assert lost and [note.partition(": no mask is left")[0] for note in run.pictures[0]["notes"]] == lost
    assert len(read(pictures / "out/a.png/legend.json")) == 201


def test_what_the_user_should_know_is_said(pictures):
    long = " ".join(f"word{i}" for i in range(40))
    prompts = f"prompts=[polpy,colorectal polyp,{long},'polyp, liver']"
    done = run_script("predict.py", *TINY, "input=in/a.png", prompts, cwd=pictures)
    assert "prompt 'polpy': not in the vocabulary, asked as it is; did you mean 'polyp'?" in done.stdout
    assert (
        "'colorectal polyp': asked as it is; the vocabulary's name for it, which training uses, is 'polyp'"
        in done.stdout
    )
    assert "tokens; the model reads the first 32, and the rest is cut" in done.stdout
    assert len(read(pictures / "runs/prediction/run.json")["remarks"]) == 6  # the last two are not in the vocabulary
    assert "prompt 'polyp, liver': asked as one prompt, with its comma; for several set prompts='[a, b]'" in done.stdout


def test_too_many_masks_for_the_memory_are_a_failure_of_that_picture(pictures, monkeypatch):
    monkeypatch.setattr(segmentation, "MOST_MASK_BYTES", 24 * 16 * 2)
    run = predict(predict_config(pictures, prompts=["polyp", "liver"]))
    assert "2 masks of 30 x 40 are too many" in run.failures[0]["error"] and len(run.pictures) == 1


def test_an_error_that_a_library_never_announced_stops_no_other_picture(pictures, monkeypatch):
    read = segmentation.read_picture
    broken = lambda path, config: {}[1] if path.name == "a.png" else read(path, config)  # noqa: E731
    monkeypatch.setattr(segmentation, "read_picture", broken)
    run = predict(predict_config(pictures))
    assert [f["error"] for f in run.failures] == ["cannot be read (KeyError: 1)"] and len(run.pictures) == 1


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"outputs": ["index", "mask"]}, "outputs='mask': must be one of index, masks"),
        ({"prediction__rules": ["union", "top1"]}, "name one"),
        ({"instances": "apart", "prediction__rules": ["semantic"]}, "knows no instances"),
        ({"scan__window": [5.0, 5.0]}, r"scan.window=\[5.0, 5.0\]: must be two numbers, the lower one first"),
        ({"prompts": ["liver", "spleen"], "exclusive": []}, "index holds one number per pixel"),
        ({"prompts": ["liver", "spleen"], "prediction__resolve_overlaps": False}, "index holds one number per pixel"),
        ({"prompts": ["a", "b"], "exclusive": [], "outputs": [], "seg": "LABELMAP"}, "one prompt per voxel"),
        ({"prompts": ["liver"], "exclusive": ["livr"]}, "exclusive='livr': must be one of liver. Did you mean 'liver'"),
        ({"exclusive": "none"}, "must be all, or a list of prompts"),
        ({"output_dir": "/proc/none"}, "output_dir=/proc/none: cannot write there"),
    ],
)
def test_a_wrong_request_ends_before_the_work(changes, expected, pictures):
    with pytest.raises(ValueError, match=expected):
        predict(predict_config(pictures, **changes))


def test_concepts_are_listed(tmp_path):
    lines = run_script("predict.py", "--list-concepts", cwd=tmp_path).stdout.splitlines()
    assert len(lines) > 100 and any(line.startswith("polyp   (") for line in lines) and lines == sorted(lines)


def test_the_command_needs_nothing_of_training_nor_the_locks_of_unix():
    code = (
        "import sys; sys.modules.update(fcntl=None); import medsam3.prediction.command; "
        "print([m for m in sys.modules if m.startswith('medsam3.training')])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture
def volume(tmp_path) -> Path:
    """in/v.nii.gz, oblique, 20 x 24 x 3 voxels."""
    voxels = np.random.RandomState(0).randint(0, 256, (20, 24, 3)).astype(np.uint8)
    affine = np.array([[0.7, 0.1, 0, 5], [-0.1, 0.7, 0, 6], [0, 0, 4, 7], [0, 0, 0, 1]])
    (tmp_path / "in").mkdir()
    nibabel.save(nibabel.Nifti1Image(voxels, affine), tmp_path / "in/v.nii.gz")
    return tmp_path


def test_the_slices_of_a_volume_are_predicted_as_pictures_and_keep_their_place(volume):
    source = nibabel.load(volume / "in/v.nii.gz")
    voxels = np.asarray(source.dataobj)
    run = predict(predict_config(volume, scan__axis=2, **RULE))
    assert not run.failures and "outputs: overlays is for pictures" in run.pictures[0]["notes"]
    labels = nibabel.load(volume / "out/v.nii.gz/index.nii.gz")
    assert np.allclose(labels.affine, source.affine, atol=1e-5) and labels.shape == voxels.shape
    for z in range(3):
        save_picture(volume / f"slices/{z}.png", voxels[:, :, z])
    predict(predict_config(volume, input=str(volume / "slices"), **RULE))
    (said,) = read(volume / "out/v.nii.gz" / RESULT)["prompts"]
    for z in range(3):
        shown = pixels(volume / f"out/{z}.png/index.png")
        assert shown.any() and np.array_equal(np.asarray(labels.dataobj)[:, :, z], shown)
        (picture,) = read(volume / f"out/{z}.png" / RESULT)["prompts"]
        assert said["slice_scores"][z] == pytest.approx(picture["score"], abs=1e-5)


def test_prompts_of_a_volume_share_no_voxel_unless_they_may(volume):
    asked = {"prompts": ["polyp", "liver"], "outputs": ["masks"], **RULE}
    masks = {}
    for exclusive in ("all", []):
        predict(predict_config(volume, exclusive=exclusive, **asked))
        files = [volume / f"out/v.nii.gz/masks/{name}.nii.gz" for name in ("1_polyp", "2_liver")]
        masks[str(exclusive)] = sum(np.asarray(nibabel.load(file).dataobj).astype(int) for file in files)
    assert masks["all"].max() == 1 and masks["[]"].max() == 2
    assert np.array_equal(masks["all"] > 0, masks["[]"] > 0)


def test_a_dicom_series_comes_back_as_a_segmentation(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    pytest.importorskip("highdicom")
    from tests import dicom_files

    images = dicom_files.series()
    dicom_files.save_series(tmp_path / "in", images)
    run = predict(predict_config(tmp_path, prompts=["liver"], **RULE))
    assert not run.failures
    found = pydicom.dcmread(tmp_path / "out/in/segmentation.dcm")
    assert (found.SegmentationType, found.SegmentSequence[0].SegmentLabel) == ("BINARY", "liver")
    assert len(run.pictures[0]["prompts"][0]["slice_scores"]) == len(images)
    assert not predict(predict_config(tmp_path, prompts=["liver"], seg="LABELMAP", **RULE)).failures
    assert pydicom.dcmread(tmp_path / "out/in/segmentation.dcm").SegmentationType == "LABELMAP"
