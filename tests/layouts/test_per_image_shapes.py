"""Readers with an annotation file per image: the shipped data sets in miniature, with their traps, and the options."""

from __future__ import annotations

import json

import numpy as np
import pytest

from medsam3.layouts.reader import Problem
from medsam3.layouts.readers import open_reader
from medsam3.registry.spec import SPEC_FOLDER, load_spec
from tests.annotation_files import block, labelme, prepared, shipped, square, stacked, unexpected, write
from tests.conftest import GREY, SQUARE, save_picture

# BTXRD: labelme


@pytest.fixture
def btxrd(tmp_path):
    root = tmp_path / "data/BTXRD"
    for number, ending in ((1, "jpeg"), (2, "jpeg"), (3, "jpg"), (51, "jpeg")):
        save_picture(root / f"images/IMG{number:06d}.{ending}", GREY)
    twice = [["osteosarcoma", kind, square(5, 6, 4)] for kind in ("rectangle", "polygon")]
    twice[0][2] = [twice[0][2][0], twice[0][2][2]]
    write(root / "Annotations/IMG000001.json", json.dumps(labelme(*twice), indent=2).replace("\n", "\r\n"))
    shapes = [
        ("osteochondroma", "polygon", square(10, 10, 5)),
        ("osteochondroma", "polygon", square(13, 10, 5)),  # overlaps the one before
        ("other bt", "polygon", [[50, 30], [200, 30], [200, 35], [50, 35]]),  # reaches out of the image
    ]
    write(root / "Annotations/IMG000003.json", labelme(*shapes))
    write(root / "dataset.csv", "image_id,center\n")
    return tmp_path


def test_btxrd_takes_each_lesion_once_and_an_image_without_file_as_normal(btxrd):
    reader = shipped("btxrd", btxrd)
    assert [item.id for item in reader.items()] == ["IMG000001", "IMG000002", "IMG000003", "IMG000051"]
    assert reader.problems() == []
    first = stacked(reader, "IMG000001")
    assert (first["osteosarcoma"] == block(5, 6, 4)[None]).all() and first["osteosarcoma"].shape[0] == 1
    assert (first["bone tumor"] == first["osteosarcoma"]).all()
    assert len(first) == 10 and all(
        len(found) == 0 for concept, found in first.items() if concept not in ("osteosarcoma", "bone tumor")
    )
    assert all(len(found) == 0 for found in stacked(reader, "IMG000002").values())
    assert reader.image(reader.item("IMG000002")).shape == (40, 60, 3)


def test_btxrd_merges_outlines_that_overlap_and_clips_them(btxrd):
    third = stacked(shipped("btxrd", btxrd), "IMG000003")
    merged = block(10, 10, 5) | block(13, 10, 5)
    clipped = np.zeros((40, 60), bool)
    clipped[30:36, 50:] = True
    assert (third["osteochondroma"] == merged[None]).all() and len(third["osteochondroma"]) == 1
    assert (third["benign bone tumor"] == clipped[None]).all()
    assert len(third["bone tumor"]) == 2 and (third["bone tumor"].any(0) == (merged | clipped)).all()


def test_btxrd_views_of_one_case_stay_together(btxrd):
    groups = {item.id: item.group for item in shipped("btxrd", btxrd).items()}
    assert groups["IMG000001"] == groups["IMG000002"] == groups["IMG000003"] != groups["IMG000051"]


def test_btxrd_that_is_not_as_described_is_an_error(btxrd):
    root = btxrd / "data/BTXRD"
    for shape, reason in (
        (("Osteosarcoma", "polygon", square(5, 6, 4)), r"IMG000002\.json: shape 0: unknown label 'Osteosarcoma'"),
        (("osteosarcoma", "rectangle", [[5, 6], [8, 9]]), r"IMG000002\.json: shapes of type rectangle"),
        (("osteosarcoma", "polygon", [[5, 6], [8, 9]]), r"shape 0: 2 points .*unusable_shapes: exclude leaves it out"),
    ):
        write(root / "Annotations/IMG000002.json", labelme(shape))
        reader = shipped("btxrd", btxrd)
        with pytest.raises(ValueError, match=reason):
            reader.masks(reader.item("IMG000002"))
    write(root / "Annotations/IMG000002.json", labelme(size=(60, 40)))
    with pytest.raises(ValueError, match=r"made for 60 x 40 px, its image .*IMG000002\.jpeg has 40 x 60 .*turned"):
        reader.masks(reader.item("IMG000002"))
    for path in (root / "Annotations").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="4 images, but no file fits masks: Annotations"):  # half downloaded
        shipped("btxrd", btxrd).items()


# PCMMD: labelme with blanks in folders


@pytest.fixture
def pcmmd(tmp_path):
    root = tmp_path / "data/PCMMD Plasma Cells for Multiple Myeloma Diagnosis/data/segmentation"
    cells = {
        "plasma cells/P_1_crop0": [("plasma_cell", "polygon", square(3, 4, 9))],
        "plasma cells/P_1_crop1": [("non_plasma_cell", "polygon", square(3, 4, 9))],  # in the wrong folder
        "non-plasma cells/P_1_crop0": [("non_plasma_cell", "polygon", square(8, 9, 7))],  # a stem of the other folder
        "non-plasma cells/169_2": [("non_plasma_cell", "polygon", [[3, 3], [9, 9]])],
    }
    for name, shapes in cells.items():
        folder, stem = name.split("/")
        save_picture(root / folder / f"images/{stem}.jpg", GREY)
        write(root / folder / f"masks/{stem}.json", labelme(*shapes))
    return tmp_path


def test_pcmmd_goes_by_label_and_keeps_equal_stems_apart(pcmmd):
    reader = shipped("pcmmd", pcmmd)
    groups = {item.id: item.group for item in reader.items()}
    assert groups == {
        "non-plasma cells/169_2": "169_2",
        "non-plasma cells/P_1_crop0": "P_1",
        "plasma cells/P_1_crop0": "P_1",
        "plasma cells/P_1_crop1": "P_1",
    }
    cell = block(3, 4, 9)[None]
    right, wrong = stacked(reader, "plasma cells/P_1_crop0"), stacked(reader, "plasma cells/P_1_crop1")
    assert (right["plasma cell"] == cell).all() and len(right["non-plasma cell"]) == 0
    assert (wrong["non-plasma cell"] == cell).all() and len(wrong["plasma cell"]) == 0
    assert (right["cell"] == cell).all() and (wrong["cell"] == cell).all()
    assert (stacked(reader, "non-plasma cells/P_1_crop0")["cell"] == block(8, 9, 7)[None]).all()


def test_pcmmd_lists_the_crop_without_usable_outline(pcmmd):
    (problem,) = shipped("pcmmd", pcmmd).problems()
    assert problem.expected and problem.reason.endswith("169_2.json: shape 0: 2 points enclose no area")
    found, exclusions = prepared("pcmmd", pcmmd)
    assert len(found) == 3 and list(exclusions) == ["non-plasma cells/169_2"]


# MoNuSeg: polygon XML


def image_scope(*outlines) -> str:
    regions = ""
    for number, outline in enumerate(outlines, start=1):
        vertices = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in outline)
        regions += f'<Region Id="{number}" Type="0" NegativeROA="0"><Vertices>{vertices}</Vertices></Region>'
    return f'<Annotations><Annotation Id="1" Name=""><Regions>{regions}</Regions></Annotation></Annotations>'


@pytest.fixture
def monuseg(tmp_path):
    root = tmp_path / "data/monuseg"
    train, test = "TCGA-18-5592-01Z-00-DX1", "TCGA-2Z-A9J9-01A-01-TS1"
    picture = np.repeat(GREY[:, :, None], 3, axis=2)
    save_picture(root / f"MoNuSeg 2018 Training Data/Tissue Images/{train}.tif", picture, compression="tiff_lzw")
    save_picture(root / f"MoNuSegTestData/{test}.tif", picture, compression="packbits")
    touching = [square(2, 3, 5), square(7, 3, 5), [[55, 30], [70, 30], [70, 33], [55, 33]], [[4, 4], [9, 9]], []]
    write(root / f"MoNuSeg 2018 Training Data/Annotations/{train}.xml", image_scope(*touching))
    write(root / f"MoNuSegTestData/{test}.xml", image_scope(square(20, 20, 8)))
    return tmp_path, train, test


def test_monuseg_reads_both_layouts_region_by_region(monuseg):
    tmp_path, train, test = monuseg
    reader = shipped("monuseg", tmp_path)
    assert {item.id: item.group for item in reader.items()} == {train: "TCGA-18-5592", test: "TCGA-2Z-A9J9"}
    cut = np.zeros((40, 60), bool)
    cut[30:34, 55:] = True
    nuclei = stacked(reader, train)["cell nucleus"]
    assert (nuclei == np.stack([block(2, 3, 5), block(7, 3, 5), cut])).all()  # touching nuclei stay two
    assert (stacked(reader, test)["cell nucleus"] == block(20, 20, 8)[None]).all()
    assert (reader.image(reader.item(train))[:, :, 1] == GREY).all()
    assert (reader.image(reader.item(test))[:, :, 1] == GREY).all()


def test_monuseg_lists_regions_with_less_than_three_points(monuseg):
    tmp_path, train, _ = monuseg
    reader = shipped("monuseg", tmp_path)
    assert [(p.item, p.reason.rpartition("/")[2], p.expected) for p in reader.problems()] == [
        (train, f"{train}.xml: region 4: 2 points enclose no area", True),
        (train, f"{train}.xml: region 5: 0 points enclose no area", True),
    ]


def test_monuseg_also_unpacked_into_the_data_root_itself(monuseg):
    tmp_path, train, test = monuseg
    for folder in (tmp_path / "data/monuseg").iterdir():
        folder.rename(tmp_path / "data" / folder.name)
    (tmp_path / "data/monuseg").rmdir()
    assert [item.id for item in shipped("monuseg", tmp_path).items()] == [train, test]


def test_real_monuseg_files_as_they_lie(shared_realdata, tmp_path):
    reader = open_reader(load_spec(SPEC_FOLDER / "monuseg.yaml"), shared_realdata, tmp_path)
    counts = {}
    for item in reader.items():
        image, nuclei = reader.image(item), reader.masks(item)["cell nucleus"]
        assert image.shape == (1000, 1000, 3) and nuclei.size == (1000, 1000)
        counts[item.group] = len(nuclei)
        inside = image[nuclei.union()].mean()  # nuclei are stained dark
        assert inside < image[~nuclei.union()].mean() - 20
    assert counts == {"TCGA-B0-5698": 357, "TCGA-B0-5710": 359, "TCGA-HT-8564": 249}
    assert reader.problems() == []


# PAPILA: contour text


@pytest.fixture
def papila(tmp_path):
    root = tmp_path / "data/PapilaDB-PAPILA-17f8fa7746adb20275b5b6a0d99dc9dfe3007e9f"
    contours = root / "ExpertsSegmentations/Contours"
    for eye in ("RET002OD", "RET002OS", "RET004OD"):
        save_picture(root / f"FundusImages/{eye}.jpg", np.repeat(GREY[:, :, None], 3, axis=2))
        save_picture(root / f"ExpertsSegmentations/ImagesWithContours/Opht_cont_{eye}.jpg", GREY)
        for expert, shift in (("exp1", 0), ("exp2", 1)):
            for part, corners in (("disc", square(30 + shift, 5, 20)), ("cup", square(34 + shift, 9, 8))):
                lines = "".join(f"{x:16.7e}{y:16.7e}\n" for x, y in corners)
                write(contours / f"{eye}_{part}_{expert}.txt", lines)
    return tmp_path


def test_papila_fills_the_first_experts_contours(papila):
    reader = shipped("papila", papila)
    assert {item.id: item.group for item in reader.items()} == {
        "RET002OD": "RET002",
        "RET002OS": "RET002",
        "RET004OD": "RET004",
    }
    assert reader.problems() == []
    masks = stacked(reader, "RET002OD")
    assert (masks["optic disc"] == block(30, 5, 20)[None]).all()  # x is the column; the disc holds the cup
    assert (masks["optic cup"] == block(34, 9, 8)[None]).all()


def test_a_papila_eye_without_cup_is_a_problem(papila):
    root = papila / "data/PapilaDB-PAPILA-17f8fa7746adb20275b5b6a0d99dc9dfe3007e9f"
    (root / "ExpertsSegmentations/Contours/RET004OD_cup_exp1.txt").unlink()
    assert unexpected(shipped("papila", papila)) == [("RET004OD", "FundusImages/RET004OD.jpg: image without mask")]


def test_real_papila_contours_on_a_blank_image(shared_realdata, tmp_path):
    """Areas by an independent fill of the same contours; it counts half of the line more."""
    root = tmp_path / "data/papila/PapilaDB"
    root.mkdir(parents=True)
    (root / "ExpertsSegmentations").symlink_to(shared_realdata / "papila/PapilaDB/ExpertsSegmentations")
    save_picture(root / "FundusImages/RET002OD.jpg", np.zeros((1934, 2576), np.uint8))
    reader = shipped("papila", tmp_path)
    disc, cup = (stacked(reader, "RET002OD")[concept][0] for concept in ("optic disc", "optic cup"))
    assert disc.sum() == pytest.approx(197_284, rel=5e-3) and cup.sum() == pytest.approx(44_280, rel=6e-3)
    assert not (cup & ~disc).any()


# Options


def labelme_set(folder, save, *shapes):
    save(folder / "images/a.png", GREY)
    write(folder / "masks/a.json", labelme(*shapes))
    return {"reader": "labelme_json", "masks": "masks/{id}.json"}


def test_labels_that_are_no_concept_must_be_named(folder, reader_of, save):
    shapes = [("ruler", "polygon", square(1, 1, 3)), ("left", "polygon", square(5, 10, 10))]
    changes = labelme_set(folder, save, *shapes) | {"concepts": {"left": "left square"}}
    with pytest.raises(ValueError, match=r"shape 0: unknown label 'ruler' .known: left"):
        stacked(reader_of(**changes), "a")
    for ignored in ("ruler", "all"):
        assert (stacked(reader_of(**changes, options={"ignore_labels": ignored}), "a")["left square"] == SQUARE).all()
    every = stacked(reader_of(**changes | {"concepts": {"*": "square"}}), "a")
    assert (every["square"].any(0) == (SQUARE | block(1, 1, 3))).all()


def test_instances_of_shapes(folder, reader_of, save):
    shapes = [(str(n), "polygon", square(*at)) for n, at in enumerate([(5, 10, 10), (10, 12, 10), (40, 30, 2)])]
    changes = labelme_set(folder, save, *shapes) | {"concepts": {"*": "square"}}
    areas = {
        rule: reader_of(**changes, **more).masks(reader_of(**changes).item("a"))["square"].areas_px.tolist()
        for rule, more in {
            "whole": {},
            "components": {"instances": "components"},
            "shapes": {"instances": "labels"},
            "large shapes": {"instances": "labels", "min_area_px": 5},
        }.items()
    }
    assert areas == {"whole": [164], "components": [160, 4], "shapes": [100, 100, 4], "large shapes": [100, 100]}


def test_a_data_loading_process_reads_no_annotation_file_to_list_items(folder, reader_of, save):
    changes = labelme_set(folder, save, ("a", "polygon", [[1, 1]])) | {"concepts": {"*": "square"}}
    reader = reader_of(**changes, options={"unusable_shapes": "exclude"})
    assert reader.problems() == [Problem("a", f"{folder / 'masks/a.json'}: shape 0: 1 points enclose no area", True)]
    (folder / "masks/a.json").write_text("no JSON any more")
    assert len(reader.index()) == 1
    with pytest.raises(ValueError, match=r"a\.json: cannot be read"):
        reader.masks(reader.item("a"))


BAD = {
    "table without annotations": ({"reader": "coco_json", "masks": None}, "'annotations' is missing"),
    "table with masks": (
        {"reader": "coco_json", "options": {"annotations": "a.json"}},
        r"coco_json has options\.annot",
    ),
    "placeholder that images lack": (
        {"reader": "via_json", "masks": None, "options": {"annotations": "{part}.json"}},
        r"annotations='\{part\}\.json': its placeholders .*there are none",
    ),
    "key that is no concept": (
        {"reader": "coco_json", "masks": None, "options": {"annotations": {"a.json": [3]}}},
        "annotations: a.json=3: must be one of 1, 2",
    ),
    "crowd": (
        {"reader": "coco_json", "masks": None, "options": {"annotations": "a.json", "crowd": "keep"}},
        r"options\.crowd='keep': must be one of shape, exclude",
    ),
    "starts": (
        {
            "reader": "rle_csv",
            "masks": None,
            "options": {"annotations": "a.csv", "image": "{i}", "runs": "r", "starts": "zero"},
        },
        r"options\.starts='zero': must be one of absolute, relative",
    ),
    "shape type": (
        {"reader": "labelme_json", "options": {"shape_types": "circle"}},
        "'circle': must be one of polygon, rectangle",
    ),
    "instances": ({"reader": "polygon_xml", "instances": "files"}, "'files': must be one of whole, components, labels"),
    "unusable shapes": (
        {"reader": "polygon_xml", "options": {"unusable_shapes": "drop"}},
        "'drop': must be one of error, exclude",
    ),
    "no pattern": ({"reader": "contour_text", "masks": None}, "contour_text needs the pattern"),
    "mat without key": ({"reader": "mat"}, "'key' is missing"),
}


@pytest.mark.parametrize("changes, reason", BAD.values(), ids=BAD)
def test_mistakes_in_a_data_set_file_are_named(changes, reason, make_spec):
    with pytest.raises(ValueError, match=reason) as error:
        make_spec(**changes)
    assert "small.yaml" in str(error.value)
