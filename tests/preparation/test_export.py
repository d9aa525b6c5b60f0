"""nnU-Net's layout: label values, regions, folds, against the masks that the reader gives."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from medsam3.data.corpus import open_corpus
from medsam3.files import case_names
from medsam3.preparation.export import coding_of, export_nnunet
from medsam3.preparation.prepare import prepare
from tests.conftest import prepare_config


def test_concepts_apart_get_values_and_nested_ones_regions():
    apart = coding_of([0, 1, 2], ["a", "b"], "x")
    assert apart.labels == {"background": 0, "a": 1, "b": 2} and apart.order is None
    nested = coding_of([0, 0b100, 0b101, 0b110], ["gray", "white", "brain"], "x")
    assert nested.concepts[0] == "brain"
    assert nested.labels == {"background": 0, "brain": [1, 2, 3], "gray": 2, "white": 3}
    assert nested.order == [1, 2, 3] and nested.value_of == {0b100: 1, 0b101: 2, 0b110: 3}


def test_overlaps_that_no_label_map_holds_are_refused():
    with pytest.raises(ValueError, match=r"x: no label map holds both .*export_concepts"):
        coding_of([0, 1, 2, 3], ["a", "b"], "x")


def test_ids_that_become_the_same_file_name_are_refused():
    assert case_names(["v/z0", "v z1"]) == {"v/z0": "v_z0", "v z1": "v_z1"}
    with pytest.raises(ValueError, match="the same file name 'v_z0'"):
        case_names(["v/z0", "v_z0"])


def test_a_prepared_set_is_written_with_our_parts(small_set, make_spec, tmp_path):
    _, data = small_set
    settings = prepare_config(data)
    prepare(settings, [make_spec.folder])
    settings.export_folder = str(tmp_path / "nn")
    (folder,) = export_nnunet(settings, [make_spec.folder])
    assert folder.name == "Dataset701_small"
    facts = json.loads((folder / "dataset.json").read_text())
    assert facts["numTraining"] == 12 and facts["file_ending"] == ".png"
    corpus = open_corpus(data, "small", [make_spec.folder])
    (fold,) = json.loads((tmp_path / "nn/nnUNet_preprocessed/Dataset701_small/splits_final.json").read_text())
    for part in ("train", "val"):
        assert fold[part] == sorted(rows.item for rows in corpus.images("small", part))
    reader = corpus.readers["small"]
    for item in reader.items():
        labels = np.asarray(Image.open(folder / f"labelsTr/{item.id}.png"))
        for concept, instances in reader.masks(item).items():
            assert np.array_equal(labels == facts["labels"][concept], instances.union()), (item.id, concept)
        assert np.array_equal(np.asarray(Image.open(folder / f"imagesTr/{item.id}_0000.png")), reader.image(item))
