"""Volumes of all kinds through predict.py: pages, DICOM, what is wrong in one line each; no record names a patient."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image
from pydicom.data import get_testdata_file

from medsam3.prediction.command import predict
from medsam3.prediction.volume_outputs import source_hash
from tests import dicom_files
from tests.prediction.predict_config import predict_config

pytest.importorskip("highdicom")
RULE = {"prediction__union_threshold": 0.05, "outputs": ["index", "masks"]}  # that random weights find something
GREY = np.random.RandomState(0).randint(0, 256, (3, 20, 24)).astype(np.uint8)


def predicted(folder: Path, **changes: Any) -> Any:
    run = predict(predict_config(folder, **RULE | changes))
    assert not run.failures, run.failures
    return run


def test_pages_of_a_tiff_are_slices(tmp_path):
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "in/stack.tif", GREY, photometric="minisblack")
    tifffile.imwrite(tmp_path / "in/one.tif", GREY[0])
    predicted(tmp_path)
    stack = tifffile.imread(tmp_path / "out/stack.tif/index.tif")
    assert stack.shape == GREY.shape and stack.any()
    with Image.open(tmp_path / "out/one.tif/index.png") as picture:
        assert np.array_equal(np.asarray(picture), stack[0])


def test_frames_without_a_place_come_back_as_pages(tmp_path):
    (tmp_path / "in").mkdir()
    image = pydicom.dcmread(get_testdata_file("SC_rgb_rle_16bit_2frame.dcm"))
    image.save_as(tmp_path / "in/cine.dcm")
    predicted(tmp_path, input=str(tmp_path / "in/cine.dcm"))
    assert tifffile.imread(tmp_path / "out/cine.dcm/masks/1_polyp.tif").shape == (2, 100, 100)


@pytest.mark.parametrize("header, data", [("a.mhd", "a.raw"), ("a.nhdr", "a.raw")])
def test_voxels_in_a_file_of_their_own_tell_whether_a_volume_changed(header, data, tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(GREY), str(tmp_path / header))
    before, stored = source_hash(tmp_path / header), (tmp_path / data).read_bytes()
    assert source_hash(tmp_path / header) == before
    sitk.WriteImage(sitk.GetImageFromArray(GREY[::-1]), str(tmp_path / header))
    assert (tmp_path / data).read_bytes() != stored and source_hash(tmp_path / header) != before


def test_slices_that_are_missing_are_noted(tmp_path):
    images = dicom_files.series()
    dicom_files.save_series(tmp_path / "in", images[:3] + images[4:])
    (entry,) = predicted(tmp_path).pictures
    assert any("slices are missing" in note and "1 after frame 3" in note for note in entry["notes"])


def _save_4d(path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6, 2), np.int16), np.eye(4)), path / "a.nii.gz")


def _save_flat(path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(GREY[0]), str(path / "a.mha"))


def _save_pyramid(path: Path) -> None:
    with tifffile.TiffWriter(path / "a.tif") as file:
        file.write(np.repeat(GREY[0][..., None], 3, axis=2), photometric="rgb")
        file.write(GREY[0, :8, :8], photometric="minisblack")


def _save_two_series(path: Path) -> None:
    images = dicom_files.series()
    dicom_files.save_series(path, images)
    for image, values in dicom_files.series():
        image.SeriesInstanceUID = "1.2.3"
        dicom_files.save(image, values, path / f"other_{image.InstanceNumber}.dcm")


def _save_truncated(path: Path) -> None:
    dicom_files.save_series(path, dicom_files.series())
    whole = (path / "5_1.dcm").read_bytes()
    (path / "5_1.dcm").write_bytes(whole[:-100])


def _save_nothing(path: Path) -> None:
    (path / "a.nii.gz").write_bytes(b"no volume")


def test_images_that_no_segmentation_can_refer_to_are_refused_before_the_model_works(tmp_path, monkeypatch, capsys):
    images = dicom_files.series()
    for image, _ in images:
        del image.FrameOfReferenceUID
    dicom_files.save_series(tmp_path / "in", images)
    with monkeypatch.context() as patch:
        patch.setattr("medsam3.prediction.segmentation.predict_scan", lambda *_: pytest.fail("the model was asked"))
        (failure,) = predict(predict_config(tmp_path, **RULE)).failures
    assert "without FrameOfReferenceUID, which a DICOM segmentation has to repeat; with seg=NIFTI" in failure["error"]
    predicted(tmp_path, seg="NIFTI")
    assert "note     window from modality CT" in capsys.readouterr().out
    written = nibabel.load(tmp_path / "out/in/masks/1_polyp.nii.gz")
    np.testing.assert_allclose(nibabel.affines.voxel_sizes(written.affine), (0.75, 1.5, 3.0), atol=1e-6)
    np.testing.assert_allclose(written.affine[:3, 3], dicom_files.ORIGIN * (-1, -1, 1), atol=1e-6)


@pytest.mark.parametrize(
    "make, words",
    [
        (_save_4d, "has 4 axes (4, 5, 6, 2), expected 3; times, echoes, or colours"),
        (_save_flat, "has 2 axes (20, 24), expected 3; a picture: save it as PNG or TIFF"),
        (_save_pyramid, "holds 2 pages that are no stack"),
        (_save_two_series, "holds several series: choose one with scan.series=KEY"),
        (_save_truncated, "its pixels cannot be read"),
        (_save_nothing, "cannot be read"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(make, words, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    make(tmp_path / "in")
    run = predict(predict_config(tmp_path, **RULE))
    (failure,) = run.failures
    assert words in failure["error"] and "\n" not in failure["error"] and "Traceback" not in capsys.readouterr().err
    assert not run.pictures and not list((tmp_path / "out").glob("*/*"))


def test_no_record_and_no_file_name_tells_who_the_patient_is(tmp_path, capsys):
    """The SEG alone carries on what its images say, as the standard wants it."""
    images = dicom_files.series()
    dicom_files.save_series(tmp_path / "in", images)
    predicted(tmp_path)
    secrets = ["Doe", "Jane", "secret-id", dicom_files.SERIES, dicom_files.STUDY, dicom_files.PLACE]
    secrets += [image.SOPInstanceUID for image, _ in images]
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    said = capsys.readouterr()
    records = "".join(path.read_text() for path in files if path.suffix != ".dcm")
    for secret in secrets:
        assert secret not in records + said.out + said.err + " ".join(path.name for path in files), secret
    (seg,) = [path for path in files if path.suffix == ".dcm"]
    assert pydicom.dcmread(seg).PatientID == "secret-id" and json.loads((seg.parent / "prediction.json").read_text())
