"""DICOM in, DICOM-SEG out, on a phantom with three marks whose places in the patient are known.

Where other loaders fail or are silently wrong (tilt, gaps, copies, localizers, jitter), a mark must come back to the
millimetre. SEGs are read by highdicom and, independently, from the attributes alone with pydicom.
"""

from __future__ import annotations

import copy
import importlib
import itertools
import warnings
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels import unpack_bits
from pydicom.uid import EnhancedCTImageStorage, generate_uid

from medsam3.config import ScanConfig
from medsam3.registry.vocabulary import Vocabulary
from medsam3.scans.dicom_seg import write_dicom_seg
from medsam3.scans.scan import Scan, read_scan
from medsam3.scans.writers import write_volume
from tests.dicom_files import (
    COLUMNS,
    MARKS,
    ORIGIN,
    PATIENT,
    ROWS,
    SERIES,
    SLICES,
    SPACING,
    STEP,
    header,
    phantom,
    save,
    save_series,
    series,
)

CONFIG = ScanConfig(axis=None, window=None, modality_windows={"CT": [-160, 240]}, percentiles=[0.5, 99.5], series=None)
HU = {f"mark of {value}": value - 1024 for value in MARKS.values()}  # prompt -> value after the rescale
VOCABULARY = Vocabulary.load()


def config(**changes: object) -> ScanConfig:
    return ScanConfig(**{**vars(CONFIG), **changes})


def marked(scan: Scan) -> dict[str, np.ndarray]:
    """What a perfect model would find, by way of the pictures, in the axes of the file."""
    return {prompt: scan.as_stored(scan.pictures == value) for prompt, value in HU.items()}


def as_seg(scan: Scan, path: Path, **options: str) -> dict[str, list[np.ndarray]]:
    """Places in the patient of all pixels of each segment, read from the SEG's own attributes and bits."""
    assert scan.series is not None
    write_dicom_seg(path, scan.series, marked(scan), VOCABULARY, "weights", **options)
    seg = pydicom.dcmread(path)
    shared = seg.SharedFunctionalGroupsSequence[0]
    row, column = np.reshape(shared.PlaneOrientationSequence[0].ImageOrientationPatient, (2, 3))
    between_rows, between_columns = shared.PixelMeasuresSequence[0].PixelSpacing
    bits = unpack_bits(seg.PixelData, as_array=True)[: seg.NumberOfFrames * seg.Rows * seg.Columns]
    labels = [segment.SegmentLabel for segment in seg.SegmentSequence]
    found: dict[str, list[np.ndarray]] = {label: [] for label in labels}
    for groups, mask in zip(seg.PerFrameFunctionalGroupsSequence, bits.reshape(-1, seg.Rows, seg.Columns), strict=True):
        position = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        label = labels[groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber - 1]
        for r, c in np.argwhere(mask):
            found[label].append(position + r * between_rows * column + c * between_columns * row)
    return found


def mark_places(tilt: float = 0.0) -> dict[str, np.ndarray]:
    """Worked out from the unflipped phantom: slices to the head, rows to the back, columns to the left."""
    shift = np.tan(np.radians(tilt)) * STEP
    return {
        f"mark of {value}": ORIGIN + np.array([c * SPACING[1], r * SPACING[0] + s * shift, s * STEP])
        for (s, r, c), value in MARKS.items()
    }


def check_marks(found: dict[str, list[np.ndarray]], tilt: float = 0.0, lost: str = "") -> None:
    for prompt, place in mark_places(tilt).items():
        assert len(found[prompt]) == (prompt != lost), prompt
        if prompt != lost:
            np.testing.assert_allclose(found[prompt][0], place, atol=1e-5)


@pytest.mark.parametrize("flips", list(itertools.product((1, -1), repeat=3)))
def test_marks_come_back_in_all_eight_flips(flips, tmp_path):
    scan = read_scan(save_series(tmp_path / "in", series(flips)), CONFIG)
    assert (scan.axis, len(scan), scan.notes) == ("axial", SLICES, ())
    np.testing.assert_allclose(scan.spacing_mm, (STEP, *SPACING))
    for place, value in MARKS.items():  # every picture stands upright, however it is stored
        assert np.argwhere(scan.pictures == value - 1024).tolist() == [list(place)]
    check_marks(as_seg(scan, tmp_path / "seg.dcm"))


def test_highdicom_finds_each_mask_on_its_source_image(tmp_path):
    scan = read_scan(save_series(tmp_path / "in", series((-1, 1, -1))), CONFIG)
    as_seg(scan, tmp_path / "seg.dcm")
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    uids = [frame.header.SOPInstanceUID for frame in scan.series.frames]
    masks = seg.get_pixels_by_source_instance(
        uids, ignore_spatial_locations=False, assert_missing_frames_are_empty=True
    )
    for number, mask in enumerate(marked(scan).values()):
        assert (masks[..., number] == mask).all() and mask.sum() == 1


def test_gantry_tilt_is_exact_in_seg_and_refused_elsewhere(tmp_path):
    scan = read_scan(save_series(tmp_path / "in", series(tilt=15)), CONFIG)
    assert scan.notes == ("the slices are not stacked along their normal (gantry tilt of 15 degrees)",)
    check_marks(as_seg(scan, tmp_path / "seg.dcm"), tilt=15)
    with pytest.raises(
        ValueError, match=r"out.nii.gz: no grid of voxels, as .* tilt of 15 degrees\): write a DICOM-SEG"
    ):
        write_volume(tmp_path / "out.nii.gz", marked(scan)["mark of 500"], scan)
    with pytest.raises(ValueError, match=r"axis=coronal: only as acquired \(axial\), because .* tilt"):
        read_scan(tmp_path / "in", config(axis="coronal"))


def test_a_missing_slice_is_said(tmp_path):
    images = series()
    del images[3]
    scan = read_scan(save_series(tmp_path / "in", images), CONFIG)
    assert scan.notes == ("slices are missing where steps are longer than the usual 3 mm (1 after frame 3)",)
    check_marks(as_seg(scan, tmp_path / "seg.dcm"))
    with pytest.raises(ValueError, match="slices are missing"):
        write_volume(tmp_path / "out.mha", marked(scan)["mark of 500"], scan)


def test_copies_are_dropped_and_rivals_refused(tmp_path):
    images = series()
    folder = save_series(tmp_path / "in", images)
    again = copy.deepcopy(images[2][0])
    again.SOPInstanceUID = generate_uid()
    save(again, images[2][1], folder / "again.dcm")
    save(*images[4], folder / "sub/copied.dcm")
    scan = read_scan(folder, CONFIG)
    assert len(scan) == SLICES and scan.notes == ("2 exact copies of frames left out",)
    check_marks(as_seg(scan, tmp_path / "seg.dcm"))
    again.EchoTime = 4.6
    save(again, images[2][1] + 1, folder / "again.dcm")
    with pytest.raises(ValueError, match=r"two images of one place with different pixels.* differ in EchoTime"):
        read_scan(folder, CONFIG)


@pytest.mark.parametrize("said", [True, False])
def test_a_localizer_in_the_series_is_left_out(said, tmp_path):
    folder = save_series(tmp_path / "in", series())
    scout = header(0, (0, -50, 200), (1, 0, 0), (0, 0, -1))
    if said:
        scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    save(scout, phantom()[0], folder / "scout.dcm")
    scan = read_scan(folder, CONFIG)
    assert len(scan) == SLICES
    assert scan.notes[0].startswith("left out as localizers or single images beside the series: ")
    check_marks(as_seg(scan, tmp_path / "seg.dcm"))


def _jitter(images):
    for (image, _), shift in zip(images, (0.05, -0.05, 0.02, 0, 0.05, -0.03), strict=True):
        image.ImagePositionPatient[2] += shift


def _noise(images):
    for i, (image, _) in enumerate(images):
        image.ImageOrientationPatient = [1, 1e-6 * i, 0, -1e-6 * i, 1, 0]


def _spacing(images):
    images[2][0].PixelSpacing = [SPACING[0] * 1.001, SPACING[1]]


@pytest.mark.parametrize("disturb, tolerance_mm", [(_jitter, 0.051), (_noise, 1e-4), (_spacing, 0.03)])
def test_small_disturbances_change_nothing(disturb, tolerance_mm, tmp_path):
    images = series()
    disturb(images)
    scan = read_scan(save_series(tmp_path / "in", images), CONFIG)
    assert len(scan) == SLICES and scan.notes == ()
    for prompt, places in as_seg(scan, tmp_path / "seg.dcm").items():
        np.testing.assert_allclose(places, [mark_places()[prompt]], atol=tolerance_mm)
    write_volume(tmp_path / "out.nii.gz", marked(scan)["mark of 500"], scan)


def test_uneven_steps_and_unequal_pixels_are_no_grid(tmp_path):
    images = series()
    images[2][0].ImagePositionPatient[2] += 1
    assert "uneven (up to 1 mm" in read_scan(save_series(tmp_path / "a", images), CONFIG).notes[0]
    images[3][0].PixelSpacing = [2, 2]
    with pytest.raises(ValueError, match=r"pixels of different size, \[1.5, 0.75\] to \[2.0, 2.0\] mm"):
        read_scan(save_series(tmp_path / "b", images), CONFIG)


def test_of_several_series_one_is_chosen_by_key(tmp_path):
    folder = save_series(tmp_path / "in", series())
    other = generate_uid()
    for image, values in series()[:1]:  # a single image, but of another series: not to be left out without being asked
        image.SeriesInstanceUID, image.Modality = other, "MR"
        save(image, values, folder / f"other_{image.InstanceNumber}.dcm")
    with pytest.raises(ValueError, match=r"holds several series: choose one with scan\.series=KEY") as refused:
        read_scan(folder, CONFIG)
    listed = [part.split()[0] for part in str(refused.value).partition(", of ")[2].split("; ")]
    assert {len(read_scan(folder, config(series=key))) for key in listed} == {SLICES, 1}
    assert SERIES not in str(refused.value) and other not in str(refused.value)
    with pytest.raises(ValueError, match="series=nonsense: there is none of this key"):
        read_scan(folder, config(series="nonsense"))


def test_nothing_said_names_the_patient(tmp_path):
    images = series()
    images[0][0].PatientBirthDate = "not a date"  # of which pydicom would warn, with its value
    folder = save_series(tmp_path / "in", images[1:])
    save(*images[0], folder / "bad.dcm")
    (folder / "notes.txt").write_text("x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scan = read_scan(folder, CONFIG)
    said = f"{scan.notes} {scan.series} {scan.window_from}"
    assert not any(secret in said for secret in (PATIENT, "Doe", "secret-id", SERIES, "not a date"))
    assert scan.notes == ("1 left out, not DICOM: notes.txt",)


def test_messages_about_a_seg_do_not_quote_the_patient(tmp_path):
    images = series()
    for image, _ in images:
        image.PatientBirthDate, image.PatientID = "1. 4. 1950", "a"
    scan = read_scan(save_series(tmp_path / "in", images), CONFIG)
    with pytest.raises(
        ValueError, match=r"no DICOM segmentation can repeat it; .*the value of PatientBirthDate"
    ) as refused:
        write_dicom_seg(tmp_path / "seg.dcm", scan.series, marked(scan), VOCABULARY, "weights")
    assert "1950" not in str(refused.value) and refused.value.__suppress_context__
    assert "PatientIDlue" not in str(refused.value)  # whole words alone


def test_an_error_that_highdicom_never_announced_is_one_of_the_file(tmp_path, monkeypatch):
    def unknown(*_: object) -> None:
        raise NotImplementedError(f"Unknown Value Representation '0x43 0x19' near {PATIENT} in {SERIES}")

    scan = read_scan(save_series(tmp_path / "in", series()), CONFIG)
    monkeypatch.setattr("medsam3.scans.dicom_seg._segmentation", unknown)
    with pytest.raises(ValueError, match=r"NotImplementedError.* near the value of PatientName in \(a UID\)"):
        write_dicom_seg(tmp_path / "seg.dcm", scan.series, marked(scan), VOCABULARY, "weights")


def _enhanced(folder: Path) -> Path:
    """One multi-frame file whose frames are not stored in the order of the slices."""
    images = series()
    order = [3, 0, 5, 1, 4, 2]
    image = copy.deepcopy(images[0][0])
    for keyword in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "RescaleSlope",
        "RescaleIntercept",
    ):
        delattr(image, keyword)
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = EnhancedCTImageStorage
    image.NumberOfFrames = SLICES
    shared = Dataset()
    for sequence, keywords in (
        ("PlaneOrientationSequence", ["ImageOrientationPatient"]),
        ("PixelMeasuresSequence", ["PixelSpacing", "SliceThickness"]),
        ("PixelValueTransformationSequence", ["RescaleSlope", "RescaleIntercept"]),
    ):
        item = Dataset()
        for keyword in keywords:
            setattr(item, keyword, images[0][0][keyword].value)
        setattr(shared, sequence, [item])
    image.SharedFunctionalGroupsSequence = [shared]
    image.PerFrameFunctionalGroupsSequence = []
    for i in order:
        groups, place = Dataset(), Dataset()
        place.ImagePositionPatient = images[i][0].ImagePositionPatient
        groups.PlanePositionSequence = [place]
        image.PerFrameFunctionalGroupsSequence.append(groups)
    image.Rows, image.Columns = ROWS, COLUMNS
    image.PixelData = phantom()[order].tobytes()
    folder.mkdir()
    image.save_as(folder / "enhanced.dcm", enforce_file_format=True)
    return folder / "enhanced.dcm"


def test_frames_of_one_file_are_sorted_and_referred_to_by_number(tmp_path):
    scan = read_scan(_enhanced(tmp_path / "in"), CONFIG)
    assert [frame.number for frame in scan.series.frames] == [1, 3, 5, 0, 4, 2]
    for place, value in MARKS.items():
        assert np.argwhere(scan.pictures == value - 1024).tolist() == [list(place)]
    check_marks(as_seg(scan, tmp_path / "seg.dcm"))
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    numbers = [
        groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
        for groups in seg.PerFrameFunctionalGroupsSequence
    ]
    assert numbers == [4, 6, 5]  # slices 1, 2, 4 of the phantom: stored as frames 4, 6, 5


def test_labelmap_holds_one_concept_per_voxel(tmp_path):
    scan = read_scan(save_series(tmp_path / "in", series()), CONFIG)
    masks = marked(scan)
    write_dicom_seg(tmp_path / "map.dcm", scan.series, masks, VOCABULARY, "weights", kind="LABELMAP")
    seg = highdicom.seg.segread(tmp_path / "map.dcm")
    read = seg.get_pixels_by_source_instance(
        [frame.header.SOPInstanceUID for frame in scan.series.frames],
        assert_missing_frames_are_empty=True,
        combine_segments=True,
    )
    assert (read == sum((i + 1) * mask for i, mask in enumerate(masks.values()))).all()
    masks["again"] = masks["mark of 500"]
    with pytest.raises(ValueError, match="seg=LABELMAP has one concept per voxel, and these overlap: write BINARY"):
        write_dicom_seg(tmp_path / "map.dcm", scan.series, masks, VOCABULARY, "weights", kind="LABELMAP")
    with pytest.raises(ValueError, match="seg='FRACTIONAL': must be one of BINARY, LABELMAP"):
        write_dicom_seg(tmp_path / "map.dcm", scan.series, masks, VOCABULARY, "weights", kind="FRACTIONAL")


def test_segments_carry_codes(tmp_path):
    scan = read_scan(save_series(tmp_path / "in", series()), CONFIG)
    nothing = np.zeros(scan.volume.voxels.shape, bool)
    scan.series.header.SpecificCharacterSet, scan.series.header.PatientName = "ISO_IR 100", "Doe Jörg"
    prompts = ["liver", "colon polyp", "breast lesion", "stone in a duct " * 6, "肝臓\\é"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # highdicom's of a name without ^ would print it
        write_dicom_seg(tmp_path / "seg.dcm", scan.series, dict.fromkeys(prompts, nothing), VOCABULARY, "weights")
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    segments = seg.SegmentSequence
    codes = [
        tuple(
            (item.CodeValue, item.CodingSchemeDesignator)
            for item in (s.SegmentedPropertyCategoryCodeSequence[0], s.SegmentedPropertyTypeCodeSequence[0])
        )
        for s in segments
    ]
    assert codes[0] == (("91723000", "SCT"), ("10200004", "SCT"))
    assert codes[1] == (("49755003", "SCT"), ("68496003", "SCT"))  # a synonym of polyp
    assert codes[2][0] == ("49755003", "SCT") and codes[2][1][1] == "99MEDSAM3"  # no SNOMED code in the vocabulary
    assert codes[3][0] == ("PROMPT", "99MEDSAM3") and codes[3][1][1] == "99MEDSAM3"
    assert segments[3].SegmentDescription == prompts[3].strip() and len(segments[3].SegmentLabel) <= 64
    assert segments[4].SegmentLabel == "肝臓/é" and str(seg.PatientName) == "Doe Jörg"  # in one character set


def test_without_the_extra_the_message_says_what_to_install(tmp_path, monkeypatch):
    folder = save_series(tmp_path / "in", series())

    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ValueError, match=r"DICOM needs the package pydicom.config: pip install 'medsam3\[dicom\]'"):
        read_scan(folder, CONFIG)
