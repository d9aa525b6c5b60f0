"""Evaluation through the scripts: the same table with one and two processes, the files it writes, what it refuses."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from medsam3.evaluation.measurement import write_evaluation
from medsam3.files import file_hash
from medsam3.results.findings import Evaluation, Journal
from tests.scripts import run_script

EVALUATE = ["checkpoint=tiny", "image_size=56", "split=[mni152]", "evaluation.images=6", "device=cpu"]


@pytest.mark.slow
def test_two_processes_go_on_where_one_was_killed_and_give_the_same_files(data, tmp_path, monkeypatch):
    asked = [*EVALUATE, *data, "evaluation=recommended", "evaluation.metrics=[dice,nsd,hd95]", "evaluation.workers=1"]
    asked += ["evaluation.foreign.hard=1", "evaluation.foreign.easy=1"]
    asked += ["evaluation.synonyms=true", "evaluation.instances=true"]
    journal, discard = tmp_path / "runs/two/unfinished", Journal.discard

    def kept(self: Journal) -> None:
        if self.folder.name == journal.name:
            shutil.copytree(self.folder, journal)
        discard(self)

    monkeypatch.setattr(Journal, "discard", kept)
    run_script("evaluate.py", *asked, "name=one", cwd=tmp_path)
    (file,) = journal.iterdir()
    question, *lines = file.read_bytes().splitlines(keepends=True)
    assert len(lines) == 6
    file.write_bytes(question + lines[0] + lines[1] + lines[2][:40])
    done = run_script("evaluate.py", *asked, "name=two", cwd=tmp_path, processes=2)
    assert "resumes  2 images are done already" in done.stdout
    one, two = tmp_path / "runs/one", tmp_path / "runs/two"
    tables = ("results.csv", "instances.csv", "synonyms.csv")
    for name in (*tables, "results.json", "table.md", "prompts.md", "refusals.md"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    assert sorted(p.name for p in (one / "overlays").iterdir()) == sorted(p.name for p in (two / "overlays").iterdir())
    assert not list(two.glob("unfinished*"))


def test_results_json_is_the_mean_of_results_csv_and_every_query_has_a_row(data, tmp_path):
    done = run_script("evaluate.py", *EVALUATE, *data, "name=run", cwd=tmp_path)
    assert re.search(r"time     [\d.]+ ms per image: reading [\d.]+, model [\d.]+, metrics [\d.]+", done.stdout)
    with (tmp_path / "runs/run/results.csv").open() as file:
        rows = list(csv.DictReader(file))
    result = json.loads((tmp_path / "runs/run/results.json").read_text())
    assert len(rows) == 6 * 3 and {row["concept"] for row in rows} == {"brain", "gray matter", "white matter"}
    score = result["rules"]["top1"]["datasets"]["mni152"]
    assert score["queries"] == 18 and score["images"] == 6
    assert score["values"]["dice"] == pytest.approx(np.mean([float(row["dice"]) for row in rows]), abs=1e-6)
    picture = next((tmp_path / "runs/run/overlays").iterdir())
    assert Image.open(picture).size[0] > 600


def evaluate(run: Path, data: list[str], cwd: Path, *overrides: str, check: bool = True):
    """Evaluate a run at its own image size."""
    common = [*EVALUATE[2:], *data, f"checkpoint={run}"]
    return run_script("evaluate.py", *common, *overrides, cwd=cwd, check=check)


def question(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())["question"]


def test_a_checkpoint_is_not_evaluated_on_what_it_was_trained_on(run, data, tmp_path):
    done = evaluate(run, data, tmp_path, "data.split.by=group", check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "was split by image in training and is split by group now" in done.stderr
    assert "allow_training_rows=true" in done.stderr
    evaluate(run, data, tmp_path, "data.split.by=group", "allow_training_rows=true")
    assert question(tmp_path / "runs/evaluation")["training_rows_allowed"] is True
    told = "TRAINED on rows of mni152: it was split by image in training and is split by group now"
    assert told in (tmp_path / "runs/evaluation/table.md").read_text()


def test_the_size_is_the_checkpoints_own_and_another_one_is_said_and_recorded(run, data, tmp_path):
    done = evaluate(run, data, tmp_path, "name=own")
    assert "WARNING" not in done.stdout
    asked = question(tmp_path / "runs/own")
    assert (asked["image_size"], asked["own_image_size"]) == (56, 56)
    done = evaluate(run, data, tmp_path, "name=other", "image_size=112", f"baseline={tmp_path}/runs/own/results.json")
    assert "WARNING  image_size=112: the checkpoint was trained at 56 px" in done.stdout
    asked = question(tmp_path / "runs/other")
    assert (asked["image_size"], asked["own_image_size"]) == (112, 56)
    assert "- image_size: 56 -> 112\n" in (tmp_path / "runs/other/table.md").read_text()


def test_a_baseline_of_fewer_images_or_of_another_truth_is_refused(run, data, tmp_path):
    evaluate(run, data, tmp_path, "name=few", "evaluation.images=3")
    baseline = f"baseline={tmp_path}/runs/few/results.json"
    done = evaluate(run, data, tmp_path, baseline, check=False)
    assert done.returncode == 2 and "asked on other images" in done.stderr
    assert "rows.mni152.images: 3 -> 6" in done.stderr
    table, content = tmp_path / "runs/few/results.csv", tmp_path / "runs/few/results.json"
    first = next(csv.DictReader(table.open()))
    written = file_hash(table)
    table.write_text(table.read_text().replace(f",{first['truth_px']},", ",77,"))
    content.write_text(content.read_text().replace(written, file_hash(table)))
    done = evaluate(run, data, tmp_path, baseline, "evaluation.images=3", "name=again", check=False)
    assert done.returncode == 2 and "or has another truth: mni152 | " in done.stderr
    assert not (tmp_path / "runs/again/table.md").exists()


def test_a_checkpoint_that_diverged_is_refused(run, data, tmp_path):
    shutil.copytree(run / "best", tmp_path / "broken")
    weights = load_file(tmp_path / "broken/model.safetensors")
    weights["text_projection.bias"][0] = float("nan")
    save_file(weights, tmp_path / "broken/model.safetensors", {"format": "pt"})
    done = evaluate(tmp_path / "broken", data, tmp_path, check=False)
    assert done.returncode == 2 and "1 of 404 tensors hold NaN or infinity (text_projection.bias)" in done.stderr


def test_one_concept_has_no_table_of_prompts(run, data, tmp_path):
    (tmp_path / "runs/run").mkdir(parents=True)
    (tmp_path / "runs/run/prompts.md").write_text("of an earlier evaluation")
    write_evaluation(tmp_path / "runs/run", Evaluation(findings=[], scores={}, prompt_dice={}, overlays={}), True)
    assert not (tmp_path / "runs/run/prompts.md").exists()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["split=nope"], "nope"),
        (["split=external"], "none of its data sets is prepared"),
        (["checkpoint=no/such/folder"], "no/such/folder"),
        (["image_size=null"], "checkpoint=tiny has no size of its own: set image_size"),
        (["prediction.score_threshold=5"], "prediction.score_threshold=5.0: must be"),
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
    assert "mni152" in question(tmp_path / "runs/evaluation")["rows"]


def test_overlay_folder_holds_only_pictures_of_this_evaluation(data, tmp_path):
    old = tmp_path / "runs/run/overlays/old.png"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"")
    run_script(
        "evaluate.py", *EVALUATE, *data, "name=run", "evaluation.images=1", "evaluation.overlays=1", cwd=tmp_path
    )
    assert len(list(Path(old.parent).iterdir())) == 3
