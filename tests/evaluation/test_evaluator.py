"""Evaluation through the scripts: the same table with one and two processes, the files it writes, what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.scripts import run_script, train_template

EVALUATE = ["checkpoint=tiny", "image_size=56", "split=[mni152]", "evaluation.images=6", "device=cpu"]


@pytest.mark.slow
def test_one_and_two_processes_give_the_same_files(data, tmp_path):
    run_script("evaluate.py", *EVALUATE, *data, "name=one", cwd=tmp_path)
    run_script("evaluate.py", *EVALUATE, *data, "name=two", cwd=tmp_path, processes=2)
    for file in ("results.csv", "results.json", "table.md", "prompts.md"):
        assert (tmp_path / "runs/one" / file).read_bytes() == (tmp_path / "runs/two" / file).read_bytes()
    assert sorted(p.name for p in (tmp_path / "runs/one/overlays").iterdir()) == sorted(
        p.name for p in (tmp_path / "runs/two/overlays").iterdir()
    )


def test_results_json_is_the_mean_of_results_csv_and_every_query_has_a_row(data, tmp_path):
    run_script("evaluate.py", *EVALUATE, *data, "name=run", cwd=tmp_path)
    with (tmp_path / "runs/run/results.csv").open() as file:
        rows = list(csv.DictReader(file))
    result = json.loads((tmp_path / "runs/run/results.json").read_text())
    assert len(rows) == 6 * 3 and {row["concept"] for row in rows} == {"brain", "gray matter", "white matter"}
    assert result["datasets"]["mni152"]["queries"] == 18 and result["datasets"]["mni152"]["images"] == 6
    assert result["datasets"]["mni152"]["dice"] == pytest.approx(
        np.mean([float(row["dice"]) for row in rows]), abs=1e-6
    )
    picture = next((tmp_path / "runs/run/overlays").iterdir())
    assert Image.open(picture).size[0] > 600


def test_a_checkpoint_is_not_evaluated_on_what_it_was_trained_on(data, tmp_path):
    train_template(tmp_path, data, "name=run", "trainer.max_steps=1")
    common = [*EVALUATE[1:], *data, "checkpoint=runs/run"]
    run_script("evaluate.py", *common, cwd=tmp_path)
    done = run_script("evaluate.py", *common, "data.split.by=group", cwd=tmp_path, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "was split by image in training and is split by group now" in done.stderr
    assert "allow_training_rows=true" in done.stderr
    run_script("evaluate.py", *common, "data.split.by=group", "allow_training_rows=true", cwd=tmp_path)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["split=nope"], "nope"),
        (["split=external"], "none of its data sets is prepared"),
        (["checkpoint=no/such/folder"], "no/such/folder"),
        (["baseline=no_such.json"], "baseline=no_such.json: no such file"),
    ],
)
def test_a_wrong_request_ends_in_one_message(overrides, expected, data, tmp_path):
    done = run_script("evaluate.py", *EVALUATE, *data, *overrides, cwd=tmp_path, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert expected in done.stderr


def test_a_data_set_of_the_split_that_is_not_prepared_is_named(data, tmp_path):
    done = run_script("evaluate.py", *EVALUATE, *data, "split=[mni152,drive]", cwd=tmp_path)
    assert "missing  drive: not prepared, left out" in done.stdout
    assert "mni152" in json.loads((tmp_path / "runs/evaluation/results.json").read_text())["datasets"]


def test_overlay_folder_holds_only_pictures_of_this_evaluation(data, tmp_path):
    old = tmp_path / "runs/run/overlays/old.png"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"")
    run_script("evaluate.py", *EVALUATE, *data, "name=run", "evaluation.overlays=1", cwd=tmp_path)
    assert len(list(Path(old.parent).iterdir())) == 3
