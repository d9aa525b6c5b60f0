"""Volume formats, the choice of slices, and stacks of images in one array."""

from __future__ import annotations

import gzip
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile

from medsam3.layouts.readers import open_reader
from medsam3.layouts.volume_cache import Recipe, cached_slices
from medsam3.layouts.volume_files import load_volume

VOXELS = np.random.RandomState(0).randint(0, 60000, (3, 4, 5)).astype(np.uint16)  # z, y, x


def ics(voxels: np.ndarray, version: str, compression: str, order: str) -> bytes:
    """The header of an ICS file, written out by hand."""
    z, y, x = voxels.shape
    lines = [
        f"ics_version\t{version}",
        "filename\tstack",
        "layout\tparameters\t4",
        "layout\torder\tbits\tx\ty\tz",
        f"layout\tsizes\t16\t{x}\t{y}\t{z}",
        "layout\tsignificant_bits\t16",
        "representation\tformat\tinteger",
        "representation\tsign\tunsigned",
        f"representation\tcompression\t{compression}",
        f"representation\tbyte_order\t{order}",
    ]
    return ("\t\n" + "\n".join(lines) + "\n").encode()


def write_ics_1(path: Path) -> None:
    path.write_bytes(ics(VOXELS, "1.0", "gzip", "1\t2"))
    path.with_suffix(".ids").write_bytes(gzip.compress(VOXELS.astype("<u2").tobytes()))


def write_ics_2(path: Path) -> None:
    path.write_bytes(ics(VOXELS, "2.0", "uncompressed", "2\t1") + b"end\n" + VOXELS.astype(">u2").tobytes())


def write_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["group/Image"] = VOXELS
        file["spacing"] = np.ones(3)


WRITERS = {
    "a.mha": lambda path: sitk.WriteImage(sitk.GetImageFromArray(VOXELS), str(path), useCompression=True),
    "a.mhd": lambda path: sitk.WriteImage(sitk.GetImageFromArray(VOXELS), str(path)),
    "a.tif": lambda path: tifffile.imwrite(path, VOXELS),
    "a.tiff": lambda path: tifffile.imwrite(path, VOXELS, compression="zlib", photometric="minisblack"),
    "a.ics": write_ics_1,
    "b.ics": write_ics_2,
    "a.h5": write_hdf5,
    "a.hdf5": write_hdf5,
    "a.npy": lambda path: np.save(path, VOXELS),
    "b.npy": lambda path: np.save(path, VOXELS[..., None]),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_stored_voxels_slowest_axis_first(name, tmp_path):
    WRITERS[name](tmp_path / name)
    volume = load_volume(tmp_path / name)
    assert (volume.affine is None) == (not name.endswith((".mha", ".mhd")))
    assert volume.voxels.dtype.kind == "u" and np.array_equal(volume.voxels, VOXELS)


def test_nifti_drops_an_empty_axis_at_the_end(tmp_path):
    nibabel.save(nibabel.Nifti1Image(VOXELS[..., None], np.eye(4)), tmp_path / "a.nii.gz")
    assert np.array_equal(load_volume(tmp_path / "a.nii.gz").voxels, VOXELS)


@pytest.mark.parametrize(
    "name, write, message",
    [
        ("a.h5", lambda p: h5py.File(p, "w").create_dataset("x", data=VOXELS[0]), "one data set of 3 axes.*found none"),
        ("a.mha", lambda p: p.write_bytes(b"ObjectType = Image\nNDims = 3\n"), "cannot be read"),
        ("a.tif", lambda p: p.write_bytes(b"II*\0"), "cannot be read"),
        ("a.tif", lambda p: tifffile.imwrite(p, VOXELS[0]), r"has 2 axes \(4, 5\), expected 3"),
        ("a.npy", lambda p: np.save(p, VOXELS.astype(np.float32) * np.nan), "NaN or infinite"),
        ("a.ics", lambda p: p.write_bytes(ics(VOXELS, "2.0", "uncompressed", "1\t2") + b"end\n\0"), "cannot be read"),
        ("a.dcm", lambda p: p.write_bytes(b""), r"no loader for this ending; there are loaders for \.nii"),
    ],
)
def test_a_file_that_is_not_right_is_named(name, write, message, tmp_path):
    write(tmp_path / name)
    with pytest.raises(ValueError, match=rf"{name}: .*{message}"):
        load_volume(tmp_path / name)


def test_two_data_sets_in_one_file_are_both_named(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"], file["label"] = VOXELS, VOXELS
    with pytest.raises(ValueError, match="found label, raw"):
        load_volume(tmp_path / "a.h5")


def test_slices_that_nobody_wants_take_no_room_on_the_disk(tmp_path):
    np.save(tmp_path / "a.npy", np.full((50, 256, 256), 7, np.uint8))
    found = cached_slices(tmp_path / "a.npy", tmp_path / "cache/a", Recipe(axis=0, labels=False, only="middle"))
    assert [int(s.max()) for s in found.slices] == [7 if index == 25 else 0 for index in range(50)]
    status = (tmp_path / "cache/a.npy").stat()
    assert status.st_size > 50 * 256 * 256 and 512 * status.st_blocks < 4 * 256 * 256


SHAPE = (7, 20, 30)


def write_volume(root: Path, labelled: dict[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """An image and a label volume; slice -> labelled px."""
    image = np.random.RandomState(1).randint(1, 255, SHAPE).astype(np.uint8)
    labels = np.zeros(SHAPE, np.uint8)
    for index, count in labelled.items():
        labels[index].flat[:count] = 1
    for folder, voxels in (("images", image), ("masks", labels)):
        (root / "small" / folder).mkdir(parents=True)
        np.save(root / "small" / folder / "v.npy", voxels)
    return image, labels


def volume_spec(make_spec, **options):
    return make_spec(
        reader="label_volume",
        images="images/{id}.npy",
        masks="masks/{id}.npy",
        concepts={1: "square", 2: "circle"},
        options={"axis": 0, **options},
    )


@pytest.mark.parametrize("rule, kept", [("middle", 3), ("largest", 5), ([4, 5], None), (None, None)])
def test_one_slice_of_each_volume(rule, kept, tmp_path, make_spec):
    image, labels = write_volume(tmp_path, {2: 10, 5: 12, 6: 12})
    reader = open_reader(volume_spec(make_spec, slices=rule), tmp_path, tmp_path / "cache")
    indices = [kept] if kept is not None else [4, 5] if rule else list(range(7))
    items = reader.items()
    assert [item.id for item in items] == [f"v/s{index:03d}" for index in indices]
    for item, index in zip(items, indices, strict=True):
        assert np.array_equal(reader.image(item)[:, :, 0], image[index])
        found = reader.masks(item)
        assert np.array_equal(found["square"].union(), labels[index] == 1) and len(found["circle"]) == 0
    if kept is not None:
        (problem,) = reader.problems()
        assert problem.reason == f"6 slices other than the one of options.slices: {rule}" and problem.expected


def test_the_largest_slice_of_nothing_is_a_problem(tmp_path, make_spec):
    write_volume(tmp_path, {})
    reader = open_reader(volume_spec(make_spec, slices="largest"), tmp_path, tmp_path / "cache")
    (problem,) = reader.listing().problems
    assert "nothing is labelled" in problem.reason and not problem.expected


def test_the_largest_slice_behind_the_end_of_its_image(tmp_path, make_spec):
    image, _ = write_volume(tmp_path, {5: 3})
    np.save(tmp_path / "small/images/v.npy", image[:4])
    reader = open_reader(volume_spec(make_spec, slices="largest"), tmp_path, tmp_path / "cache")
    assert "has 4 slices, but slice 5 is labelled" in reader.problems()[0].reason


def test_a_concept_nobody_looked_for_is_neither_present_nor_absent(tmp_path, make_spec):
    write_volume(tmp_path, {5: 3})
    spec = volume_spec(make_spec, slices="largest", not_annotated={"^v/": ["circle"]})
    reader = open_reader(spec, tmp_path, tmp_path / "cache")
    assert list(reader.masks(reader.items()[0])) == ["square"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"slices": "first"}, r"options\.slices='first': must be \[first, last\] or middle or largest"),
        ({"not_annotated": {"(": ["circle"]}}, r"options\.not_annotated: '\(' does not compile"),
        ({"not_annotated": {"v": ["disc"]}}, r"options\.not_annotated: 'disc' is no concept; there are square, circle"),
    ],
)
def test_options_of_volumes_are_checked(options, message, make_spec):
    with pytest.raises(ValueError, match=message):
        volume_spec(make_spec, **options)


def stack_spec(make_spec, **changes):
    content = {
        "reader": "array_stack",
        "images": "{id}/images.npy",
        "masks": "{id}/masks.npy",
        "concepts": {0: "square", 1: "circle", "*": "shape"},
        "instances": "labels",
        "options": {"ignore_channels": [2]},
    }
    return make_spec(**(content | changes))


def write_stack(root: Path, image_type=np.float64, shape=(3, 8, 9)) -> tuple[np.ndarray, np.ndarray]:
    images = np.random.RandomState(2).randint(0, 256, (*shape, 3)).astype(image_type)
    masks = np.zeros((*shape, 3))
    masks[0, :2, :2, 0], masks[0, 4:, 4:, 0], masks[0, :3, 6:, 1] = 3, 9, 3  # ids repeat between channels
    masks[..., 2] = 1 - masks[..., :2].any(-1)
    (root / "small/a").mkdir(parents=True)
    np.save(root / "small/a/images.npy", images)
    np.save(root / "small/a/masks.npy", masks)
    return images, masks


def test_a_stack_of_arrays_has_an_item_for_each_row(tmp_path, make_spec):
    images, _ = write_stack(tmp_path)
    reader = open_reader(stack_spec(make_spec), tmp_path, tmp_path / "cache")
    assert [item.id for item in reader.items()] == ["a/0000", "a/0001", "a/0002"] and reader.problems() == []
    assert np.array_equal(reader.image(reader.item("a/0001")), images[1])
    found = reader.masks(reader.item("a/0000"))
    assert {concept: sorted(instances.areas_px) for concept, instances in found.items()} == {
        "square": [4, 20],
        "circle": [9],
        "shape": [4, 9, 20],
    }
    assert [len(instances) for instances in reader.masks(reader.item("a/0002")).values()] == [0, 0, 0]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"options": {}}, r"channels 0 to 2; concepts and options\.ignore_channels differ in 2"),
        ({"concepts": {0: "square", 4: "circle"}}, "differ in 1, 4"),
    ],
)
def test_channels_that_nobody_named_are_a_problem(changes, message, tmp_path, make_spec):
    write_stack(tmp_path)
    reader = open_reader(stack_spec(make_spec, **changes), tmp_path, tmp_path / "cache")
    (problem,) = reader.problems()
    with pytest.raises(ValueError, match=message):
        raise ValueError(problem.reason)


def test_bad_arrays_are_named(tmp_path, make_spec):
    images, masks = write_stack(tmp_path)
    reader = open_reader(stack_spec(make_spec), tmp_path, tmp_path / "cache")
    item = reader.items()[0]
    np.save(tmp_path / "small/a/images.npy", images * 2)
    with pytest.raises(ValueError, match=r"images\.npy row 0: float64 values .* set options\.window"):
        reader.image(item)
    np.save(tmp_path / "small/a/masks.npy", masks + 0.5)
    with pytest.raises(ValueError, match=r"masks\.npy row 0: holds numbers that are not whole"):
        reader.masks(item)
    np.save(tmp_path / "small/a/masks.npy", masks[:2])
    assert r"expected 3, 8, 9 and the channels" in reader.problems()[0].reason
    (tmp_path / "small/a/masks.npy").write_bytes(b"\x93NUMPY")
    assert "cannot be read" in reader.problems()[0].reason


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"masks": ["{id}/a.npy", "{id}/b.npy"]}, "needs one pattern"),
        ({"concepts": {"red": "square"}}, "'red' must be the number of a channel"),
        ({"concepts": {2: "square"}}, "2 must be the number of a channel, and not in ignore_channels"),
    ],
)
def test_options_of_stacks_are_checked(changes, message, make_spec):
    with pytest.raises(ValueError, match=message):
        stack_spec(make_spec, **changes)


@pytest.mark.parametrize("there", [[], ["a"], ["a", "b"]])
def test_the_union_is_absent_where_its_parts_are(there, tmp_path, make_spec):
    for name in ["images", *there]:
        (tmp_path / "small" / name).mkdir(parents=True)
        np.save(tmp_path / f"small/{name}/v.npy", np.zeros((2, 8, 8), np.uint8))
    spec = make_spec(
        reader="label_volume",
        images="images/{id}.npy",
        masks={"a": "a/{id}.npy", "b": "b/{id}.npy"},
        concepts={"a": "square", "b": "circle", "*": "shape"},
        options={"axis": 0, "missing_mask": "absent"},
    )
    reader = open_reader(spec, tmp_path, tmp_path / "cache")
    found = reader.masks(reader.items()[0])
    assert {concept: len(instances) for concept, instances in found.items()} == {"square": 0, "circle": 0, "shape": 0}
