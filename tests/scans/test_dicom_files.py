"""DICOM files: those that come with pydicom (compressed, in colour, of several frames, broken), and damaged ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from medsam3.scans.dicom_seg import write_dicom_seg
from medsam3.scans.scan import read_scan
from medsam3.scans.writers import write_volume
from tests.dicom_files import save_series, series
from tests.scans.test_dicom import CONFIG, VOCABULARY


@pytest.mark.parametrize(
    "name",
    ["MR_small_RLE", "MR_small_bigendian", "MR_small_implicit", "MR_small_jp2klossless", "MR_small_jpeg_ls_lossless"],
)
def test_transfer_syntaxes_of_one_image_agree(name):
    expected = pydicom.dcmread(get_testdata_file("MR_small.dcm")).pixel_array
    scan = read_scan(Path(get_testdata_file(f"{name}.dcm")), CONFIG)
    assert scan.volume.voxels.shape == (1, 64, 64) and (scan.volume.voxels[0] == expected).all()
    assert scan.window == (-200, 1399)  # center 600, width 1600, by PS3.3 C.11.2.1.2.1


@pytest.mark.parametrize(
    "name, shape, dtype",
    [
        ("examples_palette", (1, 350, 800, 3), np.uint8),
        ("examples_ybr_color", (30, 240, 320, 3), np.uint8),
        ("SC_rgb_jpeg_gdcm", (1, 100, 100, 3), np.uint8),  # JPEG lossless
        ("SC_rgb_rle_16bit_2frame", (2, 100, 100, 3), np.float32),
        ("CT_small", (1, 128, 128), np.float32),
    ],
)
def test_pictures_of_pydicom_are_read(name, shape, dtype):
    scan = read_scan(Path(get_testdata_file(f"{name}.dcm")), CONFIG)
    assert scan.volume.voxels.shape == shape and scan.volume.voxels.dtype == dtype
    picture = scan[len(scan) - 1]
    assert picture.dtype == np.uint8 and picture.shape[2] == 3 and np.ptp(picture) > 100


@pytest.mark.parametrize(
    "name, message",
    [
        ("MR_truncated", r"MR_truncated.dcm: its pixels cannot be read \(ValueError"),
        ("rtdose", r"holds no DICOM image \(1 left out, without a picture: rtdose.dcm\)"),
        ("liver_1frame", "without a picture"),  # a SEG
        ("no_meta", "not DICOM: no_meta.dcm"),
        ("JPEG-lossy", "its pixels cannot be read"),  # 12-bit JPEG, which the decoders of the extra do not know
    ],
)
def test_files_that_are_no_picture_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        read_scan(Path(get_testdata_file(f"{name}.dcm")), CONFIG)


def test_frames_without_a_place(tmp_path):
    scan = read_scan(Path(get_testdata_file("examples_ybr_color.dcm")), CONFIG)
    nothing = {"liver": np.zeros(scan.volume.voxels.shape[:3], bool)}
    assert (scan.axis, scan.spacing_mm) == (0, None)
    with pytest.raises(ValueError, match=r"30 frames of series .* have no place in the patient"):
        write_dicom_seg(tmp_path / "seg.dcm", scan.series, nothing, VOCABULARY, "weights")
    with pytest.raises(ValueError, match=r"does not say where its voxels lie.*write .tif"):
        write_volume(tmp_path / "out.nrrd", nothing["liver"], scan)
    write_volume(tmp_path / "out.tif", nothing["liver"], scan)


def test_a_file_cut_short_in_its_header_is_refused(tmp_path):
    folder = save_series(tmp_path / "in", series())
    whole = (folder / "5_1.dcm").read_bytes()
    for size in (len(whole) - 7, 700, 300):
        (folder / "5_1.dcm").write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"5_1\.dcm"):
            read_scan(folder, CONFIG)


@pytest.mark.parametrize("keyword", ["Columns", "BitsAllocated", "PhotometricInterpretation"])
def test_an_image_without_what_an_image_needs_is_named(keyword, tmp_path):
    folder = save_series(tmp_path / "in", series())
    broken = pydicom.dcmread(folder / "5_1.dcm")
    delattr(broken, keyword)
    broken.save_as(folder / "5_1.dcm")
    with pytest.raises(ValueError, match=rf"5_1\.dcm: cannot be read as DICOM .*an image without {keyword}"):
        read_scan(folder, CONFIG)
