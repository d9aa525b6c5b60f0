"""Volumes: how they are cut and turned, the cache of slices, and the MNI152 template as a data set."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medsam3.layouts import volume_cache
from medsam3.layouts.readers import open_reader
from medsam3.layouts.volume_cache import Recipe, cached_slices, cut, picture_affine
from medsam3.layouts.volume_files import Volume, load_volume
from medsam3.registry.spec import load_specs
from tests.conftest import ROOT

RAS = np.eye(4)
LABELS = Recipe(axis=2, labels=True)


def nifti(path: Path, voxels: np.ndarray, affine: np.ndarray = RAS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return path


@pytest.mark.parametrize(
    "axis, first_axis, picture",
    [
        # rows run from the top, columns from the left; the marked voxel lies right, in front and on top (index 2, 3, 4)
        ("axial", 4, (0, 0)),  # front on top, the patient's right on the left
        ("coronal", 3, (0, 0)),  # head on top, the patient's right on the left
        ("sagittal", 2, (0, 0)),  # head on top, front on the left
    ],
)
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, -1, 1), (1, -1, -1)])
def test_pictures_stand_upright_whatever_the_order_of_the_file(axis, first_axis, picture, flips):
    voxels = np.zeros((3, 4, 5), np.uint8)
    voxels[2, 3, 4] = 1
    stored = voxels[:: flips[0], :: flips[1], :: flips[2]]
    pictures = cut(Volume(stored, np.diag([*flips, 1]).astype(float)), axis, "here")
    sizes = {"axial": (5, 4, 3), "coronal": (4, 5, 3), "sagittal": (3, 5, 4)}
    assert pictures.shape == sizes[axis]
    assert np.argwhere(pictures).tolist() == [[first_axis, *picture]]


def test_a_volume_with_swapped_axes_is_turned_by_its_header():
    voxels = np.random.RandomState(0).randint(0, 9, (3, 4, 5))
    swapped = np.zeros((4, 4))
    swapped[0, 2] = swapped[1, 0] = swapped[2, 1] = swapped[3, 3] = 1  # third stored axis runs to the right
    expected = cut(Volume(voxels, RAS), "axial", "here")
    assert np.array_equal(cut(Volume(voxels.transpose(1, 2, 0), swapped), "axial", "here"), expected)


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal", 0, 1, 2])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_where_a_pixel_of_a_picture_lies_in_the_patient(axis, order):
    turn = nibabel.eulerangles.euler2mat(0.2, -0.3, 0.1) @ np.diag([-0.7, 0.5, 3.0])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn[:, order], (10, -20, 30)
    volume = Volume(np.arange(60).reshape(3, 4, 5), affine)
    pictures, found = cut(volume, axis, "here"), picture_affine(volume, axis)
    for place in [(0, 0, 0), (1, 2, 0), (2, 1, 2)]:
        (stored,) = np.argwhere(volume.voxels == pictures[place])
        assert np.allclose(found @ [*place, 1], affine @ [*stored, 1])


def test_an_axis_by_number_is_cut_as_stored():
    voxels = np.random.RandomState(0).randint(0, 9, (3, 4, 5))
    assert np.array_equal(cut(Volume(voxels, np.diag([-1, -1, 1, 1])), 1, "here")[2], voxels[:, 2, :])
    with pytest.raises(ValueError, match=r"here: the format does not say .* set options\.axis to 0, 1 or 2"):
        cut(Volume(voxels, None), "axial", "here")


def test_cached_slices_are_mapped_and_not_made_twice(tmp_path, monkeypatch):
    voxels = np.random.RandomState(0).randint(0, 3, (4, 5, 6)).astype(np.int16)
    source = nifti(tmp_path / "a.nii.gz", voxels)
    found = cached_slices(source, tmp_path / "cache/a", LABELS)
    assert isinstance(found.slices, np.memmap) and found.slices.dtype == np.uint8
    assert np.array_equal(found.slices, np.moveaxis(voxels, 2, 0))
    assert found.nonzero_px == [int((voxels[:, :, z] > 0).sum()) for z in range(6)]
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["a.json", "a.npy"]
    monkeypatch.setattr(volume_cache, "load_volume", None)  # a second unpacking would fail
    os.utime(source, (1, 1))  # a copy with another date and the same bytes
    for _ in range(2):
        assert np.array_equal(cached_slices(source, tmp_path / "cache/a", LABELS).slices, found.slices)


@pytest.mark.parametrize("change", ["source", "recipe", "cut short", "no notes"])
def test_a_stale_or_damaged_cache_is_made_again(change, tmp_path):
    voxels = np.random.RandomState(0).rand(4, 5, 6).astype(np.float32)
    source = nifti(tmp_path / "a.nii.gz", voxels)
    recipe, cutoff = Recipe(axis=2, labels=True, threshold=0.5), 0.5
    cached_slices(source, tmp_path / "cache/a", recipe)
    if change == "source":
        voxels = 1 - voxels
        nifti(source, voxels)
    elif change == "recipe":
        recipe, cutoff = Recipe(axis=2, labels=True, threshold=0.2), 0.2
    elif change == "cut short":
        with (tmp_path / "cache/a.npy").open("r+b") as file:
            file.truncate(180)
    else:
        (tmp_path / "cache/a.json").unlink()
    assert np.array_equal(
        cached_slices(source, tmp_path / "cache/a", recipe).slices, np.moveaxis(voxels > cutoff, 2, 0)
    )


def test_images_are_windowed_to_8_bits(tmp_path):
    hounsfield = np.linspace(-1000, 1000, 60).reshape(3, 4, 5).astype(np.float32)
    source = nifti(tmp_path / "a.nii.gz", hounsfield)
    found = cached_slices(source, tmp_path / "cache/a", Recipe(axis=0, labels=False, window=(-160.0, 240.0))).slices
    assert np.array_equal(found, np.rint(np.clip((hounsfield + 160) / 400, 0, 1) * 255).astype(np.uint8))
    with pytest.raises(ValueError, match=r"a\.nii\.gz: float32 values -1000.* set options\.window"):
        cached_slices(source, tmp_path / "cache/b", Recipe(axis=0, labels=False))


def test_a_volume_that_is_not_right_is_named(tmp_path):
    holes = np.zeros((3, 4, 5), np.float32)
    holes[1, 1, 1] = np.nan
    with pytest.raises(ValueError, match=r"nan\.nii: holds NaN"):
        load_volume(nifti(tmp_path / "nan.nii", holes))
    with pytest.raises(ValueError, match=r"four\.nii: has 4 axes \(2, 3, 4, 5\)"):
        load_volume(nifti(tmp_path / "four.nii", np.zeros((2, 3, 4, 5), np.uint8)))
    whole = nifti(tmp_path / "whole.nii.gz", np.random.RandomState(0).randint(0, 9, (9, 9, 9)).astype(np.uint8))
    (tmp_path / "half.nii.gz").write_bytes(whole.read_bytes()[:300])
    (tmp_path / "other.nii.gz").write_bytes(gzip.compress(b"not a volume"))
    for name in ("half", "other"):
        with pytest.raises(ValueError, match=rf"{name}\.nii\.gz: cannot be read"):
            load_volume(tmp_path / f"{name}.nii.gz")
    (tmp_path / "a.dcm").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.dcm: no loader for this ending; there are loaders for .*\.nii"):
        load_volume(tmp_path / "a.dcm")
    fractions = nifti(tmp_path / "fractions.nii", np.full((3, 4, 5), 0.5, np.float32))
    with pytest.raises(ValueError, match=r"fractions\.nii: label voxels are not whole numbers: set options\.threshold"):
        cached_slices(fractions, tmp_path / "cache/f", LABELS)


def test_a_cache_that_cannot_be_written_names_the_key(tmp_path):
    source = nifti(tmp_path / "a.nii", np.zeros((3, 4, 5), np.uint8))
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(ValueError, match=r"the volume cache cannot be written .* set data\.cache"):
        cached_slices(source, tmp_path / "cache/a", LABELS)


@pytest.fixture
def two_volumes(tmp_path, make_spec):
    """Volumes a and b of 10 slices; organ 1 in slices 2 to 8, organ 2 in slice 5 only; a reader for changed options."""
    for name in "ab":
        labels = np.zeros((6, 7, 10), np.uint8)
        labels[1:4, 1:4, 2:9] = 1
        labels[4:6, 4:6, 5] = 2
        nifti(tmp_path / f"data/small/vol/{name}.nii.gz", np.arange(420).reshape(6, 7, 10).astype(np.uint8))
        nifti(tmp_path / f"data/small/seg/{name}.nii.gz", labels)

    def reader(**options):
        spec = make_spec(
            reader="label_volume",
            images="vol/{id}.nii.gz",
            masks="seg/{id}.nii.gz",
            instances="components",
            options={"axis": 2, **options},
        )
        return open_reader(spec, tmp_path / "data", tmp_path / "cache")

    return reader


def test_every_slice_is_an_item_of_its_volume(two_volumes):
    reader = two_volumes()
    items = reader.items()
    assert len(items) == 20 and items[0].id == "a/s000" and items[-1].id == "b/s009"
    assert {item.group for item in items} == {"a", "b"} and {item.part for item in items} == {None}
    image, masks = reader.image(reader.item("b/s005")), reader.masks(reader.item("b/s005"))
    assert np.array_equal(image[:, :, 1], np.arange(420).reshape(6, 7, 10).astype(np.uint8)[:, :, 5])
    assert masks["left square"].boxes_px.tolist() == [[1, 1, 4, 4]] and masks["right square"].areas_px.tolist() == [4]
    assert len(reader.masks(reader.item("b/s002"))["right square"]) == 0


def test_empty_slices_are_left_out_and_counted(two_volumes):
    reader = two_volumes(min_slice_area=1)
    assert [item.id for item in reader.items() if item.group == "a"] == [f"a/s{z:03d}" for z in range(2, 9)]
    assert [p.reason for p in reader.problems()] == ["3 slices with less than 1 labelled px"] * 2
    assert all(problem.expected for problem in reader.problems())


def test_a_validation_range_with_a_gap(two_volumes):
    reader = two_volumes(slices=[1, 8], val_slices=[4, 5], gap_slices=1)
    parts = {item.id[-1]: item.part for item in reader.items()}
    assert parts == {"1": "train", "2": "train", "4": "val", "5": "val", "7": "train", "8": "train"}
    assert sorted({p.reason for p in reader.problems()}) == [
        "2 slices in the gap between the training and the validation part",
        "2 slices outside options.slices [1, 8]",
    ]


def test_a_label_volume_of_another_shape_is_a_problem(two_volumes, tmp_path):
    nifti(tmp_path / "data/small/seg/b.nii.gz", np.ones((6, 7, 9), np.uint8))
    reader = two_volumes()
    assert {item.group for item in reader.items()} == {"a"}
    (problem,) = reader.problems()
    assert problem.item == "b" and not problem.expected
    assert "seg/b.nii.gz: the label volume is (9, 6, 7), its image (10, 6, 7)" in problem.reason


FLIPPED = np.diag([-1.0, -1.0, 1.0, 1.0])


@pytest.mark.parametrize("axis", ["axial", 2])
def test_labels_whose_header_says_another_place_than_the_images_are_refused(axis, two_volumes, tmp_path):
    for name in "ab":  # the labels as numpy users save them: the array of the image, and no header
        nifti(tmp_path / f"data/small/vol/{name}.nii.gz", np.arange(420).reshape(6, 7, 10).astype(np.uint8), FLIPPED)
    (first, second) = two_volumes(axis=axis).problems()
    assert first.item == "a" and second.item == "b" and not first.expected
    assert "seg/a.nii.gz: its header puts a voxel up to " in first.reason
    assert "options.label_header: ignore" in first.reason

    reader = two_volumes(axis=axis, label_header="ignore")
    item = reader.item(f"a/{'z' if axis == 'axial' else 's'}005")
    stored = np.arange(420).reshape(6, 7, 10)[:, :, 5]
    picture, mask = reader.image(item)[:, :, 0], reader.masks(item)["left square"].union()
    assert sorted(picture[mask]) == sorted(stored[1:4, 1:4].astype(np.uint8).ravel())  # the voxels that were marked


def test_labels_a_rounded_header_away_belong_to_the_image(two_volumes, tmp_path):
    near, far = np.diag([0.8, 0.8, 2.5, 1.0]), np.diag([0.8, 0.8, 2.5, 1.0])
    near[0, 3], far[0, 3] = 0.39, 0.41  # mm; half a voxel is 0.4
    for name, affine in (("a", near), ("b", far)):
        image, labels = (tmp_path / f"data/small/{folder}/{name}.nii.gz" for folder in ("vol", "seg"))
        nifti(image, np.asarray(nibabel.load(image).dataobj), np.diag([0.8, 0.8, 2.5, 1.0]))
        nifti(labels, np.asarray(nibabel.load(labels).dataobj), affine)
    reader = two_volumes(axis="axial")
    assert {item.group for item in reader.items()} == {"a"} and "up to 0.5 voxels" in reader.problems()[0].reason


def test_every_slice_keeps_its_spacing(two_volumes, tmp_path):
    for folder in ("vol", "seg"):
        path = tmp_path / f"data/small/{folder}/a.nii.gz"
        nifti(path, np.asarray(nibabel.load(path).dataobj), np.diag([0.5, -0.7, 3.0, 1.0]))
    for axis, letter, expected in (("axial", "z", (0.7, 0.5)), ("coronal", "y", (3.0, 0.5)), (2, "s", (0.5, 0.7))):
        for _ in range(2):  # made, then from the cache
            reader = two_volumes(axis=axis)
            assert reader.spacing_mm(reader.item(f"a/{letter}002")) == pytest.approx(expected)


def test_the_template_gives_three_concepts_per_slice(tmp_path):
    reader = open_reader(load_specs("mni152")["mni152"], tmp_path, tmp_path / "cache")
    items = reader.items()
    parts = [item.part for item in items]
    assert parts.count("train") == 96 and parts.count("val") == 18
    slices = {part: {int(item.id[-3:]) for item in items if item.part == part} for part in ("train", "val")}
    assert min(abs(a - b) for a in slices["train"] for b in slices["val"]) == 4
    item = reader.item("tal_nlin_sym_09a/z090")
    masks = reader.masks(item)
    stored = {
        name: np.asarray(nibabel.load(reader.root / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz").dataobj)
        for name in ("t1", "gm", "wm")
    }
    for concept, truth in (
        ("brain", stored["t1"] > 0),
        ("gray matter", stored["gm"] > 127),
        ("white matter", stored["wm"] > 127),
    ):
        assert np.array_equal(masks[concept].union(), truth[::-1, ::-1, 90].T)
    assert np.array_equal(reader.image(item)[:, :, 0], stored["t1"][::-1, ::-1, 90].T)


def test_reading_the_template_does_not_import_nilearn(tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from medsam3.layouts.readers import open_reader\nfrom medsam3.registry.spec import load_specs\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "reader = open_reader(load_specs('mni152')['mni152'], folder, folder)\n"
        "reader.masks(reader.items()[0])\n"
        "assert 'nilearn' not in sys.modules and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
