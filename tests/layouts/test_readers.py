"""Readers: which files belong together, what their values mean, and what is said of files that are not right."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from medsam3.layouts.pairing import KeyFiles
from medsam3.layouts.readers import open_reader
from medsam3.registry.patterns import FilePattern
from medsam3.registry.spec import load_specs
from tests.conftest import GREY, SQUARE, masks_of, one_pair

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
        ("images/{id}_raw.nii.gz", "images/a_raw.Nii.GZ", {"id": "a"}),
        ("images/{id}_raw.png", "images/a_RAW.png", None),
        ("images/{id}.png", "images/axpng", None),
        ("M\u00fcller/{id}.png", "Mu\u0308ller/u\u0308.png", {"id": "\u00fc"}),  # as macOS writes it
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


def test_pictures_say_no_spacing(folder, save, reader_of):
    one_pair(folder, save, SQUARE.astype(np.uint8))
    reader = reader_of()
    assert reader.spacing_mm(reader.item("a")) is None


def test_endings_in_capitals_are_the_same_format(folder, save, reader_of):
    one_pair(folder, save, SQUARE.astype(np.uint8))
    save(folder / "images/b.PNG", GREY)
    save(folder / "masks/b.PNG", SQUARE.astype(np.uint8))
    reader = reader_of()
    assert [item.id for item in reader.items()] == ["a", "b"] and reader.problems() == []
    save(folder / "images/a.PNG", GREY)
    with pytest.raises(ValueError, match=r"two files for the item 'a': images/a\.PNG and images/a\.png"):
        reader_of().items()


def test_a_group_pattern_that_finds_nothing_is_an_error(folder, save, reader_of):
    one_pair(folder, save, SQUARE.astype(np.uint8))
    with pytest.raises(ValueError, match=r"group='\^\(p\\\\d\+\)_' finds nothing in 'a'"):
        reader_of(group=r"^(p\d+)_").items()


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


def test_of_several_pages_none_is_taken_for_the_picture(folder, save, reader_of):
    one_pair(folder, save, SQUARE.astype(np.uint8))
    page = Image.fromarray(GREY)
    for name in ("images/a.tif", "masks/a.tif"):
        page.save(folder / name, save_all=True, append_images=[page])
    for name, read in (("images", lambda r: r.image(r.item("a"))), ("masks", masks_of)):
        with pytest.raises(ValueError, match=rf"{name}/a\.tif: cannot be read \(holds 2 pages"):
            read(reader_of(**{name: f"{name}/{{id}}.tif"}))


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
    for fragment in (
        str(folder),
        "images/{id}.png",
        "the folder holds images.zip, pictures, but no folder images",
        "unpack images.zip",
    ):
        assert fragment in str(error.value)


def test_a_wrong_folder_of_images_is_one_message_not_one_for_each_mask(folder, save, reader_of):
    for name in "abc":
        save(folder / f"data/images/{name}.png", GREY)
        save(folder / f"data/masks/{name}.png", SQUARE.astype(np.uint8))
    with pytest.raises(ValueError) as error:
        reader_of(images="data/image/{id}.png", masks="data/masks/{id}.png").items()
    assert f"{folder}/data holds images, masks, but no folder data/image; is the download" in str(error.value)
    with pytest.raises(ValueError, match=r"no file fits images: data/images/\{id\}\.jpg .* the folder holds data; "):
        reader_of(images="data/images/{id}.jpg", masks="data/masks/{id}.png").items()


def test_a_pipe_is_no_image(folder, save, reader_of):
    one_pair(folder, save, SQUARE.astype(np.uint8))
    (folder / "images/a.png").unlink()
    os.mkfifo(folder / "images/a.png")
    with pytest.raises(ValueError, match=r"images/a\.png: cannot be read \(it is no file\)"):
        reader_of().image(reader_of().item("a"))


def test_a_name_that_is_not_utf_8_is_named(folder, save, reader_of):
    one_pair(folder, save, SQUARE.astype(np.uint8))
    os.rename(folder / "images/a.png", os.fsencode(folder) + b"/images/\xfc.png")
    with pytest.raises(ValueError, match=r"images/\\xfc\.png': the name is not UTF-8; rename the file"):
        reader_of().items()


@pytest.mark.parametrize("place", ["SMALL_SET", "small", "data/Small_set", "SMALL"])
def test_a_root_is_found_in_upper_and_lower_case(place, tmp_path, save, make_spec):
    one_pair(tmp_path / place, save, SQUARE.astype(np.uint8))
    root = {"data/Small_set": "DATA/small_set"}.get(place, "small_set")
    reader = open_reader(make_spec(root=root), tmp_path, tmp_path / "cache")
    assert reader.root == tmp_path / place and [item.id for item in reader.items()] == ["a"]


def test_an_empty_folder_is_an_error(folder, reader_of):
    folder.mkdir(parents=True)
    with pytest.raises(ValueError, match=r"the folder holds nothing; is the download complete"):
        reader_of().items()


def test_a_missing_root_names_the_key_and_the_way_out(tmp_path, make_spec):
    with pytest.raises(ValueError, match=r"data\.root=.*nowhere: no such folder; set data\.root="):
        open_reader(make_spec(), tmp_path / "nowhere", tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/small.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"no folder .*data/small\..*still packed: small\.zip.*Set data\.root"):
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
        with Image.open(reader.root / item.masks[0].paths[0]) as file:
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
        assert item.masks == (KeyFiles(None, (f"Image_{item.id}_1stHO.png",)),)
        areas.append(int(reader.masks(item)["retinal blood vessel"].areas_px[0]))
    assert round(float(np.median(areas))) == 69762  # counted independently


def test_a_folder_of_the_right_name_with_something_else_in_it_is_said(tmp_path, make_spec):
    spec = make_spec(root="Download 2024")
    (tmp_path / "data/small/notes").mkdir(parents=True)
    (tmp_path / "data/small/pictures.zip").touch()
    with pytest.raises(ValueError, match="no folder") as error:
        open_reader(spec, tmp_path / "data", tmp_path / "cache")
    assert str(error.value) == (
        f"data set 'small': no folder {tmp_path}/data/Download 2024 nor {tmp_path}/data/small/Download 2024. "
        f"{tmp_path}/data/small is there, but holds notes, pictures.zip. "
        "Archives are there, still packed: pictures.zip. Set data.root, or unpack Small there"
    )
