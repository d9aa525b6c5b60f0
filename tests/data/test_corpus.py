"""The data of a run against its files and split files."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest

from medsam3.data.corpus import open_corpus
from medsam3.data.manifest import split_file
from medsam3.preparation.prepare import prepare
from tests.conftest import data_config, prepare_config
from tests.data.conftest import prepared


def test_the_corpus_answers_for_its_data_sets(corpus, small_set):
    assert corpus.split_by == "image"
    assert corpus.split_file("small") == split_file(small_set[1].splits, "small")
    assert corpus.exclusive("small") == ("left square", "right square")
    assert len(corpus.images("small", "all")) == 12 == len(corpus.images("small", "val")) + 10
    assert corpus.describe() == "1 of yours (small): 10 train, 2 val images (parts by image)"
    data = dataclasses.replace(small_set[1], split=dataclasses.replace(small_set[1].split, test_fraction=0.075))
    with_test = open_corpus(data, "small", [corpus.split_file("small").parent.parent / "specs"])
    assert with_test.describe() == "1 of yours (small): 10 train, 1 val, 1 test images (parts by image)"
    data = dataclasses.replace(data, split=dataclasses.replace(data.split, by="group"))
    few = open_corpus(data, "small", [corpus.split_file("small").parent.parent / "specs"])
    assert few.describe() == (
        "1 of yours (small): 9 train, 3 val images (parts by group); no test part, too few groups: small: val chooses "
        "and reports"
    )


def test_images_that_came_after_prepare_are_said(small_set, make_spec, tmp_path):
    folder = tmp_path / "data/small"
    (folder / "masks/p0_01.png").unlink()
    prepare(prepare_config(small_set[1], skip_broken=True), [make_spec.folder])
    for kind in ("images", "masks"):
        shutil.copy(folder / kind / "p0_00.png", folder / kind / "p9_00.png")
    shutil.copy(folder / "masks/p0_00.png", folder / "masks/p0_01.png")  # was left out, and is in the list
    line = open_corpus(small_set[1], "small", [make_spec.folder]).describe()
    assert line.endswith("(parts by image); IN NO PART are 1 images of small that came after prepare_data.py: p9_00")


def test_files_gone_and_concepts_renamed_since_prepare_are_errors(corpus, small_set, make_spec, tmp_path):
    folders = [make_spec.folder]
    make_spec(group=r"^(p\d+)_", concepts={1: "left square", 2: "right box"})
    with pytest.raises(
        ValueError, match=r"concepts that .*small\.yaml lacks: right square; .*prepare_data\.py datasets=small"
    ):
        open_corpus(small_set[1], "small", folders)
    make_spec(group=r"^(p\d+)_")
    (tmp_path / "data/small/images/p0_01.png").unlink()
    with pytest.raises(ValueError, match=r"lists 1 images that are not in .*data/small: p0_01; complete the download"):
        open_corpus(small_set[1], "small", folders)


def test_a_volume_that_broke_after_prepare_is_said_with_the_readers_reason(tmp_path, make_spec):
    for name in "ab":
        for place in ("images", "masks"):
            (tmp_path / "data/small" / place).mkdir(parents=True, exist_ok=True)
            np.save(tmp_path / f"data/small/{place}/{name}.npy", np.eye(4)[None].repeat(3, axis=0).astype(np.float32))
    volumes = {"images": "images/{id}.npy", "masks": "masks/{id}.npy", "reader": "label_volume"}
    make_spec(**volumes, concepts={1: "organ"}, options={"axis": 0, "window": [0, 1]})
    prepared(data := data_config(tmp_path), make_spec.folder, "small")
    broken = np.full((3, 4, 4), np.nan, np.float32)
    np.save(tmp_path / "data/small/images/b.npy", broken)
    with pytest.raises(ValueError) as error:
        open_corpus(data, ["small"], [make_spec.folder])
    assert "lists 3 images that are not in" in str(error.value) and "complete the download" not in str(error.value)
    assert f"because of\n  b: {tmp_path}/data/small/images/b.npy: holds NaN or infinite voxels" in str(error.value)
    (tmp_path / "data/small/images/b.npy").unlink()
    (tmp_path / "data/small/masks/b.npy").unlink()
    with pytest.raises(ValueError, match=r"lists 3 images .*b/s000, b/s001, b/s002; complete the download, or run"):
        open_corpus(data, ["small"], [make_spec.folder])


def test_a_set_without_validation_images_is_refused_before_any_work(small_set, make_spec, tmp_path):
    corpus = prepared(small_set[1], make_spec.folder, "small")
    corpus.require(("train", "val"))
    make_spec(group="^(p)")  # one patient
    one_group = prepared(data_config(tmp_path, by="group"), make_spec.folder, "small")
    with pytest.raises(ValueError, match=r"small: no image with a mask in part 'val' .*\(parts by group\).*by=image"):
        one_group.require(("train", "val"))
    make_spec(used_for=["external"])
    external = prepared(small_set[1], make_spec.folder, "small")
    with pytest.raises(ValueError, match=r"no image with a mask in part 'train' .*leave it out of datasets$"):
        external.require(("train", "val"))


def test_prompts_in_the_words_of_the_authors(shared_realdata, tmp_path, make_spec):
    data = data_config(tmp_path, shared_realdata)
    assert prepared(data, make_spec.folder, "drive").prompt("drive", "retinal blood vessel") == "retinal blood vessel"
    data.prompts = "paper"
    assert open_corpus(data, "drive").prompt("drive", "retinal blood vessel") == "Retinal Blood Vessel"
