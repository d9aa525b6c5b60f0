"""Data sets of image and mask files, through their shipped YAML: endoscopy, fetal surgery and pathology.

Real files where they are beside the checkout, otherwise miniatures in the documented layout with the documented traps.
"""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from medsam3.layouts.readers import open_reader
from medsam3.registry.spec import SPEC_FOLDER, load_spec
from tests.native_sets import SIZE, box, colours, components, picture, prepared, same, shipped, unions, write

LEFT, RIGHT = box(10, 10), box(50, 80)


# Endoscopy


def test_cholecseg8k_values_are_decimal_and_frames_of_different_videos_have_the_same_name(tmp_path):
    codes = np.full(SIZE, 50, np.uint8)
    codes[LEFT], codes[RIGHT] = 21, 31
    codes[0], codes[-1, :5] = 255, 0
    for number, clip in enumerate(["video01/video01_00080", "video01/video01_00160", "video52/video52_00080"]):
        for frame in (80, 9):
            stem = tmp_path / f"CholecSeg8k/{clip}/frame_{frame}_endo"
            write(stem.with_name(f"{stem.name}.png"), picture(number + frame))
            mode = "RGBA" if frame == 9 else "RGB"
            write(stem.with_name(f"{stem.name}_watershed_mask.png"), np.repeat(codes[:, :, None], 3, 2), mode)
            write(stem.with_name(f"{stem.name}_color_mask.png"), colours([((127, 127, 127), LEFT)]))
            write(stem.with_name(f"{stem.name}_mask.png"), LEFT, "RGBA")
    reader = shipped("cholecseg8k", tmp_path, tmp_path)
    items = {item.id: item.group for item in reader.items()}
    assert len(items) == 6 and reader.problems() == []
    assert items["video01/video01_00080/80"] == "video01" and items["video52/video52_00080/9"] == "video52"
    for item in items:
        found = unions(reader, item)
        assert len(found) == 13
        shown = {"black background": codes == 50, "liver": LEFT, "grasper": RIGHT}
        assert same(found, dict.fromkeys(found) | shown)


def test_cholecseg8k_refuses_codes_that_were_taken_for_hexadecimal(tmp_path):
    stem = "CholecSeg8k/video01/video01_00080/frame_80_endo"
    write(tmp_path / f"{stem}.png", picture())
    write(tmp_path / f"{stem}_watershed_mask.png", np.full((*SIZE, 3), 0x50, np.uint8))
    reader = shipped("cholecseg8k", tmp_path, tmp_path)
    with pytest.raises(ValueError, match=r"unknown label value 80 \(known: 0, 11, 12"):
        reader.masks(reader.items()[0])


def test_m2caiseg_counts_repeated_images_once_and_gives_blended_colours_to_the_nearest(tmp_path):
    mask = colours([((85, 170, 0), LEFT), ((0, 85, 170), RIGHT), ((170, 0, 85), box(0, 60, 20, 20))])
    blended = mask.copy()
    blended[45:48, 70:115] = (12, 40, 70)  # a mix at the border of the grasper: nearest to black
    blended[LEFT] = (80, 160, 10)
    root = tmp_path / "m2caiSeg dataset"
    for part, names in {"train": ["1", "2"], "test": ["3"], "trainval": ["1", "3"]}.items():
        for name in names:
            write(root / f"{part}/images/{name}.jpg", picture(int(name)))
            write(root / f"{part}/groundtruth/{name}_gt.png", blended)
    write(root / "train/images/4.jpg", picture(4))
    write(root / "train/groundtruth/4_gt.png", mask[:-1])
    found, left_out = prepared("m2caiseg", tmp_path, tmp_path)
    assert set(found) == {"train/1", "train/2", "test/3"}
    assert left_out["trainval/1"] == "the same image as train/1 (copies: first)"
    assert left_out["trainval/3"] == "the same image as test/3 (copies: first)"
    assert "95 x 128 px, its image 96 x 128" in left_out["train/4"] and len(left_out) == 3
    reader = shipped("m2caiseg", tmp_path, tmp_path)
    masks = unions(reader, "train/1")
    shown = {"liver": LEFT, "grasper": RIGHT, "tissue": LEFT | RIGHT}
    assert len(masks) == 18 and same(masks, dict.fromkeys(masks) | shown)


def write_polypgen(root) -> None:
    for seq, frames in {"seq1": "12", "seq2": "1"}.items():
        folder = root / "sequenceData/positive" / seq
        for frame in frames:
            name = f"{seq}_endocv2021_positive_{frame}"
            for image in (folder / f"images_{seq}/{name}.jpg", root / f"imagesAll_positive/{name}.jpg"):
                write(image, picture(int(frame)))
            mask = LEFT if frame == "1" else np.zeros_like(LEFT)
            write(folder / f"masks_{seq}/{name}_mask.jpg", mask, "RGB" if seq == "seq1" else "L", quality=90)
        write(folder / f"images_{seq}/.DS_Store.jpg", picture())
    write(root / "__MACOSX/sequenceData/positive/seq1/images_seq1/x.jpg", picture())
    write(root / "sequenceData/negativeOnly/seq1_neg/n.jpg", picture())
    for name, mask in {"C3_EndoCV2021_00489_": "C3_EndoCV2021_00489_mask", "31 2": "31 2_mask"}.items():
        write(root / f"data_C3/images_C3/{name}.jpg", picture(5))
        write(root / f"data_C3/masks_C3/{mask}.jpg", RIGHT, quality=90)


def test_polypgen_reads_the_sequences_only_and_each_frame_once(tmp_path):
    write_polypgen(tmp_path / "PolypGen2021_MultiCenterData_v3")
    reader = shipped("polypgen", tmp_path, tmp_path)
    assert {item.id: item.group for item in reader.items()} == {
        "seq1/seq1_endocv2021_positive_1": "seq1",
        "seq1/seq1_endocv2021_positive_2": "seq1",
        "seq2/seq2_endocv2021_positive_1": "seq2",
    }
    assert reader.problems() == []
    assert same(unions(reader, "seq1/seq1_endocv2021_positive_1"), {"polyp": LEFT})
    found, left_out = prepared("polypgen", tmp_path, tmp_path)
    assert len(found) == 2 and list(left_out) == ["seq1/seq1_endocv2021_positive_2"]


def test_polypgen_single_frames_as_its_yaml_tells_to_add_them(tmp_path):
    root = tmp_path / "PolypGen2021_MultiCenterData_v3"
    write_polypgen(root)
    spec = load_spec(SPEC_FOLDER / "polypgen.yaml")
    masks = ("data_{center}/masks_{center}/{id}_mask.jpg", "data_{center}/masks_{center}/{id}mask.jpg")
    text = (SPEC_FOLDER / "polypgen.yaml").read_text()
    assert all(f'"{mask}"' in text for mask in masks)
    spec = replace(spec, images=("data_{center}/images_{center}/{id}.jpg",), masks=masks, group=None)
    reader = open_reader(spec, tmp_path, tmp_path)
    assert [item.id for item in reader.items()] == ["C3/31 2", "C3/C3_EndoCV2021_00489_"]
    assert reader.problems() == []
    assert same(unions(reader, "C3/C3_EndoCV2021_00489_"), {"polyp": RIGHT})


def test_bkai_keeps_the_red_polyps(shared_realdata, tmp_path):
    root = shared_realdata / "bkai_neopolyp/bkai-igh-neopolyp/train_gt/train_gt"
    if not root.is_dir():
        pytest.skip(f"{root} is not there")
    reader = shipped("bkai_neopolyp", shared_realdata, tmp_path)
    items = reader.items()
    assert len(items) == 15 and reader.problems() == []
    with_both = lost = 0
    for item in items:
        file = Image.open(root / f"{item.id}.jpeg")
        # of black, red and green the nearest to (r, g, b): the larger of r and g, if it is above 127.5
        red, green, _ = np.moveaxis(np.asarray(file).astype(int), 2, 0)
        sure = np.abs(red - green) > 0
        found = unions(reader, item.id)
        for concept, expected in {
            "neoplastic polyp": (red > 127) & (red > green),
            "non-neoplastic polyp": (green > 127) & (green > red),
        }.items():
            kept, _ = ndimage.label(expected, np.ones((3, 3)))
            large = np.flatnonzero(np.bincount(kept.ravel()) >= 500)
            assert np.array_equal(found[concept][sure], np.isin(kept, large[large > 0])[sure]), (item.id, concept)
        with_both += found["neoplastic polyp"].any() and found["non-neoplastic polyp"].any()
        grey = np.asarray(file.convert("L")) > 127
        lost += found["neoplastic polyp"].any() and not (grey & found["neoplastic polyp"]).sum() > 500
    assert with_both == 6 and lost == 9  # a grey threshold would lose the red polyps of all nine images that have one


def test_bkai_classes_that_touch_are_one_polyp_and_jpeg_specks_are_none(tmp_path):
    mask = colours([((255, 0, 0), LEFT), ((0, 255, 0), box(10, 40)), ((255, 0, 0), box(90, 2, 3, 4))])
    for folder, pixels in {"train/train": picture(), "train_gt/train_gt": mask, "test/test": picture(1)}.items():
        write(tmp_path / f"bkai-igh-neopolyp/{folder}/00d8.jpeg", pixels, quality=75)
    reader = shipped("bkai_neopolyp", tmp_path, tmp_path)
    masks = reader.masks(reader.item("00d8"))
    assert {concept: len(found) for concept, found in masks.items()} == {
        "neoplastic polyp": 1,
        "non-neoplastic polyp": 1,
        "polyp": 1,
    }
    assert abs(int(masks["polyp"].areas_px[0]) - 1800) < 60


def test_cvc_clinicdb_in_both_layouts(tmp_path):
    official, kaggle = tmp_path / "a/CVC-ClinicDB", tmp_path / "b/CVC-ClinicDB/PNG"
    soft = np.where(LEFT, 255, np.where(ndimage.binary_dilation(LEFT), 90, 0))
    for number in (1, 25, 26, 612):
        write(official / f"Original/{number}.tif", picture(number))
        write(official / f"Ground Truth/{number}.tif", soft)
        write(kaggle / f"Original/{number}.png", picture(number))
        write(kaggle / f"Ground Truth/{number}.png", soft, "RGB")
        write(kaggle.parent / f"__MACOSX/PNG/Original/._{number}.png", picture())
        write(kaggle / f"Original/._{number}.png", picture())
    for root in (tmp_path / "a", tmp_path / "b"):
        reader = shipped("cvc_clinicdb", root, tmp_path)
        groups = {item.id: item.group for item in reader.items()}
        assert groups == {"1": "1-25", "25": "1-25", "26": "26-50", "612": "592-612"}
        assert reader.problems() == []
        assert same(unions(reader, "612"), {"polyp": LEFT})


def test_cvc_clinicdb_ranges_hold_each_of_the_612_frames_once():
    ranges = load_spec(SPEC_FOLDER / "cvc_clinicdb.yaml").group.ranges
    assert len(ranges) == 29
    assert [n for first, last in ranges for n in range(first, last + 1)] == list(range(1, 613))


@pytest.mark.parametrize(
    "image, mask",
    [
        ("ETIS-LaribPolypDB/ETIS-LaribPolypDB/1.tif", "ETIS-LaribPolypDB/Ground Truth/p1.tif"),
        ("ETIS-LaribPolypDB/1.tif", "ETIS-LaribPolypDB/GroundTruth/p1.tif"),
        ("ETIS-Larib/images/1.png", "ETIS-Larib/masks/1.png"),
    ],
)
def test_etis_larib_in_its_layouts(image, mask, tmp_path):
    write(tmp_path / image, picture())
    write(tmp_path / mask, LEFT | RIGHT)
    reader = shipped("etis_larib", tmp_path, tmp_path)
    assert [item.id for item in reader.items()] == ["1"] and reader.problems() == []
    assert same(unions(reader, "1"), {"polyp": LEFT | RIGHT})
    assert len(reader.masks(reader.item("1"))["polyp"]) == 1


def test_fetoplac_reads_no_mask_that_a_network_made(shared_realdata, tmp_path):
    source = shared_realdata / "fetoplac/rebuilt_from_fetreg"
    if not source.is_dir():
        pytest.skip(f"{source} is not there")
    shutil.copytree(source, tmp_path / "data")
    clip = tmp_path / "data/Fetoscopy Placenta Dataset/Vessel_registration_unannotated_clips/video07"
    for folder in ("images/anon007_00001.png", "masks_predicted/anon007_00001_mask.png"):
        write(clip / folder, picture())
    reader = shipped("fetoplac", tmp_path / "data", tmp_path)
    assert {item.id: item.group for item in reader.items()} == {
        "video01/anon001_02785": "video01",
        "video01/anon001_02807": "video01",
    }
    assert reader.problems() == []
    for item in reader.items():
        (path,) = source.glob(f"*/*/video01/masks_gt/{item.id.removeprefix('video01/')}_mask.png")
        vessels = np.asarray(Image.open(path))[:, :, 0] > 0
        (tree,) = reader.masks(item)["placental vessel"].stack()
        assert np.array_equal(tree, vessels)


# Pathology


def write_glas(root) -> np.ndarray:
    glands = np.zeros(SIZE, np.uint8)
    glands[LEFT], glands[RIGHT], glands[90:, :5] = 1, 2, 2  # the second gland has two pieces
    for name in ("train_1", "train_2", "testA_1", "testB_1"):
        write(root / f"{name}.bmp", picture())
        write(root / f"{name}_anno.bmp", glands)
    heading = "name,patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)"
    rows = ["testA_1, 5, benign, x", "testB_1, 12, malignant, x", "train_1, 5, benign, x", "train_2, 7, benign, x"]
    (root / "Grade.csv").write_bytes("\r".join([heading, *rows]).encode())
    return glands


@pytest.mark.parametrize("folder", ["Warwick_QU_Dataset", "Warwick QU Dataset (Released 2016_07_08)"])
def test_glas_numbers_glands_and_groups_by_the_patient_of_its_table(folder, tmp_path):
    glands = write_glas(tmp_path / folder)
    reader = shipped("glas", tmp_path, tmp_path)
    groups = {item.id: item.group for item in reader.items()}
    assert groups == {"testA_1": "5", "testB_1": "12", "train_1": "5", "train_2": "7"}
    assert reader.problems() == []
    found = reader.masks(reader.item("train_1"))["colon gland"]
    assert found.areas_px.tolist() == [900, 900 + 6 * 5]
    assert np.array_equal(found.stack(), [glands == 1, glands == 2])


def test_glas_refuses_an_image_that_its_table_lacks(tmp_path):
    root = tmp_path / "Warwick_QU_Dataset"
    write_glas(root)
    write(root / "train_3.bmp", picture())
    write(root / "train_3_anno.bmp", LEFT)
    with pytest.raises(ValueError, match=r"configs/dataset/glas\.yaml: .*Grade\.csv: no row of name 'train_3'"):
        shipped("glas", tmp_path, tmp_path).items()


def test_bcss_blanks_what_nobody_annotated_and_asks_for_no_code_without_a_concept(tmp_path):
    root = tmp_path / "0_Public-data-Amgad2019_0.25MPP"
    name = "TCGA-A1-A0SK-DX1_xmin45749_ymin25055_MPP-0.2500"
    codes = np.full(SIZE, 2, np.uint8)
    codes[LEFT], codes[RIGHT] = 1, 20
    codes[:5], codes[90:, :40], codes[90:, 40:80], codes[90:, 80:] = 0, 7, 15, 21
    codes[60, 20] = 3  # a speck
    write(root / f"masks/{name}.png", codes)
    write(root / f"rgbs_colorNormalized/{name}.png", picture())
    reader = shipped("bcss", tmp_path, tmp_path)
    assert {item.id: item.group for item in reader.items()} == {name: "TCGA-A1-A0SK"}
    image = reader.image(reader.item(name))
    assert (image[:5] == 255).all() and np.array_equal(image[5:], picture()[5:])
    found = unions(reader, name)
    shown = {"breast tumor": LEFT, "ductal carcinoma in situ": RIGHT, "stroma": codes == 2}
    assert len(found) == 18 and same(found, dict.fromkeys(found) | shown)
    write(root / f"masks/{name}.png", codes + (codes == 21))
    with pytest.raises(ValueError, match="unknown label value 22"):
        reader.masks(reader.item(name))


def test_bcss_on_a_real_mask(shared_realdata, tmp_path):
    source = shared_realdata / "bcss/masks"
    if not source.is_dir():
        pytest.skip(f"{source} is not there")
    path = min(source.glob("*.png"))
    values = np.asarray(Image.open(path))
    root = tmp_path / "bcss"  # the folder is found without the name that the archive gives it
    shutil.copytree(source, root / "masks", ignore=lambda _, names: [n for n in names if n != path.name])
    write(root / f"images/{path.name}", picture(0, values.shape), compress_level=0)
    reader = shipped("bcss", tmp_path, tmp_path)
    (item,) = reader.items()
    masks = reader.masks(item)
    for concept, code in {"breast tumor": 1, "stroma": 2, "necrosis": 4, "blood": 6}.items():
        assert sorted(masks[concept].areas_px.tolist()) == components(values == code, 500)
    assert len(masks["breast tumor"]) > 1 and len(masks["blood"]) == 0
