"""Images that a checkpoint was trained on are refused, by their split and by their content, whatever their data set is
called and in whatever layout the checkpoint is."""

from __future__ import annotations

import dataclasses
import json

import pytest

from medsam3.config import EvaluationConfig, ForeignConfig
from medsam3.data.corpus import Corpus, open_corpus
from medsam3.evaluation.evaluator import asked_images
from medsam3.evaluation.honesty import (
    TrainingRecord,
    chosen_on,
    refuse_training_rows,
    trained_on,
    training_images,
    training_record,
)
from medsam3.preparation.prepare import prepare
from tests.conftest import prepare_config

ALL = EvaluationConfig(
    metrics=["dice", "iou"], instances=False, instance_score=0.05,
    concepts="ours", ask="present", foreign=ForeignConfig(hard=0, easy=0, seed=0),
    synonyms=False, images=None, overlays=0, save_masks=False, workers=0,
)  # fmt: skip


@pytest.fixture
def corpus(small_set, make_spec) -> Corpus:
    """`small`, with a training part, and `copy`: the same files as an external set."""
    _, data = small_set
    make_spec(name="copy", used_for=["external"])
    names = ["small", "copy"]
    prepare(prepare_config(data, names), [make_spec.folder])
    return open_corpus(data, names, [make_spec.folder])


def record_of(corpus: Corpus, **changes) -> TrainingRecord:
    """Of a training on `small`."""
    images = {"small": training_images(corpus)["small"]}
    splits = {"small": corpus.split_hash("small")}
    record = TrainingRecord(
        image_size=56, split_by="image", splits=splits, validation={}, epoch=1, step=1, images=images
    )
    return dataclasses.replace(record, **changes)


def refuse(corpus: Corpus, record: TrainingRecord, **parts: str) -> None:
    refuse_training_rows("runs/x", record, corpus, parts, asked_images(corpus, parts, ALL))


def test_the_validation_part_passes(corpus):
    refuse(corpus, record_of(corpus), small="val")


@pytest.mark.parametrize("splits", [None, {}])
def test_the_training_part_is_refused_by_its_split_and_by_its_images(corpus, splits):
    record = record_of(corpus) if splits is None else record_of(corpus, splits=splits)
    reason = "its part 'train' was trained on" if splits is None else "10 of the 10 images asked for"
    with pytest.raises(ValueError, match=reason):
        refuse(corpus, record, small="train")


def test_the_same_files_under_another_name_are_refused_with_what_they_were(corpus):
    with pytest.raises(ValueError, match=r"10 of the 12 images .* part of small\): p0_00, .*allow_training_rows=true"):
        refuse(corpus, record_of(corpus), copy="external")


def test_where_training_rows_are_allowed_they_are_told(corpus):
    parts = {"small": "train", "copy": "external"}
    reasons = trained_on(record_of(corpus), corpus, parts, asked_images(corpus, parts, ALL))
    assert reasons["small"] == "its part 'train' was trained on" and "10 of the 12 images" in reasons["copy"]
    parts = {"small": "val"}
    assert trained_on(record_of(corpus), corpus, parts, asked_images(corpus, parts, ALL)) == {}


def test_what_a_checkpoint_had_seen_before_it_was_trained_further_counts(corpus, tmp_path):
    (tmp_path / "training.json").write_text(record_of(corpus, images={"small": ["01"], "busi": ["02"]}).json())
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    images = training_images(corpus, tmp_path)
    assert images["busi"] == ["02"] and "01" in images["small"] and len(images["small"]) == 11


def test_the_rows_that_chose_a_checkpoint_are_named(corpus):
    record = record_of(corpus)
    assert chosen_on(None, corpus, {"small": "val"}) == []
    assert chosen_on(record, corpus, {"small": "val", "copy": "external"}) == ["small"]
    assert chosen_on(record, corpus, {"small": "test"}) == []
    assert chosen_on(dataclasses.replace(record, test_fraction=0.1), corpus, {"small": "test"}) == ["small"]


def test_another_split_is_refused(corpus):
    with pytest.raises(ValueError, match="is not the one used in training"):
        refuse(corpus, record_of(corpus, splits={"small": "00"}), small="val")
    with pytest.raises(ValueError, match="was split by group in training and is split by image now"):
        refuse(corpus, record_of(corpus, split_by="group"), small="val")


def test_fingerprints_of_an_older_kind_are_refused_not_taken_for_other_images(corpus):
    old = record_of(corpus, splits={}, images={"small": ["0" * 16]})
    with pytest.raises(ValueError, match="knows 1 training images by fingerprints of an older kind"):
        refuse(corpus, old, copy="external")


def test_a_record_without_images_still_guards_by_the_split(corpus):
    old = record_of(corpus, images={})
    refuse(corpus, old, copy="external")
    with pytest.raises(ValueError, match="was trained on"):
        refuse(corpus, old, small="train")


def test_a_record_is_read_back_from_best_and_from_last_and_for_the_run(corpus, tmp_path):
    record = record_of(corpus)
    for name, weights in (("best", "model.safetensors"), ("last", "state.pt")):
        (tmp_path / "run" / name).mkdir(parents=True)
        (tmp_path / "run" / name / weights).write_bytes(b"")
    (tmp_path / "run/best/training.json").write_text(record.json())
    (tmp_path / "run/best/model.safetensors").unlink()
    (tmp_path / "run/best/pytorch_model.bin").write_bytes(b"")
    for path in ("run", "run/best", "run/last", "run/last/state.pt"):
        assert training_record(tmp_path / path) == record


def test_a_foreign_file_beside_a_record_is_not_taken_for_it(corpus, tmp_path):
    (tmp_path / "training.json").write_text(record_of(corpus).json())
    (tmp_path / "sam3.pt").write_bytes(b"")
    assert training_record(tmp_path / "sam3.pt") is None


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"image_size": 1})])
def test_a_damaged_record_is_named(text, tmp_path):
    (tmp_path / "training.json").write_text(text)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="its record of training is damaged"):
        training_record(tmp_path)
