"""Readers: which files belong together, what their values mean, and what is said of files that are not right."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from medsam3.data.instances import Instances
from medsam3.data.patterns import FilePattern
from medsam3.data.readers import open_reader
from medsam3.data.spec import load_specs

SQUARE = np.zeros((40, 60), bool)
SQUARE[10:20, 5:15] = True
BAR = np.zeros((40, 60), bool)
BAR[30:33, 20:50] = True
GREY = np.arange(40 * 60).reshape(40, 60).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data/small"


@pytest.fixture
def reader_of(make_spec, tmp_path):
    """A reader of the files in `folder`, by the small description with some keys changed."""
    return lambda **changes: open_reader(make_spec(**changes), tmp_path / "data", tmp_path / "cache")


def one_pair(folder, save, mask, name="a.png", **options):
    save(folder / "images/a.png", GREY)
    save(folder / "masks" / name, mask, **options)


def masks_of(reader):
    (item,) = reader.items()
    return reader.masks(item)


# Patterns


@pytest.mark.parametrize(
    "pattern, path, captured",
    [
        ("images/{id}.png", "images/a b (1).png", {"id": "a b (1)"}),
        ("images/{id}.png", "images/sub/a.png", None),
        ("images/{id}.png", "images/a.png.txt", None),
        ("{video}/{id}_gt.png", "v1/3_gt.png", {"video": "v1", "id": "3"}),
        ("data_{c}/images_{c}/{id}.jpg", "data_C1/images_C1/x.jpg", {"c": "C1", "id": "x"}),
        ("data_{c}/images_{c}/{id}.jpg", "data_C1/images_C2/x.jpg", None),
        (r"{id:\d{3}}.png", "012.png", {"id": "012"}),
        (r"{id:\d{3}}.png", "0123.png", None),
        ("{id}_mask*.png", "a_mask_1.png", {"id": "a"}),
        ("**/{id}.jp*g", "x/y/a.jpeg", {"id": "a"}),
        ("**/{id}.jp*g", "a.jpg", {"id": "a"}),
    ],
)
def test_patterns(pattern, path, captured):
    assert FilePattern(pattern).match(path) == captured


def test_masks_in_the_folder_of_the_images_are_no_images(folder, save, reader_of):
    for name in ("train_1", "train_2"):
        save(folder / f"{name}.bmp", GREY)
        save(folder / f"{name}_anno.bmp", SQUARE.astype(np.uint8))
    reader = reader_of(images="{id}.bmp", masks="{id}_anno.bmp")
    assert [item.id for item in reader.items()] == ["train_1", "train_2"]
    assert reader.problems() == []


def test_an_id_joins_all_placeholders_and_names_the_group(folder, save, reader_of):
    for video in ("v2", "v1"):
        save(folder / video / "3_raw.png", GREY)
        save(folder / video / "3_gt.png", SQUARE.astype(np.uint8))
    reader = reader_of(images="{video}/{id}_raw.png", masks="{video}/{id}_gt.png", group=r"^(v\d)/")
    assert [(item.id, item.group) for item in reader.items()] == [("v1/3", "v1"), ("v2/3", "v2")]


def test_junk_files_are_not_read(folder, save, reader_of):
    one_pair(folder, save, SQUARE.astype(np.uint8))
    for junk in ("images/._a.png", "images/.DS_Store", "images/Thumbs.db", "__MACOSX/images/b.png", "masks/._a.png"):
        (folder / junk).parent.mkdir(parents=True, exist_ok=True)
        (folder / junk).write_text("junk")
    reader = reader_of(images="**/images/{id}.png", masks="**/masks/{id}.png")
    assert [item.image for item in reader.items()] == ["images/a.png"]


def test_files_without_partner_are_listed(folder, save, reader_of):
    one_pair(folder, save, SQUARE.astype(np.uint8))
    save(folder / "images/lonely.png", GREY)
    save(folder / "masks/orphan.png", GREY)
    reader = reader_of()
    assert [item.id for item in reader.items()] == ["a"]
    assert [(p.item, p.reason, p.expected) for p in reader.problems()] == [
        ("lonely", "images/lonely.png: image without mask", False),
        ("masks/orphan.png", "mask without image", False),
    ]


@pytest.mark.parametrize("rule, items, expected", [("exclude", ["a"], True), ("absent", ["a", "lonely"], None)])
def test_an_image_without_mask_can_be_left_out_or_mean_absence(rule, items, expected, folder, save, reader_of):
    one_pair(folder, save, SQUARE.astype(np.uint8))
    save(folder / "images/lonely.png", GREY)
    reader = reader_of(options={"missing_mask": rule})
    assert [item.id for item in reader.items()] == items
    assert [p.expected for p in reader.problems()] == ([] if expected is None else [expected])
    if rule == "absent":
        masks = reader.masks(reader.item("lonely"))
        assert {concept: (len(found), found.size) for concept, found in masks.items()} == {
            "left square": (0, (40, 60)),
            "right square": (0, (40, 60)),
        }


def test_a_concept_without_its_file_is_not_annotated(folder, save, reader_of):
    save(folder / "images/a.png", GREY)
    save(folder / "images/b.png", GREY)
    save(folder / "lungs/a.png", SQUARE)
    masks = {"lung": "lungs/{id}.png", "heart": "hearts/{id}.png"}
    concepts = {"lung": "lung", "heart": "heart"}
    reader = reader_of(masks=masks, concepts=concepts, options={"missing_mask": "unlabelled"})
    assert set(masks_of(reader)) == {"lung"}
    assert [(p.item, p.expected) for p in reader.problems()] == [("b", True)]


def test_exclusions_are_listed_and_an_unknown_one_is_a_problem(folder, save, reader_of):
    one_pair(folder, save, SQUARE.astype(np.uint8))
    save(folder / "images/b.png", GREY)
    save(folder / "masks/b.png", GREY)
    reader = reader_of(exclude={"b": "blank mask", "c": "blurred"})
    assert [item.id for item in reader.items()] == ["a"]
    assert [(p.item, p.reason, p.expected) for p in reader.problems()] == [
        ("b", "blank mask", True),
        ("c", "named in exclude, but there is no such item", False),
    ]


def test_two_files_of_one_id_are_an_error(folder, save, reader_of):
    for name in ("a.png", "a.jpg"):
        save(folder / "images" / name, GREY)
    save(folder / "masks/a.png", GREY)
    with pytest.raises(ValueError, match=r"two files for the item 'a': images/a.*images/a"):
        reader_of(images="images/{id}.*").items()


def test_a_group_pattern_that_finds_nothing_is_an_error(folder, save, reader_of):
    one_pair(folder, save, SQUARE.astype(np.uint8))
    with pytest.raises(ValueError, match=r"group='\^\(p\\\\d\+\)_' finds nothing in 'a'"):
        reader_of(group=r"^(p\d+)_").items()


# Values of a mask


def test_exact_values_are_concepts_and_zero_is_background(folder, save, reader_of):
    one_pair(folder, save, SQUARE + 2 * BAR)
    masks = masks_of(reader_of())
    assert np.array_equal(masks["left square"].union(), SQUARE)
    assert np.array_equal(masks["right square"].union(), BAR)


def test_several_values_may_be_one_concept_and_absence_is_zero_instances(folder, save, reader_of):
    one_pair(folder, save, SQUARE + 2 * BAR)
    masks = masks_of(reader_of(concepts={1: "organ", 2: "organ", 3: "tumour"}))
    assert np.array_equal(masks["organ"].union(), SQUARE | BAR)
    assert len(masks["tumour"]) == 0


def test_an_unknown_value_is_named_unless_it_is_ignored(folder, save, reader_of):
    one_pair(folder, save, SQUARE + 7 * BAR)
    with pytest.raises(ValueError, match=r"masks/a\.png: unknown label value 7 \(known: 0, 1, 2\).*ignore_values"):
        masks_of(reader_of())
    for ignored in ([7], "all"):
        assert np.array_equal(masks_of(reader_of(options={"ignore_values": ignored}))["left square"].union(), SQUARE)


@pytest.mark.parametrize("concepts", [{255: "vessel"}, {"vessel": "vessel"}])
def test_one_bit_masks_survive_exact_values_and_thresholds(concepts, folder, save, reader_of):
    one_pair(folder, save, SQUARE)
    assert Image.open(folder / "masks/a.png").mode == "1"
    options = {} if 255 in concepts else {"threshold": 127}
    assert np.array_equal(masks_of(reader_of(concepts=concepts, options=options))["vessel"].union(), SQUARE)


def test_a_threshold_cleans_a_jpeg_mask(folder, save, reader_of):
    rgb = np.repeat(255 * SQUARE[:, :, None], 3, axis=2)
    one_pair(folder, save, rgb, "a.jpg", quality=60)
    assert len(np.unique(np.asarray(Image.open(folder / "masks/a.jpg")))) > 2
    settings = {"masks": "masks/{id}.jpg", "concepts": {"polyp": "polyp"}}
    assert np.array_equal(masks_of(reader_of(**settings, options={"threshold": 127}))["polyp"].union(), SQUARE)
    with pytest.raises(ValueError, match=r"a\.jpg: a binary mask with \d+ values .*set options\.threshold"):
        masks_of(reader_of(masks={"polyp": "masks/{id}.jpg"}, concepts={"polyp": "polyp"}))


def test_a_coloured_mask_is_never_thresholded_as_grey(folder, save, reader_of):
    red = np.zeros((40, 60, 3))
    red[SQUARE] = (255, 0, 0)
    one_pair(folder, save, red.astype(np.uint8))
    with pytest.raises(ValueError, match=r"masks/a\.png: the mask is in colour"):
        masks_of(reader_of(concepts={"polyp": "polyp"}, options={"threshold": 127}))


@pytest.mark.parametrize("name, options", [("a.png", {}), ("a.jpg", {"tolerance": 180})])
def test_colours_are_concepts(name, options, folder, save, reader_of):
    rgb = np.zeros((40, 60, 3), np.uint8)
    rgb[SQUARE] = (255, 0, 0)
    rgb[BAR] = (0, 255, 0)
    one_pair(folder, save, rgb, name, **({"quality": 95, "subsampling": 0} if name == "a.jpg" else {}))
    concepts = {"#FF0000": "neoplastic polyp", "#00ff00": "non-neoplastic polyp"}
    masks = masks_of(reader_of(masks=f"masks/{{id}}{name[1:]}", concepts=concepts, options=options))
    assert np.array_equal(masks["neoplastic polyp"].union(), SQUARE)
    assert np.array_equal(masks["non-neoplastic polyp"].union(), BAR)


def test_an_unknown_colour_is_named(folder, save, reader_of):
    rgb = np.zeros((40, 60, 3), np.uint8)
    rgb[SQUARE] = (255, 0, 0)
    rgb[0, 0] = (10, 20, 30)
    one_pair(folder, save, rgb)
    with pytest.raises(ValueError, match=r"unknown colours #0A141E \(known: #FF0000, #000000, tolerance 0\)"):
        masks_of(reader_of(concepts={"#FF0000": "polyp"}))
    ignored = reader_of(concepts={"#FF0000": "polyp"}, options={"ignore_values": ["#0A141E"]})
    assert masks_of(ignored)["polyp"].areas_px.tolist() == [100]


def test_palette_files_are_read_by_index(folder, save, reader_of):
    save(folder / "images/a.png", GREY)
    mask = Image.fromarray((SQUARE + 2 * BAR).astype(np.uint8), mode="P")
    mask.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
    (folder / "masks").mkdir()
    mask.save(folder / "masks/a.png")
    assert np.array_equal(masks_of(reader_of())["right square"].union(), BAR)


# What one instance is


def two_touching_at_a_corner() -> np.ndarray:
    mask = np.zeros((40, 60), np.uint8)
    mask[5:10, 5:10] = 1
    mask[10:15, 10:15] = 1  # touches the first by a corner: one region in 8-connectivity
    mask[30:32, 40:42] = 1
    return mask


@pytest.mark.parametrize(
    "settings, areas, boxes",
    [
        ({"instances": "whole"}, [54], [[5, 5, 42, 32]]),
        ({"instances": "components"}, [50, 4], [[5, 5, 15, 15], [40, 30, 42, 32]]),
        ({"instances": "components", "min_area_px": 5}, [50], [[5, 5, 15, 15]]),
    ],
)
def test_whole_masks_and_8_connected_components(settings, areas, boxes, folder, save, reader_of):
    one_pair(folder, save, two_touching_at_a_corner())
    found = masks_of(reader_of(concepts={1: "cell"}, **settings))["cell"]
    assert found.areas_px.tolist() == areas
    assert found.boxes_px.tolist() == boxes


@pytest.mark.parametrize("ids", [(1, 2, 3), (40000, 7, 65535)])
def test_numbered_instances(ids, folder, save, reader_of):
    mask = np.zeros((40, 60), np.uint16)
    mask[0:4, 0:5], mask[0:4, 5:9], mask[38:40, 50:60] = ids
    one_pair(folder, save, mask)
    found = masks_of(reader_of(concepts={"cell": "cell"}, instances="labels"))["cell"]
    assert sorted(found.areas_px.tolist()) == [16, 20, 20]
    assert sorted(found.boxes_px.tolist()) == [[0, 0, 5, 4], [5, 0, 9, 4], [50, 38, 60, 40]]


def test_one_file_per_instance_may_overlap(folder, save, reader_of):
    save(folder / "images/a.png", GREY)
    overlapping = np.zeros((40, 60), bool)
    overlapping[15:25, 10:20] = True
    for n, mask in enumerate((SQUARE, overlapping, np.zeros((40, 60), bool))):
        save(folder / f"masks/a_{n}.png", mask)
    found = masks_of(reader_of(masks="masks/{id}_*.png", concepts={255: "cyst"}, instances="files"))["cyst"]
    assert np.array_equal(found.stack(), [SQUARE, overlapping])


@pytest.mark.parametrize("annotators, expected", [("first", SQUARE), ("union", SQUARE | BAR), (None, None)])
def test_several_mask_files_need_a_rule(annotators, expected, folder, save, reader_of):
    save(folder / "images/a.png", GREY)
    save(folder / "masks/a_mask.png", SQUARE)
    save(folder / "masks/a_mask_1.png", BAR)
    patterns = ["masks/{id}_mask.png", "masks/{id}_mask_*.png"]
    settings = {"masks": patterns, "concepts": {255: "lesion"}, "images": "images/{id}.png"}
    reader = reader_of(**settings, options={"annotators": annotators} if annotators else {})
    if annotators:
        assert np.array_equal(masks_of(reader)["lesion"].union(), expected)
    else:
        (problem,) = reader.problems()
        assert "a_mask.png, masks/a_mask_1.png" in problem.reason and "options.annotators" in problem.reason


def test_resized_masks_follow_pixel_centres_and_no_instance_vanishes():
    mask = np.random.RandomState(0).rand(97, 61) > 0.6
    speck = np.zeros_like(mask)
    speck[50, 33] = True
    for size in ((20, 20), (97, 61), (250, 130)):
        found = Instances.separate([mask, speck], mask.shape).resized(size)
        rows = np.floor((np.arange(size[0]) + 0.5) * 97 / size[0]).astype(int)
        columns = np.floor((np.arange(size[1]) + 0.5) * 61 / size[1]).astype(int)
        assert np.array_equal(found[0], mask[rows][:, columns])
    small = Instances.separate([speck], mask.shape).resized((20, 20))[0]
    assert np.argwhere(small).tolist() == [[50 * 20 // 97, 33 * 20 // 61]]


def test_boxes_are_fractions_with_the_far_edge_behind_the_last_pixel():
    box = Instances.whole(SQUARE).boxes_cxcywh
    assert box.tolist() == [pytest.approx([10 / 60, 15 / 40, 10 / 60, 10 / 40])]


# Images


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA", "1"])
def test_every_image_becomes_three_channels_of_8_bits(mode, folder, save, reader_of):
    one_pair(folder, save, SQUARE.astype(np.uint8))
    Image.fromarray(GREY).convert(mode).save(folder / "images/a.png")
    reader = reader_of()
    image = reader.image(reader.item("a"))
    assert image.shape == (40, 60, 3) and image.dtype == np.uint8
    if mode in ("L", "RGBA"):
        assert np.array_equal(image, np.repeat(GREY[:, :, None], 3, axis=2))


def test_16_bit_images_need_a_window(folder, save, reader_of):
    one_pair(folder, save, SQUARE.astype(np.uint8))
    save(folder / "images/a.png", np.full((40, 60), 1000, np.uint16) + np.arange(60, dtype=np.uint16) * 10)
    with pytest.raises(ValueError, match=r"images/a\.png: uint16 values 1000 to 1590: set options\.window"):
        reader = reader_of()
        reader.image(reader.item("a"))
    reader = reader_of(options={"window": [1000, 1510]})
    row = reader.image(reader.item("a"))[0, :, 0]
    assert row[[0, 25, 51, 59]].tolist() == [0, 125, 255, 255]
    reader = reader_of(options={"percentiles": [0, 100]})
    assert reader.image(reader.item("a"))[0, [0, 59], 0].tolist() == [0, 255]


def test_exif_orientation_is_applied_neither_to_image_nor_to_mask(folder, save, reader_of):
    one_pair(folder, save, SQUARE.astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    save(folder / "images/a.jpg", GREY, exif=exif)
    reader = reader_of(images="images/{id}.jpg")
    assert reader.image(reader.item("a")).shape == (40, 60, 3)
    assert np.array_equal(reader.masks(reader.item("a"))["left square"].union(), SQUARE)


# Bad input


def test_a_mask_of_another_size_is_named_with_both_sizes(folder, save, reader_of):
    one_pair(folder, save, np.ones((30, 60), np.uint8))
    with pytest.raises(ValueError, match=r"masks/a\.png: the mask is 30 x 60 px, its image 40 x 60"):
        masks_of(reader_of())


@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_a_file_that_cannot_be_read_is_named(damage, folder, save, reader_of):
    one_pair(folder, save, SQUARE.astype(np.uint8))
    noise = np.random.RandomState(0).randint(0, 256, (40, 60, 3)).astype(np.uint8)
    whole = save(folder / "images/a.png", noise).read_bytes()
    broken = {"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"404 not found"}[damage]
    (folder / "images/a.png").write_bytes(broken)
    reader = reader_of()
    with pytest.raises(ValueError, match=r"images/a\.png: cannot be read \("):
        reader.image(reader.item("a"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_named(folder, save, reader_of):
    one_pair(folder, save, SQUARE.astype(np.uint8))
    (folder / "images/a.png").chmod(0)
    reader = reader_of()
    with pytest.raises(ValueError, match=r"images/a\.png: cannot be read \(Permission denied\)"):
        reader.image(reader.item("a"))


def test_a_denied_permission_is_told_as_such(folder, save, reader_of, monkeypatch):
    one_pair(folder, save, SQUARE.astype(np.uint8))
    reader = reader_of()
    item = reader.item("a")

    def denied(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", denied)
    with pytest.raises(ValueError, match=r"images/a\.png: cannot be read \(Permission denied\)"):
        reader.image(item)


def test_a_folder_where_nothing_fits_says_what_is_there(folder, reader_of):
    (folder / "pictures").mkdir(parents=True)
    (folder / "images.zip").write_bytes(b"PK")
    with pytest.raises(ValueError) as error:
        reader_of().items()
    for fragment in (str(folder), "images/{id}.png", "holds images.zip, pictures", "unpack images.zip"):
        assert fragment in str(error.value)


def test_an_empty_folder_is_an_error(folder, reader_of):
    folder.mkdir(parents=True)
    with pytest.raises(ValueError, match=r"the folder holds nothing; is the download complete"):
        reader_of().items()


def test_a_missing_root_names_the_key_and_the_way_out(tmp_path, make_spec):
    with pytest.raises(ValueError, match=r"data\.root=.*nowhere: no such folder; set data\.root="):
        open_reader(make_spec(), tmp_path / "nowhere", tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/small.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"no folder .*data/small .*still packed: small\.zip.*Set data\.root"):
        open_reader(make_spec(), tmp_path / "data", tmp_path)


def test_a_folder_named_like_the_data_set_may_hold_the_root_but_not_twice(tmp_path, make_spec):
    spec = make_spec(root="Small-Set")
    (tmp_path / "data/small/Small-Set").mkdir(parents=True)
    assert open_reader(spec, tmp_path / "data", tmp_path).root == tmp_path / "data/small/Small-Set"
    shutil.copytree(tmp_path / "data/small/Small-Set", tmp_path / "data/Small-Set")
    with pytest.raises(ValueError, match="two copies"):
        open_reader(spec, tmp_path / "data", tmp_path)


def test_a_package_that_is_not_installed_is_named(make_spec, tmp_path):
    with pytest.raises(ValueError, match="Python package 'no_such_package' is not installed"):
        open_reader(make_spec(root="package:no_such_package/data"), tmp_path, tmp_path)


# Real files


def real_reader(name, shared_realdata, tmp_path):
    return open_reader(load_specs(name)[name], shared_realdata, tmp_path)


def test_drive_as_it_lies(shared_realdata, tmp_path):
    reader = real_reader("drive", shared_realdata, tmp_path)
    assert [item.id for item in reader.items()] == [str(n) for n in range(21, 41)]
    assert reader.problems() == []
    areas = []
    for item in reader.items():
        vessels = reader.masks(item)["retinal blood vessel"]
        assert reader.image(item).shape == (584, 565, 3) and vessels.size == (584, 565) and len(vessels) == 1
        areas.append(int(vessels.areas_px[0]))
    assert np.median(areas) == 28412.5  # counted independently; the paper's 28,176 is the largest component


def test_kvasir_seg_masks_are_jpeg(shared_realdata, tmp_path):
    reader = real_reader("kvasir_seg", shared_realdata, tmp_path)
    items = reader.items()
    assert len(items) == 1000 and reader.problems() == []
    for item in items[::50]:
        polyps = reader.masks(item)["polyp"]
        with Image.open(reader.root / item.masks[0][1][0]) as file:
            values = np.asarray(file)[:, :, 0]
        assert len(np.unique(values)) > 2  # lossy
        assert 1 <= len(polyps) <= 3 and polyps.areas_px.min() >= 500
        assert 0 <= np.count_nonzero(values > 127) - polyps.areas_px.sum() < 500 * 3


def test_chase_db1_masks_have_one_bit_and_two_annotators(shared_realdata, tmp_path):
    reader = real_reader("chase_db1", shared_realdata, tmp_path)
    items = reader.items()
    assert len(items) == 28 and len({item.group for item in items}) == 14
    areas = []
    for item in items:
        assert item.masks == ((None, (f"Image_{item.id}_1stHO.png",)),)
        areas.append(int(reader.masks(item)["retinal blood vessel"].areas_px[0]))
    assert round(float(np.median(areas))) == 69762  # counted independently
