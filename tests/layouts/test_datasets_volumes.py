"""The data sets that come as volumes or stacks: miniatures in the native layout, and real UroCell labels."""

from __future__ import annotations

import csv
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from scipy import ndimage

from tests.native_sets import prepared, shipped, unions


def meta_image(path: Path, voxels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path), useCompression=True)


def hdf5(path: Path, key: str, voxels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset(key, data=voxels, compression="gzip")


def nifti(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4) if affine is None else affine), path)


def noise(shape: tuple[int, ...], low: int, high: int, kind: type = np.uint8) -> np.ndarray:
    return np.random.RandomState(3).randint(low, high, shape).astype(kind)


def write_acouslic(root: Path) -> dict[str, np.ndarray]:
    """Three sweeps of two women; optimal frames are 1, suboptimal ones 2, most frames are empty."""
    folder = root / "acouslic-ai-train-set"
    labels = {name: np.zeros((9, 24, 32), np.uint8) for name in ("aaa", "bbb", "ccc")}
    labels["aaa"][4, 2:8, 2:8], labels["aaa"][5, 2:9, 2:9] = 1, 2
    labels["bbb"][7, 5:9, 5:9] = 2
    labels["ccc"][1, 1:5, 1:9] = 1
    for name, voxels in labels.items():
        meta_image(folder / f"images/stacked_fetal_ultrasound/{name}.mha", noise((9, 24, 32), 0, 255))
        meta_image(folder / f"masks/stacked_fetal_abdomen/{name}.mha", voxels)
    table = folder / "circumferences/fetal_abdominal_circumferences_per_sweep.csv"
    table.parent.mkdir()
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["uuid", "subject_id", "sweep_1_ac_mm"], ["aaa", "000", "289.6"], ["bbb", "001", ""]])
        writer.writerow(["ccc", "000", "1.5"])
    return labels


def test_acouslic_takes_one_frame_and_both_grades_and_groups_by_the_subject_of_its_table(tmp_path):
    labels = write_acouslic(tmp_path)
    reader = shipped("acouslic_ai", tmp_path, tmp_path)
    groups = {item.id: item.group for item in reader.items()}
    assert groups == {"aaa/s005": "000", "bbb/s007": "001", "ccc/s001": "000"}
    for item_id, frame in {"aaa/s005": 5, "bbb/s007": 7, "ccc/s001": 1}.items():
        assert np.array_equal(unions(reader, item_id)["fetal abdomen"], labels[item_id[:3]][frame] > 0)
    assert np.array_equal(reader.image(reader.item("bbb/s007"))[:, :, 1], noise((9, 24, 32), 0, 255)[7])


def write_segthy(root: Path) -> tuple[np.ndarray, np.ndarray]:
    us = root / "segthy/US_volunteer_dataset/ground_truth_data"
    thyroid = np.zeros((20, 22, 6), np.uint8)
    thyroid[3:9, 4:12, 2] = 1
    nifti(us / "US/001_P1_1_left_US.nii", noise((20, 22, 6), 0, 255))
    nifti(us / "US_thyroid_label/001_P1_1_left.nii", thyroid)
    nifti(root / "segthy/US_volunteer_dataset/unlabelled/001_P2_1_left_US.nii", noise((20, 22, 6), 0, 255))
    mr = root / "segthy/MRI_volunteer_dataset"
    both = np.zeros((16, 16, 4), np.int16)
    both[1:3, 1:3, 3], both[5:7, 1:3, 3], both[1:3, 8:10, 3], both[5:7, 8:10, 3], both[9:13, 2:9, 3] = 2, 3, 4, 5, 1
    nifti(mr / "MRI/005_MRI.nii.gz", noise((16, 16, 4), 0, 1500, np.int16))
    nifti(mr / "MRI_thyroid+jugular+carotid_label/005_MRI_thyroid+jugular+carotid_label.nii.gz", both[..., None])
    nifti(mr / "MRI_thyroid_label/005_MRI_thyroid_label.nii.gz", (both == 1).astype(np.uint8)[..., None])
    nifti(mr / "MRI/006_MRI.nii.gz", noise((16, 16, 4), 0, 1500, np.int16))
    nifti(mr / "MRI_thyroid_label/006_MRI_thyroid_label.nii.gz", (both == 1).astype(np.uint8))
    return thyroid, both


def test_segthy_asks_for_vessels_in_mri_only(tmp_path):
    thyroid, both = write_segthy(tmp_path)
    reader = shipped("segthy", tmp_path, tmp_path)
    assert {item.id: item.group for item in reader.items()} == {"001_P1_1_left/s002": "001", "005/s003": "005"}
    ultrasound, mri = unions(reader, "001_P1_1_left/s002"), unions(reader, "005/s003")
    assert list(ultrasound) == ["thyroid gland"] and np.array_equal(ultrasound["thyroid gland"], thyroid[:, :, 2] == 1)
    expected = {"thyroid gland": [1], "carotid artery": [2, 4], "jugular vein": [3, 5]}
    assert set(mri) == set(expected)
    for concept, values in expected.items():
        assert np.array_equal(mri[concept], np.isin(both[:, :, 3], values))
    left_out = [problem.reason for problem in reader.problems() if problem.item == "006"]
    assert left_out == ["MRI_volunteer_dataset/MRI/006_MRI.nii.gz: image without mask"]
    assert all(problem.expected for problem in reader.problems())


PHANTOM = noise((7, 40, 50), 74, 231, np.uint16)
REGIONS = np.zeros((7, 40, 50), np.uint16)
REGIONS[2:6, 5:15, 5:15], REGIONS[2:6, 20:30, 30:45] = 255, 255


def test_mucic_colon_tissue_keeps_both_noise_levels_of_a_phantom_together(tmp_path):
    for noise_level in ("LowNoise", "HighNoise"):
        for number in ("0000", "0001"):
            folder = tmp_path / f"mucic_colon_tissue/ColonTissue_{noise_level}_3D_HDF5"
            hdf5(folder / f"image-final_{number}.h5", "Image", PHANTOM)
            hdf5(folder / f"image-labels_{number}.h5", "Image", REGIONS)
    reader = shipped("mucic_colon_tissue", tmp_path, tmp_path)
    assert {item.id: item.group for item in reader.items()} == {
        f"{level}/{number}/s003": number for level in ("HighNoise", "LowNoise") for number in ("0000", "0001")
    }
    item = reader.item("LowNoise/0001/s003")
    assert sorted(reader.masks(item)["cell nucleus"].areas_px) == [100, 150]  # a plain mask: components
    image = reader.image(item)
    assert (image.min(), image.max()) == (0, 255)  # 74 to 230 of 16 bit, stretched


def test_mucic_hl60_numbers_nuclei_that_touch(tmp_path):
    labels = np.zeros((7, 40, 50), np.uint16)
    labels[3, 5:15, 5:15], labels[3, 5:15, 15:20], labels[3, 30, 30] = 2, 20, 5
    for folder in ("HL60_LowNoise_C75_3D_HDF5", "HL60_HighNoise_C75_3D_HDF5", "HL60_LowNoise_C00_3D_HDF5"):
        hdf5(tmp_path / f"mucic_hl60_granulocytes/{folder}/image-final_0000.h5", "Image", PHANTOM)
        hdf5(tmp_path / f"mucic_hl60_granulocytes/{folder}/image-labels_0000.h5", "Image", labels)
    granulocytes = tmp_path / "mucic_hl60_granulocytes/Granulocytes_LowNoise_3D_HDF5/image-final_0000.h5"
    hdf5(granulocytes, "Image", PHANTOM)  # not among the paper's 240
    reader = shipped("mucic_hl60_granulocytes", tmp_path, tmp_path)
    assert {item.id: item.group for item in reader.items()} == {
        "LowNoise/75/0000/s003": "75/0000",
        "HighNoise/75/0000/s003": "75/0000",
        "LowNoise/00/0000/s003": "00/0000",
    }
    found = reader.masks(reader.item("LowNoise/75/0000/s003"))["cell nucleus"]
    assert sorted(found.areas_px) == [1, 50, 100]


def test_mucic_hl60_in_the_broad_copy_as_tiff(tmp_path):
    folder = tmp_path / "mucic_hl60_granulocytes/BBBC024_v1_c25_highSNR_images_TIFF"
    folder.mkdir(parents=True)
    private = [(65000, 2, 0, "a tag that readers do not know", True)]
    tifffile.imwrite(folder / "image-final_0003.tif", PHANTOM, extratags=private)
    tifffile.imwrite(folder / "image-labels_0003.tif", REGIONS, extratags=private)
    reader = shipped("mucic_hl60_granulocytes", tmp_path, tmp_path)
    assert {item.id: item.group for item in reader.items()} == {"25/highSNR/0003/s003": "25/0003"}


def test_mucic_hl60_on_a_real_slice(shared_realdata, tmp_path):
    source = shared_realdata / "mucic_hl60"
    if not source.is_dir():
        pytest.skip(f"{source} is not there")
    image, labels = (tifffile.imread(source / f"image-{kind}_0001-z63.tif") for kind in ("final", "labels"))
    folder = tmp_path / "mucic_hl60_granulocytes/HL60_LowNoise_C25_3D_HDF5"
    hdf5(folder / "image-final_0001.h5", "Image", np.stack([image] * 3))
    hdf5(folder / "image-labels_0001.h5", "Image", np.stack([labels] * 3))
    reader = shipped("mucic_hl60_granulocytes", tmp_path, tmp_path)
    (item,) = reader.items()
    found = reader.masks(item)["cell nucleus"]
    assert len(found) == 20 and np.array_equal(found.union(), labels > 0)
    _, touching = ndimage.label(labels > 0, np.ones((3, 3)))
    assert touching == 17  # what the paper counts


@pytest.mark.parametrize("blank", [" ", ""])
def test_nucmm_z_reads_both_animals_and_small_nuclei(blank, tmp_path):
    fish, mouse = f"Zebrafish{blank}(NucMM-Z)", f"Mouse{blank}(NucMM-M)"
    for animal, part, place in [
        (fish, "train", "0000_0576_0768"),
        (fish, "val", "0000_0640_0832"),
        (mouse, "val", "000_200_200"),
    ]:
        ids = np.zeros((8, 16, 16), np.uint32)
        ids[4, 2:5, 2:5], ids[4, 5:8, 2:5], ids[3, :, :] = 70000, 3, 9  # nuclei that touch; another slice
        hdf5(tmp_path / f"nucmm_z/{animal}/Image/{part}/img_{place}.h5", "main", noise((8, 16, 16), 0, 255))
        hdf5(tmp_path / f"nucmm_z/{animal}/Label/{part}/seg_{place}.h5", "main", ids)
    reader = shipped("nucmm_z", tmp_path, tmp_path)
    assert {item.id: item.group for item in reader.items()} == {
        "train/0000_0576_0768/s004": "0000",
        "val/0000_0640_0832/s004": "0000",
        "val/000_200_200/s004": "000",
    }
    found = reader.masks(reader.item("train/0000_0576_0768/s004"))["cell nucleus"]
    assert sorted(found.areas_px) == [9, 9]


def test_urocell_reads_raw_arrays_and_asks_for_nothing_that_nobody_marked(tmp_path):
    shape = (10, 12, 14)
    masks = {name: np.zeros(shape) for name in ("mito", "lyso", "fv")}
    masks["mito"][1:4, 6, 1:4], masks["lyso"][6:8, 6, 6:8], masks["fv"][6:9, 6, 10:13] = 1, 1, 1
    root = tmp_path / "UroCell"
    turned = np.diag([-1.0, -1.0, 5.8e7, 1.0])
    for number in ("0-0-0", "1-0-3", "2-2-3"):
        nifti(root / f"data/fib1-{number}.nii.gz", noise(shape, 0, 255))
        if number != "2-2-3":
            nifti(root / f"mito/binary/fib1-{number}.nii.gz", masks["mito"], turned)
            nifti(root / f"lyso/binary/fib1-{number}.nii.gz", masks["lyso"].astype(np.int16), turned)
    nifti(root / "fv/binary/fib1-0-0-0.nii.gz", masks["fv"].astype(np.int8), np.diag([-1.0, 1, 1, 1]))
    nifti(root / "golgi/precise/binary/fib1-2-2-3.nii.gz", masks["fv"].astype(np.uint8))
    (root / "mito/mesh").mkdir()
    (root / "mito/mesh/fib1-0-0-0.obj").write_text("version https://git-lfs.github.com/spec/v1\n")
    reader = shipped("urocell", tmp_path, tmp_path)
    assert [item.id for item in reader.items()] == ["fib1-0-0-0/s006", "fib1-1-0-3/s006"]
    assert [problem.item for problem in reader.problems() if "without mask" in problem.reason] == ["fib1-2-2-3"]
    whole = unions(reader, "fib1-0-0-0/s006")
    assert set(whole) == {"mitochondrion", "endolysosome", "fusiform vesicle", "cell organelle"}
    assert np.array_equal(whole["mitochondrion"], masks["mito"][:, 6] > 0)
    assert np.array_equal(whole["cell organelle"], sum(masks.values())[:, 6] > 0)
    assert set(unions(reader, "fib1-1-0-3/s006")) == {"mitochondrion", "endolysosome", "cell organelle"}


def test_urocell_on_real_labels(shared_realdata, tmp_path):
    source = shared_realdata / "urocell"
    if not source.is_dir():
        pytest.skip(f"{source} is not there")
    root = tmp_path / "urocell"
    root.mkdir()
    for name in ("mito", "lyso", "fv", "golgi"):
        (root / name).symlink_to(source / name)
    blocks = ("fib1-0-0-0", "fib1-1-0-3", "fib1-4-3-0")
    for block in blocks:
        nifti(root / f"data/{block}.nii.gz", np.zeros((256, 256, 256), np.uint8))
    found, _ = prepared("urocell", tmp_path, tmp_path)
    assert sorted(found) == [f"{block}/s128" for block in blocks]
    for block in blocks:
        files = {
            "mitochondrion": f"mito/binary/{block}.nii.gz",
            "endolysosome": f"lyso/binary/{block}.nii.gz",
            "fusiform vesicle": f"fv/binary/{block}.nii.gz",
            "golgi apparatus": f"golgi/precise/binary/{block}.nii.gz",
        }
        slices = {
            concept: np.asarray(nibabel.load(source / path).dataobj)[:, 128] > 0
            for concept, path in files.items()
            if (source / path).is_file()
        }
        slices["cell organelle"] = np.logical_or.reduce(list(slices.values()))
        expected = {concept: ndimage.label(mask, np.ones((3, 3)))[1] for concept, mask in slices.items()}
        assert found[f"{block}/s128"] == expected


def test_pannuke_numbers_nuclei_per_channel_and_drops_patches_without_any(tmp_path):
    masks = np.zeros((3, 16, 16, 6))
    masks[0, 1:4, 1:4, 0], masks[0, 6:8, 1:4, 0], masks[0, 10:12, 10:12, 4] = 7, 8, 7  # ids repeat between channels
    masks[2, 2:5, 2:5, 1] = 1
    masks[..., 5] = 1 - masks[..., :5].any(-1)
    images = np.random.RandomState(4).randint(0, 256, (3, 16, 16, 3)).astype(np.float64)
    for fold in (1, 2):
        for kind, array in (("images", images), ("masks", masks)):
            folder = tmp_path / f"pannuke/Fold {fold}/{kind}/fold{fold}"
            folder.mkdir(parents=True)
            np.save(folder / f"{kind}.npy", array)
        np.save(tmp_path / f"pannuke/Fold {fold}/images/fold{fold}/types.npy", np.array(["Breast"] * 3))
    found, left_out = prepared("pannuke", tmp_path, tmp_path)
    assert list(found) == ["fold1/0000", "fold1/0002"]  # fold 1 only, as the paper
    assert list(left_out) == ["fold1/0001"]
    assert found["fold1/0000"] == {
        "neoplastic cell nucleus": 2,
        "inflammatory cell nucleus": 0,
        "connective tissue cell nucleus": 0,
        "dead cell nucleus": 0,
        "epithelial cell nucleus": 1,
        "cell nucleus": 3,
    }
    reader = shipped("pannuke", tmp_path, tmp_path)
    assert np.array_equal(reader.image(reader.item("fold1/0002")), images[2])
