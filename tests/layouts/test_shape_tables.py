"""Readers with an annotation file for many images: shipped data sets in miniature, with their traps, and options."""

from __future__ import annotations

import numpy as np
import pytest

from medsam3.layouts.readers import open_reader
from tests.annotation_files import block, prepared, shipped, stacked, unexpected, write
from tests.conftest import BAR, GREY, SQUARE, save_picture

# ARCADE: COCO JSON


def coco(names, annotations) -> dict:
    """Two images and annotations (image, category, outline), every one with the same id."""
    lettered = {9: "9a", 10: "10a", 12: "12a", 14: "14a", 16: "16a"}
    numbers = [name for n in range(1, 17) for name in (str(n), lettered.get(n)) if name is not None]
    categories = [*numbers, "16b", "16c", "12b", "14b", "stenosis"]
    return {
        "images": [{"id": i, "file_name": name, "height": 40, "width": 60} for i, name in enumerate(names, start=1)],
        "categories": [{"id": i, "name": name, "supercategory": ""} for i, name in enumerate(categories, start=1)],
        "annotations": [
            {"id": 1, "image_id": image, "category_id": category, "segmentation": [np.ravel(o).tolist()], "iscrowd": 0}
            for image, category, o in annotations
        ],
    }


def edges(x: int, y: int, n: int) -> list[list[int]]:
    """Outline of n x n pixels as COCO counts, from pixel corners."""
    return [[x, y], [x + n, y], [x + n, y + n], [x, y + n]]


@pytest.fixture
def arcade(tmp_path):
    root = tmp_path / "data/arcade"
    for task, channels, light in (("stenosis", 3, 50), ("syntax", 1, 200)):
        for number in (1, 2):
            picture = np.full((40, 60, 3) if channels == 3 else (40, 60), light + number, np.uint8)
            save_picture(root / task / f"train/images/{number}.png", picture)
    lesions = [(1, 26, edges(2, 3, 6)), (1, 26, edges(20, 3, 5))]
    segments = [(1, 10, edges(2, 3, 6)), (1, 24, edges(30, 3, 6)), (2, 1, edges(0, 0, 10))]
    write(root / "stenosis/train/annotations/train.json", coco(["1.png", "2.png"], lesions))
    write(root / "syntax/train/annotations/train.json", coco(["1.png", "2.png"], segments))
    return tmp_path


def test_arcade_keeps_the_two_tasks_apart(arcade):
    reader = shipped("arcade", arcade)
    names = ["stenosis/train/1", "stenosis/train/2", "syntax/train/1", "syntax/train/2"]
    assert [item.id for item in reader.items()] == names and reader.problems() == []
    assert [int(reader.image(reader.item(name))[0, 0, 2]) for name in names] == [51, 52, 201, 202]
    lesions = stacked(reader, "stenosis/train/1")
    assert list(lesions) == ["coronary artery stenosis"]  # nobody looked for segments there
    assert (lesions["coronary artery stenosis"] == np.stack([block(2, 3, 6), block(20, 3, 5)])).all()
    assert len(stacked(reader, "stenosis/train/2")["coronary artery stenosis"]) == 0
    vessels = stacked(reader, "syntax/train/1")
    assert len(vessels) == 26 and "coronary artery stenosis" not in vessels
    assert (vessels["first diagonal branch a"] == block(2, 3, 6)[None]).all()
    assert (vessels["obtuse marginal branch b"] == block(30, 3, 6)[None]).all()
    assert (vessels["coronary artery"] == (block(2, 3, 6) | block(30, 3, 6))[None]).all()  # one tree of all segments
    assert len(vessels["proximal right coronary artery"]) == 0
    assert (stacked(reader, "syntax/train/2")["proximal right coronary artery"] == block(0, 0, 10)[None]).all()


def test_arcade_annotations_and_images_without_each_other_are_problems(arcade):
    root = arcade / "data/arcade"
    (root / "syntax/train/images/2.png").unlink()
    save_picture(root / "stenosis/train/images/3.png", GREY)
    save_picture(root / "stenosis/val/images/1.png", GREY)
    reader = shipped("arcade", arcade)
    assert len(reader.items()) == 3
    found = dict(unexpected(reader))
    assert "syntax/train/annotations/train.json: annotated, but there is no such image" in found["2.png"]
    assert found["stenosis/train/3"] == "stenosis/train/images/3.png: image without annotation"
    assert found["stenosis/val/1"] == "stenosis/val/images/1.png: image without annotation file"


def test_arcade_label_of_the_other_task_is_an_error(arcade):
    write(
        arcade / "data/arcade/stenosis/train/annotations/train.json",
        coco(["1.png", "2.png"], [(1, 26, edges(2, 3, 6)), (1, 5, edges(20, 3, 5))]),
    )
    reader = shipped("arcade", arcade)
    with pytest.raises(ValueError, match=r"train\.json: 1\.png: annotations\[1\]: unknown label '5' .known: stenosis"):
        reader.masks(reader.item("stenosis/train/1"))


# Pneumothorax and US-Nerve: mask images, and the same masks as run lengths


@pytest.fixture
def pneumothorax(tmp_path):
    root = tmp_path / "data/siim-acr-pneumothorax"
    lesion, speck = block(10, 10, 25, (64, 64)), block(50, 50, 5, (64, 64))
    masks = {"0_test_1_": lesion | speck, "1_test_0_": np.zeros((64, 64), bool), "2_train_1_": lesion}
    for name, mask in masks.items():
        save_picture(root / f"png_images/{name}.png", np.full((64, 64), 99, np.uint8))
        save_picture(root / f"png_masks/{name}.png", np.repeat(mask[:, :, None] * np.uint8(255), 3, axis=2))
    write(root / "stage_1_test_images.csv", "new_filename,ImageId,has_pneumo\n")
    return tmp_path, lesion


def test_pneumothorax_takes_the_papers_images(pneumothorax):
    tmp_path, lesion = pneumothorax
    reader = shipped("chest_xray_pneumothorax", tmp_path)
    assert [item.id for item in reader.items()] == ["0_test_1_", "1_test_0_"] and reader.problems() == []
    assert (stacked(reader, "0_test_1_")["pneumothorax"] == lesion[None]).all()  # without the speck
    assert len(stacked(reader, "1_test_0_")["pneumothorax"]) == 0
    found, exclusions = prepared("chest_xray_pneumothorax", tmp_path)
    assert found == {"0_test_1_": {"pneumothorax": 1}} and list(exclusions) == ["1_test_0_"]


@pytest.fixture
def us_nerve(tmp_path):
    root = tmp_path / "data/ultrasound-nerve-segmentation"
    masks = {"1_1": block(10, 10, 12), "1_2": np.zeros((40, 60), bool), "12_1": block(3, 20, 9)}
    for name, mask in masks.items():
        save_picture(root / f"train/{name}.tif", GREY, compression="tiff_lzw")
        save_picture(root / f"train/{name}_mask.tif", mask * np.uint8(255), compression="tiff_lzw")
    save_picture(root / "test/1.tif", GREY)
    rows = [f"{name.replace('_', ',')},{absolute_runs(mask)}" for name, mask in masks.items()]
    write(root / "train_masks.csv", "\n".join(["subject,img,pixels", *rows]) + "\n")
    return tmp_path, masks


def absolute_runs(mask: np.ndarray) -> str:
    """Run lengths down the columns, pixel 1 first, in plain loops."""
    runs, length = [], 0
    pixels = [*mask.T.ravel().tolist(), False]
    for number, inside in enumerate(pixels, start=1):
        if inside:
            length += 1
        elif length:
            runs.append(f"{number - length} {length}")
            length = 0
    return " ".join(runs)


def relative_runs(mask: np.ndarray) -> str:
    numbers, end = [int(n) for n in absolute_runs(mask).split()], 0
    result = []
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        result.append(f"{start - 1 - end} {length}")
        end = start - 1 + length
    return " ".join(result)


def test_us_nerve_masks_beside_the_images(us_nerve):
    tmp_path, masks = us_nerve
    reader = shipped("us_nerve", tmp_path)
    assert {item.id: item.group for item in reader.items()} == {"12_1": "12", "1_1": "1", "1_2": "1"}
    assert reader.problems() == []
    for name, mask in masks.items():
        assert (stacked(reader, name)["brachial plexus"].any(0) == mask).all()
    assert prepared("us_nerve", tmp_path)[0].keys() == {"12_1", "1_1"}


RUN_LENGTHS = {"reader": "rle_csv", "masks": None, "concepts": {"*": "nerve"}}


def test_us_nerve_run_lengths_say_the_same(us_nerve, make_spec):
    tmp_path, masks = us_nerve
    spec = make_spec(
        **RUN_LENGTHS,
        root="ultrasound-nerve-segmentation",
        images=r"train/{id:\d+_\d+}.tif",
        options={"annotations": "train_masks.csv", "image": "{subject}_{img}", "runs": "pixels", "starts": "absolute"},
    )
    reader = open_reader(spec, tmp_path / "data", tmp_path / "cache")
    assert [item.id for item in reader.items()] == ["12_1", "1_1", "1_2"] and reader.problems() == []
    for name, mask in masks.items():
        assert (stacked(reader, name)["nerve"].any(0) == mask).all()


def test_relative_run_lengths_of_several_rows_are_joined(folder, reader_of, save):
    names = ["1.2.276.0.1", "1.2.276.0.2", "1.2.276.0.3", "1.2.276.0.4"]
    for name in names:
        save(folder / f"images/{name}.png", GREY)
    rows = [(names[0], relative_runs(SQUARE)), (names[1], "-1"), (names[0], relative_runs(BAR)), ("1.2.9", "-1")]
    write(folder / "train-rle.csv", "ImageId, EncodedPixels\n" + "".join(f"{name}, {runs}\n" for name, runs in rows))
    options = {"annotations": "train-rle.csv", "image": "{ImageId}", "runs": "EncodedPixels", "starts": "relative"}
    reader = reader_of(**RUN_LENGTHS, options=options)
    assert [item.id for item in reader.items()] == names[:2]
    assert (stacked(reader, names[0])["nerve"] == (SQUARE | BAR)[None]).all()
    assert len(stacked(reader, names[1])["nerve"]) == 0
    assert unexpected(reader) == [
        ("1.2.276.0.3", "images/1.2.276.0.3.png: image without annotation"),
        ("1.2.276.0.4", "images/1.2.276.0.4.png: image without annotation"),
        ("1.2.9", f"{folder / 'train-rle.csv'}: annotated, but there is no such image"),
    ]
    separate = reader_of(**RUN_LENGTHS, instances="labels", options=options)
    assert (stacked(separate, names[0])["nerve"] == np.stack([SQUARE, BAR])).all()
    wrong = reader_of(**RUN_LENGTHS, options=options | {"starts": "absolute"})
    assert not (stacked(wrong, names[0])["nerve"].any(0) == (SQUARE | BAR)).all()
    absent = reader_of(**RUN_LENGTHS, options=options | {"missing_mask": "absent"})
    assert len(stacked(absent, names[2])["nerve"]) == 0


# VIA JSON


def test_via_files_find_their_images_through_folders(folder, reader_of, save):
    for part in ("train", "val"):
        save(folder / f"{part}/a\u0308.png", GREY)  # as macOS writes it
        polygon = {"name": "polygon", "all_points_x": [5, 14, 14, 5], "all_points_y": [10, 10, 19, 19]}
        region = {"shape_attributes": polygon, "region_attributes": {"kind": part}}
        entry = {"filename": f"C:\\pictures\\{part}\\ä.png", "size": 1, "regions": [region]}
        write(folder / f"{part}.json", {"_via_img_metadata": {"ä.png1": entry}})
    changes = {"reader": "via_json", "masks": None, "images": "{part}/{id}.png", "concepts": {"train": "t", "val": "v"}}
    reader = reader_of(**changes, options={"annotations": "{part}.json", "label": "kind"})
    assert [item.id for item in reader.items()] == ["train/ä", "val/ä"] and reader.problems() == []
    assert (stacked(reader, "train/ä")["t"] == SQUARE[None]).all() and len(stacked(reader, "train/ä")["v"]) == 0
    together = {"options": {"annotations": "{part:train}.json", "label": "kind"}, "images": "{part}/{id:ä}.png"}
    assert unexpected(reader_of(**(changes | together))) == [
        ("val/ä", "val/a\u0308.png: image without annotation file")
    ]


def test_names_that_fit_several_images_or_come_twice_are_problems(folder, reader_of, save):
    for part in ("one", "two"):
        save(folder / f"{part}/a.png", GREY)
        save(folder / f"{part}/b.png", GREY)
    entries = {str(n): {"filename": name, "regions": []} for n, name in enumerate(["a.png", "one/b", "one/b.png"])}
    write(folder / "via.json", entries)
    changes = {"reader": "via_json", "masks": None, "images": "{part}/{id}.png", "concepts": {"*": "all"}}
    reader = reader_of(**changes, options={"annotations": "via.json", "missing_mask": "exclude"})
    assert [reason.partition(": ")[2] for _, reason in unexpected(reader)] == [
        "annotated, but fits several images (one/a.png, two/a.png)",
        "annotated, but fits several images (one/b.png, two/b.png)",
    ]
    assert [problem.item for problem in reader.problems() if problem.expected] == ["one/a", "two/a", "two/b"]
