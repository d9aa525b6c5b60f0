"""Table 3: the published figures are the paper's, ours stand beside them, and a question that differs is marked."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from medsam3.registry.spec import load_specs
from medsam3.reports.table3 import published_table, question_differs, write_table_3
from medsam3.results.findings import Evaluation
from tests.reports.test_tables import QUESTION, ROWS, score_of

NAMES = ["drive", "m2caiseg"]
QUESTIONS = dataclasses.replace(QUESTION, rows=dict.fromkeys(NAMES, ROWS))


def test_the_published_rows_have_the_papers_averages():
    table, specs = published_table(), load_specs("internal") | load_specs("external")
    assert set(table) == set(specs)
    for use, expected in (("internal", [54.0, 43.3, 77.0, 67.3]), ("external", [11.9, 8.0, 73.9, 64.4])):
        rows = [table[name] for name in load_specs(use)]
        means = np.mean([[*row.sam3, *row.medical_sam3] for row in rows], axis=0)
        assert means == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"drive": "", "m2caiseg": "the paper asks for tissue alone"}),
        ({"concepts": "paper"}, {"drive": "", "m2caiseg": ""}),
        ({"concepts": "paper", "ask": "all"}, dict.fromkeys(NAMES, "concepts that are not in the image")),
    ],
)
def test_what_the_paper_asked_otherwise_is_told(changes, expected):
    question, specs = dataclasses.replace(QUESTIONS, **changes), load_specs(NAMES)
    for name, words in expected.items():
        found = question_differs(question, name, specs[name])
        assert words in "; ".join(found) and bool(found) == bool(words)


def test_rule_threshold_part_and_split_count_too():
    spec = load_specs(["drive"])["drive"]
    rows = dataclasses.replace(ROWS, split_by="group", part="test")
    prediction = dataclasses.replace(QUESTION.prediction, score_threshold=0.1)
    question = dataclasses.replace(QUESTIONS, rows={"drive": rows}, prediction=prediction)
    assert len(question_differs(question, "drive", spec)) == 3
    union = dataclasses.replace(prediction, rules=["union"])
    assert "mask rule union" in question_differs(dataclasses.replace(question, prediction=union), "drive", spec)[0]


def test_boxes_fewer_images_other_words_and_rows_of_training_count_too():
    specs = load_specs(["drive", "segthy"])
    asked = dataclasses.replace(ROWS, beyond=3, prompts={"thyroid gland": "thyroid gland"})
    question = dataclasses.replace(QUESTION, rows={"drive": ROWS, "segthy": asked}, concepts="paper")
    assert question_differs(question, "segthy", specs["segthy"]) == [
        "other words: 'thyroid gland' for 'thyroid nodule' (data.prompts=paper)",
        "3 images fewer (evaluation.images)",
    ]
    overlapping = dataclasses.replace(QUESTION.prediction, resolve_overlaps=False)
    wrong = dataclasses.replace(question, prompt="box", training_rows_allowed=True, prediction=overlapping)
    assert question_differs(wrong, "drive", specs["drive"]) == [
        "prompt=box, not text",
        "overlaps are not resolved",
        "rows that the model was trained on were not refused",
    ]


def test_the_files(tmp_path):
    scores = {name: score_of({"dice": 0.5, "iou": 0.4}) for name in (*NAMES, "mni152")}
    old = {name: score_of({"dice": 0.2, "iou": 0.1}) for name in scores}
    evaluation = Evaluation(findings=[], scores={"top1": scores}, prompt_dice={}, overlays={})
    corpus = SimpleNamespace(specs=load_specs([*NAMES, "mni152"]))
    write_table_3(tmp_path, corpus, QUESTIONS, evaluation, SimpleNamespace(scores={"top1": old}))
    markdown = (tmp_path / "table3.md").read_text()
    assert "| DRIVE | 20.0 | 50.0 | +30.0 | 24.8 | 55.8 | 10.0 | 40.0 | +30.0 | 14.2 | 39.2 | 80.0 |" in markdown
    assert "| m2caiSeg* | 20.0 | 50.0 | +30.0 | 67.7 | 88.1 |" in markdown and "- m2caiSeg: the paper asks" in markdown
    assert "| Avg.* | 20.0 | 50.0 | +30.0 | 46.2 | 71.9 |" in markdown and "MNI" not in markdown
    assert "DRIVE,20.0,50.0,+30.0,24.8,55.8" in (tmp_path / "table3.csv").read_text()
    tex = (tmp_path / "table3.tex").read_text()
    assert r"DRIVE & 20.0 & 50.0 & +30.0 & 24.8" in tex and r"Dice $\Delta$" in tex and tex.count(r"\\") == 4
    without = Evaluation(findings=[], scores={"top1": {"mni152": scores["mni152"]}}, prompt_dice={}, overlays={})
    write_table_3(tmp_path, corpus, QUESTIONS, without, None)
    assert not list(tmp_path.iterdir())
