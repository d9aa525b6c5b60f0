"""Volumes in, masks out: SimpleITK and nibabel must read the geometry of the source, whatever the format."""

from __future__ import annotations

import logging
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile

from medsam3.config import ScanConfig
from medsam3.scans.scan import Scan, read_scan
from medsam3.scans.writers import usual_ending, write_volume

CONFIG = ScanConfig(axis=None, window=None, modality_windows={}, percentiles=[0, 100], series=None)
# Oblique, voxels of 0.7 x 0.9 x 2.5 mm, the first axis runs to the left: worked out as rotations by 20 and 10 degrees.
SPACING = (0.7, 0.9, 2.5)
SHAPE = (9, 8, 7)


def oblique() -> np.ndarray:
    a, b = np.radians((20, 10))
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]) @ np.array(
        [[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]]
    )
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag((-SPACING[0], SPACING[1], SPACING[2]))
    affine[:3, 3] = (31.25, -17.5, 80.125)
    return affine


def values() -> np.ndarray:
    """Each number once."""
    return np.random.default_rng(0).permutation(np.prod(SHAPE)).reshape(SHAPE).astype(np.int16) - 250


def save_source(path: Path) -> Path:
    """The same volume in each format, written by nibabel or SimpleITK and not by the code under test."""
    if path.name.endswith((".nii", ".nii.gz")):
        nibabel.save(nibabel.Nifti1Image(values(), oblique()), path)
    else:
        lps = np.diag([-1.0, -1, 1, 1]) @ oblique()
        image = sitk.GetImageFromArray(values().T)
        image.SetSpacing(SPACING)
        image.SetDirection((lps[:3, :3] / SPACING).ravel().tolist())
        image.SetOrigin(lps[:3, 3].tolist())
        sitk.WriteImage(image, str(path))
    return path


def places(path: Path, value: int) -> list[np.ndarray]:
    """Where in the patient (right, front, head) the voxels of a value lie, by SimpleITK and, for NIfTI, nibabel."""
    image = sitk.ReadImage(str(path))
    index = np.argwhere(sitk.GetArrayFromImage(image) == value)[0][::-1]
    found = [np.array(image.TransformIndexToPhysicalPoint(index.tolist())) * (-1, -1, 1)]
    if path.name.endswith((".nii", ".nii.gz")):
        read = nibabel.load(path)
        found.append(nibabel.affines.apply_affine(read.affine, np.argwhere(np.asarray(read.dataobj) == value)[0]))
    return found


def labels_of(scan: Scan) -> np.ndarray:
    """3 at the voxel 2, 5, 1 and 4 at 7, 0, 6 (x, y, z), found on the pictures by their values."""
    wanted = values()
    return scan.as_stored(
        np.uint8(3) * (scan.pictures == wanted[2, 5, 1]) + np.uint8(4) * (scan.pictures == wanted[7, 0, 6])
    )


@pytest.mark.parametrize("source", [".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".nhdr"])
@pytest.mark.parametrize("target", [".nii.gz", ".mha", ".nrrd"])
@pytest.mark.parametrize("axis", [None, "sagittal", 1])
def test_an_oblique_affine_comes_back(source, target, axis, tmp_path):
    scan = read_scan(save_source(tmp_path / f"in{source}"), ScanConfig(**{**vars(CONFIG), "axis": axis}))
    write_volume(tmp_path / f"out{target}", labels_of(scan), scan)
    for value, index in ((3, (2, 5, 1)), (4, (7, 0, 6))):
        for found in places(tmp_path / f"out{target}", value):
            np.testing.assert_allclose(found, (oblique() @ (*index, 1))[:3], atol=1e-5)
    written, read = sitk.ReadImage(str(tmp_path / f"out{target}")), sitk.ReadImage(str(tmp_path / f"in{source}"))
    for name in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(written, name)(), getattr(read, name)(), atol=1e-5)


@pytest.mark.parametrize("source", [".nii", ".mha", ".nrrd"])
def test_pictures_stand_upright_and_spacing_follows_them(source, tmp_path):
    scan = read_scan(save_source(tmp_path / f"in{source}"), CONFIG)
    assert scan.axis == "axial" and scan.pictures.shape == (7, 8, 9)  # across the longest edge, z
    np.testing.assert_allclose(scan.spacing_mm, (2.5, 0.9, 0.7))
    # x runs to the left and is the columns as it is; y runs to the front, so that the last row comes first
    assert (scan.pictures == values().transpose(2, 1, 0)[:, ::-1]).all()
    scan = read_scan(tmp_path / f"in{source}", ScanConfig(**{**vars(CONFIG), "axis": "sagittal"}))
    assert scan.pictures.shape == (9, 7, 8)
    np.testing.assert_allclose(scan.spacing_mm, (0.7, 2.5, 0.9))


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal", 0, 1, 2])
def test_as_stored_undoes_every_cut(axis, tmp_path):
    scan = read_scan(save_source(tmp_path / "in.nii"), ScanConfig(**{**vars(CONFIG), "axis": axis}))
    assert (scan.as_stored(scan.pictures) == values()).all()
    edges = dict(zip(SHAPE, SPACING, strict=True))  # which edge belongs to which count of voxels
    np.testing.assert_allclose(scan.spacing_mm, [edges[count] for count in scan.pictures.shape], rtol=1e-6)


def test_the_header_of_a_nifti_is_kept_without_its_texts(tmp_path):
    image = nibabel.Nifti1Image(values().astype(np.float32) / 1000, oblique())
    image.set_qform(oblique(), code="aligned")
    image.set_sform(oblique(), code="talairach")
    image.header.set_xyzt_units("micron", "sec")
    image.header["descrip"], image.header["cal_max"], image.header["aux_file"] = b"Doe^Jane", 7, b"Doe.txt"
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"Doe^Jane"))
    nibabel.save(image, tmp_path / "in.nii")
    scan = read_scan(tmp_path / "in.nii", CONFIG)
    np.testing.assert_allclose(scan.spacing_mm, (0.0025, 0.0009, 0.0007))  # micrometres are not taken for millimetres
    write_volume(tmp_path / "out.nii", scan.as_stored(scan.pictures > 0), scan)
    written = nibabel.load(tmp_path / "out.nii")
    for got, expected in zip(
        (written.get_qform(coded=True), written.get_sform(coded=True)),
        (image.get_qform(coded=True), image.get_sform(coded=True)),
        strict=True,
    ):
        np.testing.assert_allclose(got[0], expected[0], atol=1e-6)
        assert got[1] == expected[1]
    assert written.header.get_xyzt_units() == ("micron", "sec") and written.get_data_dtype() == np.uint8
    assert b"Doe" not in (tmp_path / "out.nii").read_bytes()
    assert (np.asarray(written.dataobj) == (values() > 0)).all()


def test_a_nifti_that_does_not_say_how_the_patient_lies_is_noted(tmp_path):
    image = nibabel.Nifti1Image(values(), None)
    image.header["pixdim"][1:4] = SPACING
    nibabel.save(image, tmp_path / "in.nii")
    scan = read_scan(tmp_path / "in.nii", CONFIG)
    assert scan.notes == (
        "the header does not say how the patient lies (qform and sform 0): taken as x to the left, y to the front",
    )
    np.testing.assert_allclose(np.diag(scan.volume.affine), (-0.7, 0.9, 2.5, 1), atol=1e-6)
    assert read_scan(save_source(tmp_path / "said.nii"), CONFIG).notes == ()


@pytest.mark.parametrize(
    "name, header, words",
    [
        ("a.nrrd", "NRRD0004\n{}\n\n", ["(no space)", "(no spacings or space directions)"]),
        ("a.nrrd", "NRRD0004\n{}\nspacings: 1 2 3\n\n", ["(no space)"]),
        (
            "a.nrrd",
            'NRRD0004\n{}\nspace: LPS\nspace directions: (1,0,0) (0,2,0) (0,0,3)\nspace units: "um" "um" "um"\n\n',
            ['space units "um" "um" "um": taken as mm'],
        ),
        (
            "a.mha",
            "NDims = 3\nDimSize = 2 3 4\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n",
            ["(no TransformMatrix)", "(no ElementSpacing or ElementSize)"],
        ),
        ("a.mha", "NDims = 3\nElementSpacing = 1 2 3\nTransformMatrix = 1 0 0 0 1 0 0 0 1\n"
         "DimSize = 2 3 4\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n", []),
    ],
)  # fmt: skip
def test_what_a_header_leaves_to_its_reader_is_noted(name, header, words, tmp_path):
    nrrd = "type: uchar\ndimension: 3\nsizes: 2 3 4\nencoding: raw"
    (tmp_path / name).write_bytes(header.replace("{}", nrrd).encode() + bytes(24))
    notes = read_scan(tmp_path / name, CONFIG).notes
    assert len(notes) == len(words) and all(word in note for word, note in zip(words, notes, strict=True)), notes


def test_nifti_2_has_fewer_texts(tmp_path):
    image = nibabel.Nifti2Image(values(), oblique())
    image.header["descrip"] = b"Doe^Jane"
    nibabel.save(image, tmp_path / "in.nii.gz")
    scan = read_scan(tmp_path / "in.nii.gz", CONFIG)
    write_volume(tmp_path / "out.nii", scan.as_stored(scan.pictures > 0), scan)
    written = nibabel.load(tmp_path / "out.nii")
    assert isinstance(written, nibabel.Nifti2Image) and written.header["descrip"] == b""
    np.testing.assert_array_equal(written.affine, image.affine)
    assert (np.asarray(written.dataobj) == (values() > 0)).all()


def test_values_are_shown_as_in_training(tmp_path):
    save_source(tmp_path / "in.nii")
    scan = read_scan(tmp_path / "in.nii", ScanConfig(**{**vars(CONFIG), "percentiles": [10, 90]}))
    low, high = np.percentile(values(), (10, 90))
    expected = np.clip(np.rint((scan.pictures[3] - np.float32(low)) * 255 / np.float32(high - low)), 0, 255)
    assert (scan[3] == expected.astype(np.uint8)[..., None]).all() and scan[3].shape == (8, 9, 3)
    assert scan.window_from == "percentiles 10 and 90 of all voxels, no window in the header"
    scan = read_scan(tmp_path / "in.nii", ScanConfig(**{**vars(CONFIG), "window": [-100, 155]}))
    assert (scan[0][..., 0] == np.clip(scan.pictures[0] + 100, 0, 255)).all()


def test_a_stack_without_geometry(tmp_path):
    tifffile.imwrite(tmp_path / "in.tif", values().astype(np.uint8), photometric="minisblack")
    scan = read_scan(tmp_path / "in.tif", CONFIG)
    assert (scan.axis, scan.spacing_mm, len(scan), scan.window) == (0, None, 9, None)
    mask = scan.pictures > 100
    write_volume(tmp_path / "out.tif", scan.as_stored(mask), scan)
    assert (tifffile.imread(tmp_path / "out.tif") == mask).all()
    with pytest.raises(ValueError, match=r"out.nii.gz: .*in.tif does not say where its voxels lie"):
        write_volume(tmp_path / "out.nii.gz", mask, scan)
    with pytest.raises(ValueError, match="axis=axial: the file does not say how the patient lies: 0, 1 or 2"):
        read_scan(tmp_path / "in.tif", ScanConfig(**{**vars(CONFIG), "axis": "axial"}))


@pytest.mark.parametrize(
    "name, ending",
    [("a.nii", ".nii"), ("a.nii.gz", ".nii.gz"), ("a.mhd", ".mha"), ("a.nhdr", ".nrrd")],
)
def test_results_are_of_the_format_of_the_source(name, ending, tmp_path):
    scan = read_scan(save_source(tmp_path / name), CONFIG)
    assert usual_ending(scan) == ending


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"axis": "oblique"}, "axis='oblique': must be one of"),
        ({"axis": 3}, "axis=3: must be one of"),
        ({"window": [5]}, r"window=\[5\]: must be two numbers, the lower one first"),
        ({"window": [5, 5]}, "the lower one first"),
        ({"percentiles": [99, 1]}, r"percentiles=\[99, 1\]: must be two numbers"),
    ],
)
def test_options_are_checked(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_scan(save_source(tmp_path / "in.nii"), ScanConfig(**{**vars(CONFIG), **changes}))


def _four_axes(path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 4, 5, 6), np.int16), np.eye(4)), path)


def _colour(path):
    voxels = np.zeros((3, 4, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)


def _flat(path):
    image = nibabel.Nifti1Image(np.zeros((3, 4, 5), np.int16), None)
    image.header.set_sform(np.diag([1, 0, 1, 1]), code="aligned")
    nibabel.save(image, path)


def _sheared(path):
    """Inverted without an error, but the file's axes lie along none of the patient's."""
    image = nibabel.Nifti1Image(np.zeros((3, 4, 5), np.int16), None)
    image.header.set_sform(np.array([[1, 0, 0, 0], [0, 2, 0, 0], [0, -3.7e19, 3, 0], [0, 0, 0, 1]]), code="aligned")
    nibabel.save(image, path)


def _channels(path):
    tifffile.imwrite(path, np.zeros((3, 8, 9), np.uint16), photometric="minisblack", metadata={"axes": "CYX"})


def _cut_short(path):
    save_source(path)
    path.write_bytes(path.read_bytes()[:-200])


def _cut_pages(path):
    """Of a stack whose pages were added one by one tifffile gives what is left, and only logs an error."""
    tifffile.imwrite(path, values().astype(np.uint16), metadata=None)
    path.write_bytes(path.read_bytes()[:-166])  # within the header of the last page


@pytest.mark.parametrize(
    "name, make, message",
    [
        ("a.nii.gz", _four_axes, r"a.nii.gz: has 4 axes \(3, 4, 5, 6\), expected 3"),
        ("a.nii", _colour, "its voxels are .*, expected one real number each"),
        ("a.nii", _flat, "its affine cannot be inverted"),
        ("a.nii", _sheared, "its affine cannot be inverted"),
        ("a.ome.tif", _channels, r"its pages are channels \(axes CYX\), no slices"),
        ("a.nii", _cut_short, "a.nii: cannot be read"),
        ("a.nii.gz", _cut_short, "a.nii.gz: cannot be read"),
        ("a.mha", _cut_short, "a.mha: cannot be read"),
        ("a.nrrd", _cut_short, "a.nrrd: cannot be read"),
        ("a.tif", _cut_pages, "a.tif: cannot be read .*it is not complete"),
        ("a.nii", lambda path: path.write_text("hello"), "a.nii: cannot be read"),
        ("a.mha", lambda path: path.write_text("hello"), "a.mha: cannot be read"),
        ("a.jpg", lambda path: path.write_text("hello"), r"a.jpg: holds no DICOM image \(1 left out, not DICOM: a.jpg"),
        ("a.nii", lambda path: None, "a.nii: cannot be read .*No such file"),
        ("folder", Path.mkdir, r"folder: holds no DICOM image \(no files\)"),
    ],
)
def test_what_is_no_volume_is_refused(name, make, message, tmp_path, monkeypatch):
    monkeypatch.setattr(logging.getLogger("tifffile"), "disabled", True)  # as Hydra leaves it in every script
    make(tmp_path / name)
    with pytest.raises(ValueError, match=message):
        read_scan(tmp_path / name, CONFIG)


def test_what_cannot_be_written_is_refused(tmp_path):
    scan = read_scan(save_source(tmp_path / "in.nii"), CONFIG)
    with pytest.raises(ValueError, match=r"out.jpg: there are writers for .nii, .nii.gz, .mha, .nrrd, .tif, .tiff"):
        write_volume(tmp_path / "out.jpg", values(), scan)
    (tmp_path / "taken").write_text("a file")
    for ending in (".nii", ".mha"):
        with pytest.raises(ValueError, match=f"out{ending}: cannot be written"):
            write_volume(tmp_path / f"taken/out{ending}", values(), scan)
        (tmp_path / f"out{ending}").mkdir()
        with pytest.raises(ValueError, match=f"out{ending}: cannot be written"):
            write_volume(tmp_path / f"out{ending}", values(), scan)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in.nii", "out.mha", "out.nii", "taken"]
