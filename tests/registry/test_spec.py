"""Data set files: every shipped one loads, and each mistake is named with the legal values."""

from __future__ import annotations

import pytest
import yaml

from medsam3.layouts.readers import check_reader
from medsam3.registry.spec import PAPER, SPEC_FOLDER, load_spec, load_specs
from tests.conftest import SMALL_SET


@pytest.mark.parametrize("path", sorted(SPEC_FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_data_set_file_loads(path):
    spec = load_spec(path)
    assert spec.name == path.stem
    assert spec.concept_names


def test_values_arrive_in_typed_form():
    spec = load_spec(SPEC_FOLDER / "mni152.yaml")
    assert spec.images == ("mni_icbm152_t1_{id}_converted.nii.gz",)
    assert spec.concepts == {"t1": "brain", "gm": "gray matter", "wm": "white matter"}
    assert spec.exclusive == ("gray matter", "white matter")
    assert spec.mask_patterns()["gm"] == ("mni_icbm152_gm_{id}_converted.nii.gz",)
    assert load_spec(SPEC_FOLDER / "drive.yaml").used_for == ("train", "internal")


def test_what_decides_changes_the_hash_and_what_is_printed_does_not(make_spec):
    changes = ({}, {"title": "Other"}, {"exclusive": []}, {"keep": "non_empty"})
    hashes = [make_spec(**change).content_hash for change in changes]
    assert hashes[0] == hashes[1] and len(set(hashes)) == 3


MISTAKES = {
    "unknown key": ({"concept": {1: "x"}}, ["unknown key 'concept'", "'concepts'", "Legal: name, title"]),
    "missing key": ({"title": None}, ["'title' is missing"]),
    "no use": ({"used_for": []}, ["used_for is empty", "train, internal, external"]),
    "no words": ({"concepts": {1: ""}}, ["concepts: 1: ''", "words on one line"]),
    "words in capitals and not": ({"concepts": {1: "Square", 2: "square"}}, ["'Square', 'square'", "write them alike"]),
    "words on two lines": ({"concepts": {1: "left\nsquare"}}, ["concepts: 1: 'left\\nsquare'"]),
    "a value that is ignored too": ({"options": {"ignore_values": [9, 2]}}, ["ignore_values: 2", "'right square'"]),
    "a colour twice": ({"concepts": {"#FF0000": "x", "#ff0000": "y"}}, ["'#FF0000' stands there", "second time"]),
    "a colour that is ignored too": (
        {"concepts": {"#FF0000": "x"}, "options": {"ignore_values": ["#ff0000"]}},
        ["'#FF0000'", "options.ignore_values"],
    ),
    "a label that is ignored too": (
        {"reader": "labelme_json", "masks": "masks/{id}.json", "options": {"ignore_labels": ["2"]}},
        ["ignore_labels: '2' is a key of concepts too"],
    ),
    "a root beside data.root": ({"root": "small/../../x"}, ["root='small/../../x'", "below data.root"]),
    "a root anywhere": ({"root": "/small"}, ["root='/small'", "below data.root"]),
    "images beside the folder": ({"images": "../x/{id}.png"}, ["'../x/{id}.png' must be a path below"]),
    "masks anywhere": ({"masks": "/x/{id}.png"}, ["'/x/{id}.png' must be a path below"]),
    "wrong type": ({"min_area_px": "many"}, ["min_area_px='many'", "a whole number"]),
    "truth value for a number": ({"min_area_px": True}, ["min_area_px=True"]),
    "unknown reader": ({"reader": "image_masks"}, ["reader='image_masks'", "'image_mask'", "label_volume"]),
    "unknown use": ({"used_for": ["training"]}, ["used_for='training'", "'train'", "internal, external"]),
    "unknown instances": ({"instances": "blobs"}, ["instances='blobs'", "whole, components, labels, files"]),
    "unknown modality": ({"modality": "utrasound"}, ["modality='utrasound'", "Did you mean 'ultrasound'"]),
    "no concepts": ({"concepts": {}}, ["concepts: empty"]),
    "concepts as a list": ({"concepts": ["polyp"]}, ["concepts=['polyp']", "expected a mapping"]),
    "pattern without id": ({"masks": "masks/a.png"}, ["masks", "'masks/a.png' has no {id}"]),
    "pattern that does not compile": ({"images": r"images/{id:(\d+}.png"}, ["images/{id:(", "does not compile"]),
    "bracket left open": ({"images": "images/{id.png"}, ["images/{id.png", "without its }"]),
    "placeholder of the mask only": (
        {"masks": "masks/{video}/{id}.png"},
        ["masks/{video}/{id}.png", "no image pattern"],
    ),
    "group that does not compile": ({"group": "(p"}, ["group='(p'", "regular expression"]),
    "group without brackets": ({"group": "p1"}, ["group='p1'", "brackets"]),
    "mask for no concept": ({"masks": {1: "a/{id}", 3: "b/{id}"}}, ["masks: 3 is not a key of concepts (1, 2)"]),
    "concept without mask": ({"masks": {1: "a/{id}"}}, ["concepts: 2 has no pattern"]),
    "area for whole masks": ({"min_area_px": 9}, ["min_area_px=9 has no effect"]),
    "foreign exclusive": ({"exclusive": ["spleen"]}, ["exclusive='spleen'", "left square, right square"]),
    "name of another file": ({"name": "smal"}, ["name='smal'", "name of the file"]),
    "unknown option": ({"options": {"treshold": 1}}, ["options: unknown key 'treshold'", "'threshold'"]),
    "option of a wrong type": ({"options": {"window": [1, 2, 3]}}, ["options: window=[1, 2, 3]"]),
    "threshold with two concepts": ({"options": {"threshold": 9}}, ["options.threshold", "several"]),
    "numbered instances of two concepts": ({"instances": "labels"}, ["instances: labels", "one key"]),
    "key that is no value": ({"concepts": {"polyp": "polyp"}}, ["'polyp' is neither a whole number nor a colour"]),
    "unknown annotators": ({"options": {"annotators": "mean"}}, ["annotators='mean'", "first, union"]),
    "unknown missing_mask": ({"options": {"missing_mask": "skip"}}, ["missing_mask='skip'", "error, exclude, absent"]),
    "no masks": ({"masks": None}, ["masks: the reader image_mask needs a pattern"]),
    "volume without axis": ({"reader": "label_volume"}, ["options: the key 'axis' is missing"]),
    "unknown axis": ({"reader": "label_volume", "options": {"axis": "axal"}}, ["axis='axal'", "axial, 0, 1, 2"]),
}


@pytest.mark.parametrize("changes, fragments", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named_with_file_and_legal_values(changes, fragments, tmp_path):
    content = {key: value for key, value in (SMALL_SET | changes).items() if value is not None}
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError) as error:
        check_reader(load_spec(path))
    for fragment in ["small.yaml", *fragments]:
        assert fragment in str(error.value)


def test_a_file_that_is_no_yaml_is_named(tmp_path):
    path = tmp_path / "small.yaml"
    for content in (b"name: [small", "name: Größe".encode("latin-1"), b"[" * 10_000, b"name: 2024-13-45"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"small\.yaml: cannot be read as YAML"):
            load_spec(path)


@pytest.mark.parametrize(
    "again, key",
    [
        ("title: Other", "'title'"),
        ("concepts: {1: x}", "'concepts'"),
        ("options: {1: a, 2: b, 1: c}", "1"),
        ("options: {16: a, 0x10: b}", "16"),
        ("exclude: {a: b, a: c}", "'a'"),
    ],
)
def test_a_key_that_stands_twice_is_refused_wherever_it_stands(again, key, tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL_SET) + again)
    with pytest.raises(ValueError, match=rf"small\.yaml: cannot be read as YAML: duplicate key {key}\n"):
        load_spec(path)


def test_a_use_selects_the_sets_that_have_it():
    assert {"drive", "kvasir_seg"} <= set(load_specs("train"))
    assert {"drive", "glas"} <= set(load_specs("internal"))
    assert "chase_db1" in load_specs("external")
    for use in ("train", "internal", "external"):
        assert "mni152" not in load_specs(use)


def test_the_paper_trains_on_33_sets_and_evaluates_on_7_more():
    assert (len(load_specs("train")), len(load_specs("external")), len(PAPER)) == (33, 7, 40)


def test_a_set_of_ones_own_joins_the_paper_only_when_it_is_named(make_spec):
    make_spec(used_for=["train"])
    folders = (SPEC_FOLDER, make_spec.folder)
    assert "small" not in load_specs("train", folders) and len(load_specs("train", folders)) == 33
    assert [*load_specs(["train", "small"], folders)][-1:] == ["small"] and len(
        load_specs(["train", "small"], folders)
    ) == 34


@pytest.mark.parametrize("names", [3, [], ["drive", 3], None, {"drive": 1}])
def test_what_is_no_name_is_refused(names):
    with pytest.raises(ValueError, match=r"^datasets=.*must be a data set, one of train, internal, external, example"):
        load_specs(names)


def test_names_keep_their_order_and_an_unknown_one_gets_suggestions():
    assert list(load_specs(["kvasir_seg", "drive", "kvasir_seg"])) == ["kvasir_seg", "drive"]
    assert list(load_specs("drive")) == ["drive"]
    with pytest.raises(ValueError, match=r"unknown data set 'kvasir'.*Did you mean 'kvasir_seg'.*chase_db1, .*drive"):
        load_specs(["drive", "kvasir"])


def test_a_later_folder_adds_and_replaces_data_sets(make_spec):
    make_spec()
    make_spec(name="drive", title="My DRIVE")
    folders = (SPEC_FOLDER, make_spec.folder)
    assert load_specs("small", folders)["small"].title == "Small"
    assert load_specs("drive", folders)["drive"].title == "My DRIVE"
    assert load_specs("drive")["drive"].title == "DRIVE"
