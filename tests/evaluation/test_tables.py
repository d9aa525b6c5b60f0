"""Tables, result files and pictures from hand-made results."""

from __future__ import annotations

import json

import numpy as np
import pytest

from medsam3.evaluation.pictures import PREDICTION_COLOUR, TRUTH_COLOUR, overlay
from medsam3.evaluation.scores import QueryResult, Score, mean_score, summarise
from medsam3.evaluation.tables import read_baseline, results_csv, results_json, score_table


def _result(dataset: str, item: str, concept: str, dice: float, iou: float) -> QueryResult:
    return QueryResult(dataset, item, concept, concept, 0.5, dice, iou, 10, 12)


RESULTS = [
    _result("drive", "21", "retinal blood vessel", 0.5, 0.4),
    _result("drive", "22", "retinal blood vessel", 0.7, 0.6),
    _result("papila", "RET002OD", "optic cup", 0.9, 0.8),
    _result("papila", "RET002OD", "optic disc", 1.0, 1.0),
]


def test_a_score_is_the_mean_over_queries_and_the_average_the_mean_over_data_sets():
    scores = summarise(RESULTS)
    assert scores["drive"] == Score(pytest.approx(0.6), pytest.approx(0.5), queries=2, images=2)
    assert scores["papila"] == Score(pytest.approx(0.95), pytest.approx(0.9), queries=2, images=1)
    mean = mean_score(scores)
    assert (mean.dice, mean.iou) == (pytest.approx(0.775), pytest.approx(0.7))


def test_table_has_the_columns_of_table_3_when_a_baseline_is_given():
    baseline = {"drive": Score(0.248, 0.143, 2, 2), "papila": Score(0.862, 0.787, 2, 1)}
    table = score_table(summarise(RESULTS), {"drive": "DRIVE", "papila": "PAPILA"}, baseline)
    lines = table.splitlines()
    assert lines[0] == "| Dataset | Dice baseline | Dice ours | Dice Δ | IoU baseline | IoU ours | IoU Δ |"
    assert lines[2] == "| DRIVE | 24.8 | 60.0 | +35.2 | 14.3 | 50.0 | +35.7 |"
    assert lines[4] == "| **Avg.** | 55.5 | 77.5 | +22.0 | 46.5 | 70.0 | +23.5 |"


def test_a_baseline_without_the_data_set_is_refused():
    with pytest.raises(ValueError, match="no data set papila; it has drive"):
        score_table(summarise(RESULTS), {}, {"drive": Score(0.2, 0.1, 2, 2)})


def test_results_json_has_the_agreed_form_and_can_be_read_as_a_baseline(tmp_path):
    text = results_json("runs/a", "internal", summarise(RESULTS))
    content = json.loads(text)
    assert content["checkpoint"] == "runs/a" and content["split"] == "internal"
    assert content["datasets"]["drive"] == {
        "dice": pytest.approx(0.6), "iou": pytest.approx(0.5), "queries": 2, "images": 2,
    }  # fmt: skip
    assert content["mean"] == {"dice": pytest.approx(0.775), "iou": pytest.approx(0.7)}
    (tmp_path / "results.json").write_text(text)
    assert read_baseline(tmp_path / "results.json")["drive"].queries == 2


@pytest.mark.parametrize("content", ["", "{}", '{"datasets": {"drive": {"f1": 1}}}'])
def test_a_file_that_is_no_baseline_is_named(tmp_path, content):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"other\.json"):
        read_baseline(path)
    with pytest.raises(ValueError, match="no such file"):
        read_baseline(tmp_path / "missing.json")


def test_results_csv_has_one_row_per_query():
    lines = results_csv(RESULTS).splitlines()
    assert lines[0] == "dataset,item,concept,prompt,score,dice,iou,truth_px,prediction_px"
    assert lines[1] == "drive,21,retinal blood vessel,retinal blood vessel,0.500000,0.500000,0.400000,10,12"
    assert len(lines) == 5


def test_overlay_colours_truth_and_prediction_in_their_own_panels():
    image = np.zeros((160, 320, 3), dtype=np.uint8)
    truth = np.zeros((160, 320), dtype=bool)
    truth[:, :160] = True
    picture = np.asarray(overlay(image, truth, ~truth, "caption"))
    left_of = {"image": 40, "truth": 328 + 40, "prediction": 656 + 40}
    assert (picture[100, left_of["image"]] == 0).all()
    assert np.allclose(picture[100, left_of["truth"]], 0.45 * np.array(TRUTH_COLOUR), atol=1)
    assert (picture[100, left_of["prediction"]] == 0).all()
    assert np.allclose(picture[100, left_of["prediction"] + 200], 0.45 * np.array(PREDICTION_COLOUR), atol=1)
