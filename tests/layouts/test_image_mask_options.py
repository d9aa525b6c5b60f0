"""Options of image and mask files, and the keys of every data set that look at content: each as a user may set it."""

from __future__ import annotations

import numpy as np
import pytest

from medsam3.layouts.readers import open_reader
from medsam3.preparation.prepare import prepare
from medsam3.registry.spec import load_spec
from tests.conftest import BAR, GREY, SQUARE, data_config, masks_of, one_pair, prepare_config
from tests.native_sets import write
from tests.preparation.test_prepare import exclusions_of, rows_of

ONE = {"concepts": {"organ": "organ"}}
TWO_FILES = {
    "masks": {"lung": "lungs/{id}.png", "heart": "hearts/{id}.png"},
    "concepts": {"lung": "lung", "heart": "heart"},
}
MISTAKES = {
    "unknown keep": ({"keep": "some"}, "keep='some': must be one of all, non_empty"),
    "unknown copies": ({"copies": "last"}, "copies='last': must be one of all, first, none"),
    "unknown fill": (
        ONE | {"options": {"threshold": 9, "fill": "hole"}},
        "fill='hole': must be one of holes, outlines",
    ),
    "fill of an index mask": ({"options": {"fill": "holes"}}, "fill='holes'.*binary masks only"),
    "unknown other_size": ({"options": {"other_size": "skip"}}, "other_size='skip': must be one of error, exclude"),
    "unknown concept_by": (
        {"options": {"concept_by": "class"}},
        r"concept_by='class': must be a placeholder of images \(id\)",
    ),
    "blank values of a threshold": (
        ONE | {"options": {"threshold": 9, "blank_values": [0]}},
        r"options\.blank_values: only masks of exact values",
    ),
    "missing_mask for a key that is none": (
        TWO_FILES | {"options": {"missing_mask": {"lung": "error"}}},
        r"options\.missing_mask: give one value, or one for each key of masks",
    ),
    "missing_mask by key with one file": (
        {"options": {"missing_mask": {1: "error", 2: "error"}}},
        r"options\.missing_mask: give one value",
    ),
    "unknown missing_mask of a key": (
        TWO_FILES | {"options": {"missing_mask": {"lung": "error", "heart": "skip"}}},
        r"options\.missing_mask='skip': must be one of error, exclude, absent, unlabelled",
    ),
    "union of what may not be annotated": (
        TWO_FILES
        | {"concepts": {"lung": "lung", "heart": "heart", "*": "organ"}, "options": {"missing_mask": "unlabelled"}},
        r"missing_mask: the concept of '\*' needs the files of all keys",
    ),
}


@pytest.mark.parametrize("changes, message", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named(changes, message, make_spec):
    with pytest.raises(ValueError, match=message):
        make_spec(**changes)


def test_a_union_may_overlap_its_parts_and_the_parts_not_each_other(make_spec):
    concepts = {1: "artery", 2: "vein", "*": "vessel"}
    assert make_spec(concepts=concepts).exclusive_concepts == ("artery", "vein")
    assert make_spec(concepts=concepts, exclusive=[]).exclusive_concepts == ()


def test_a_union_of_files_needs_all_files_or_their_absence(folder, save, reader_of):
    save(folder / "images/a.png", GREY)
    save(folder / "lungs/a.png", SQUARE)
    settings = TWO_FILES | {"concepts": {"lung": "lung", "heart": "heart", "*": "organ"}}
    masks = masks_of(reader_of(**settings, options={"missing_mask": {"lung": "error", "heart": "absent"}}))
    assert {concept: found.areas_px.tolist() for concept, found in masks.items()} == {
        "lung": [100],
        "heart": [],
        "organ": [100],
    }
    save(folder / "hearts/a.png", BAR)
    masks = masks_of(reader_of(**settings, instances="labels"))
    assert masks["organ"].areas_px.tolist() == [100, 90]
    assert np.array_equal(masks["organ"].stack(), [SQUARE, BAR])


def test_touching_parts_are_one_component_of_the_union(folder, save, reader_of):
    below = np.roll(SQUARE, 10, axis=0)
    one_pair(folder, save, SQUARE + 2 * below)
    masks = masks_of(reader_of(concepts={1: "artery", 2: "vein", "*": "vessel"}, instances="components"))
    assert [len(masks[concept]) for concept in ("artery", "vein", "vessel")] == [1, 1, 1]
    assert masks["vessel"].areas_px.tolist() == [200]


def test_holes_are_filled(folder, save, reader_of):
    ring = SQUARE.copy()
    ring[12:18, 7:13] = False
    one_pair(folder, save, ring)
    masks = masks_of(reader_of(**ONE, options={"threshold": 127, "fill": "holes"}))
    assert np.array_equal(masks["organ"].union(), SQUARE)


def test_blank_values_are_white_in_the_image_and_no_concept(folder, save, reader_of):
    one_pair(folder, save, SQUARE + 5 * BAR)
    reader = reader_of(options={"blank_values": [5]})
    image = reader.image(reader.item("a"))
    assert (image[BAR] == 255).all() and np.array_equal(image[~BAR][:, 0], GREY[~BAR])
    assert np.array_equal(masks_of(reader)["left square"].union(), SQUARE)
    assert (reader_of(options={"blank_values": [5], "ignore_values": "all"}).image(reader.item("a"))[BAR] == 255).all()


def test_an_ignored_file_is_as_if_it_were_not_there_but_listed(folder, save, reader_of):
    one_pair(folder, save, SQUARE.astype(np.uint8))
    save(folder / "masks/b.png", BAR)
    reader = reader_of(ignore_files={"masks/b.png": "belongs to nothing", "masks/c.png": "is not there"})
    assert [(p.item, p.reason, p.expected) for p in reader.problems()] == [("masks/b.png", "belongs to nothing", True)]


def test_empty_items_and_copies_are_left_out_when_the_set_is_prepared(tmp_path, make_spec):
    folder = tmp_path / "data/small"
    pixels = np.arange(40 * 60 * 3).reshape(40, 60, 3)
    for name, (image, mask) in {"a": (1, SQUARE), "b": (2, SQUARE), "c": (1, BAR), "d": (3, ~SQUARE & SQUARE)}.items():
        write(folder / f"images/{name}.png", (pixels * image) % 251, compress_level="abcd".index(name))
        write(folder / f"masks/{name}.png", mask.astype(np.uint8))
    data = data_config(tmp_path)

    def left(**changes):
        make_spec(**changes)
        prepare(prepare_config(data), [make_spec.folder])
        return "".join(dict.fromkeys(row["item"] for row in rows_of(data))), exclusions_of(data)

    assert left() == ("abcd", [])
    assert left(keep="non_empty") == ("abc", [("d", "no instance of any concept (keep: non_empty)")])
    assert left(copies="first") == ("abd", [("c", "the same image as a (copies: first)")])
    assert left(copies="none", keep="non_empty")[0] == "b"


def test_what_a_union_holds_is_counted_once(tmp_path, make_spec):
    write(tmp_path / "data/small/images/a.png", GREY)
    write(tmp_path / "data/small/masks/a.png", SQUARE + 2 * BAR)
    make_spec(concepts={1: "artery", 2: "vein", "*": "vessel"}, instances="components")
    (found,) = prepare(prepare_config(data_config(tmp_path)), [make_spec.folder])
    assert (found.annotations, found.median_area_px) == (2, 95.0)


# Where a data set lies


def test_a_root_may_have_several_names_but_be_there_once(tmp_path, make_spec):
    spec = make_spec(root=["Small Set (2020)", "small-set"])
    (tmp_path / "data/small/small-set/images").mkdir(parents=True)
    assert open_reader(spec, tmp_path / "data", tmp_path).root == tmp_path / "data/small/small-set"
    (tmp_path / "data/Small Set (2020)/images").mkdir(parents=True)
    with pytest.raises(ValueError, match="two copies"):
        open_reader(spec, tmp_path / "data", tmp_path)


def test_what_a_download_unpacks_may_lie_in_a_folder_named_like_the_data_set(tmp_path, make_spec):
    spec = make_spec(root="Small Set (2020)")
    (tmp_path / "data/small/images").mkdir(parents=True)
    assert open_reader(spec, tmp_path / "data", tmp_path).root == tmp_path / "data/small"


def test_a_root_that_is_the_data_root_itself_counts_only_if_it_holds_the_images(tmp_path, make_spec):
    spec = make_spec(root=".")
    (tmp_path / "data/other").mkdir(parents=True)
    with pytest.raises(ValueError, match="data set 'small': no folder"):
        open_reader(spec, tmp_path / "data", tmp_path)
    (tmp_path / "data/images").mkdir()
    assert open_reader(spec, tmp_path / "data", tmp_path).root == tmp_path / "data"


def test_the_hint_of_a_set_is_said_where_no_image_is_found(folder, save, make_spec, tmp_path):
    save(folder / "masks/a.png", SQUARE)
    make_spec(hint="draw the images yourself")
    reader = open_reader(load_spec(make_spec.folder / "small.yaml"), tmp_path / "data", tmp_path)
    with pytest.raises(ValueError, match=r"no file fits images.*; draw the images yourself"):
        reader.items()
