"""The grey values of DICOM: rescale, window, VOI LUT, inversion."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from medsam3.scans.scan import read_scan
from tests.dicom_files import MARKS, save_series, series
from tests.scans.test_dicom import CONFIG, config


def test_values_are_rescaled_shown_by_the_header_and_inverted(tmp_path):
    images = series()
    for image, _ in images:
        image.WindowCenter, image.WindowWidth = [-300, 40], [301, 400]
    scan = read_scan(save_series(tmp_path / "in", images), CONFIG)
    assert scan.volume.voxels.min() == -1024 and scan.window == (-450.5, -150.5)  # PS3.3 C.11.2.1.2.1
    marks = [scan[s][r, c, 0] for s, r, c in MARKS]  # -524, -324, -124 HU
    assert marks == [0, round((-324 + 450.5) / 300 * 255), 255]
    for image, _ in images:
        image.PhotometricInterpretation = "MONOCHROME1"
    inverted = read_scan(save_series(tmp_path / "in", images), CONFIG)
    assert [inverted[s][r, c, 0] for s, r, c in MARKS] == [255 - mark for mark in marks]
    images[0][0].WindowCenter = 0
    scan = read_scan(save_series(tmp_path / "in", images), CONFIG)
    assert (scan.window, scan.window_from) == (
        (-160, 240),
        "modality CT, the window in the header changes from frame to frame",
    )


def _with_table(image: Dataset, values: list[int], bits: int, start: int) -> None:
    lut = Dataset()
    lut.add_new("LUTDescriptor", "SS", [len(values), start, bits])
    lut.add_new("LUTData", "US", values)
    image.VOILUTSequence = pydicom.Sequence([lut])


@pytest.mark.parametrize("bits", [8, 12])
def test_a_voi_lut_goes_before_a_window_as_pydicom_has_it(bits, tmp_path):
    images, steps = series(), np.linspace(0, 1, 600) ** 2  # from -900 to -301 HU; marks lie at -524, -324, -124
    table = np.rint(steps * (2**bits - 1)).astype(int).tolist()
    for image, _ in images:
        image.WindowCenter, image.WindowWidth = 40, 400
        _with_table(image, table, bits, -900)
    scan = read_scan(save_series(tmp_path / "in", images), CONFIG)
    assert (scan.window, scan.window_from) == (None, "VOI LUT of the header, brightest 255 of 255")
    header = next(frame.header for frame in scan.series.frames)
    for index, voxels in enumerate(scan.pictures):
        expected = pydicom.pixels.apply_voi_lut(voxels.astype(np.int32), header) * 255.0 / (2**bits - 1)
        if bits > 8:  # else pydicom 3.0 takes entry 256 for entry 0, and so on
            np.testing.assert_array_equal(scan[index][..., 0], np.rint(expected))
    expected = [round(table[place] * 255 / (2**bits - 1)) for place in (376, 576, 599)]
    assert scan[0].min() == 0 and [scan[s][r, c, 0] for s, r, c in MARKS] == expected
    chosen = read_scan(tmp_path / "in", config(window=[-160, 240]))
    assert (chosen.window, chosen.window_from, chosen.table) == ((-160, 240), "option", None)
    _with_table(images[2][0], table[::-1], bits, -900)
    scan = read_scan(save_series(tmp_path / "in", images), CONFIG)
    assert scan.window == (-160, 239) and scan.notes == (
        "VOI LUT of the header left out: it changes from frame to frame",
    )
    del images[0][0].VOILUTSequence[0].LUTData
    scan = read_scan(save_series(tmp_path / "one", images[:1]), CONFIG)
    assert scan.window == (-160, 239) and "it cannot be read" in scan.notes[0]


def test_slopes_of_each_frame_and_unsigned_16_bits(tmp_path):
    images = series()
    for i, (image, _) in enumerate(images):
        image.Modality, image.PixelRepresentation = "PT", 0
        image.RescaleSlope, image.RescaleIntercept = 0.5 * (i + 1), 0
    voxels = read_scan(save_series(tmp_path / "in", [(i, v.astype(np.uint16) * 70) for i, v in images]), CONFIG)
    for (s, r, c), value in MARKS.items():  # 900 * 70 = 63000 is above the signed range
        assert voxels.pictures[s, r, c] == value * 70 * 0.5 * (s + 1)


@pytest.mark.parametrize("slope, intercept", [(None, -1024), (2, None), (0, -1024)])
def test_half_a_rescale_is_not_guessed(slope, intercept, tmp_path):
    images = series()
    images[4][0].RescaleSlope, images[4][0].RescaleIntercept = slope, intercept
    with pytest.raises(ValueError, match=rf"_4\.dcm: RescaleSlope {slope}\S* with RescaleIntercept {intercept}"):
        read_scan(save_series(tmp_path / "in", images), CONFIG)


def test_hounsfield_windows_are_for_hounsfield_units(tmp_path):
    images = series()
    for image, _ in images:
        del image.RescaleSlope, image.RescaleIntercept
    scan = read_scan(save_series(tmp_path / "in", images), CONFIG)
    assert scan.window_from == "percentiles 0.5 and 99.5 of all voxels, no window in the header"
