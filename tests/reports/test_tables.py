"""Tables, result files and pictures from hand-made results."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medsam3.config import ForeignConfig, PredictionConfig
from medsam3.metrics.masks import METRICS, Metric
from medsam3.reports.pictures import PREDICTION_COLOUR, TRUTH_COLOUR, overlay
from medsam3.reports.tables import read_baseline, results_csv, results_json, rule_tables, score_table
from medsam3.results.question import Question, Rows
from medsam3.results.scores import AVERAGE, QueryResult, Score, dice_intervals, mean_score, summarise
from medsam3.training.record import _shown
from tests.metrics.test_masks import measured


def _result(
    dataset: str,
    item: str,
    concept: str,
    dice: float,
    iou: float,
    rule: str = "top1",
    truth_px: int = 10,
    prediction_px: int = 12,
) -> QueryResult:
    return QueryResult(
        dataset=dataset,
        item=item,
        group="p1",
        part="val",
        concept=concept,
        prompt=concept,
        rule=rule,
        kind="present" if truth_px else "marked",
        score=0.5,
        presence=0.75,
        values={"dice": dice, "iou": iou},
        ceiling=0.8,
        truth_px=truth_px,
        prediction_px=prediction_px,
    )


def _score(dice: float, iou: float, queries: int = 2, images: int = 2) -> Score:
    values = {"dice": pytest.approx(dice), "iou": pytest.approx(iou)}
    return replace(score_of(values, queries, images), ceiling=pytest.approx(0.8))


def score_of(values: dict, queries: int = 2, images: int = 2) -> Score:
    return Score(
        values=values,
        ceiling=0.8,
        queries=queries,
        images=images,
        absent=0,
        answered=None,
        with_absent=values,
        left_out=dict.fromkeys(values, 0),
    )


RESULTS = [
    _result("drive", "21", "retinal blood vessel", 0.5, 0.4),
    _result("drive", "22", "retinal blood vessel", 0.7, 0.6),
    _result("papila", "RET002OD", "optic cup", 0.9, 0.8),
    _result("papila", "RET002OD", "optic disc", 1.0, 1.0),
]
ROWS = Rows(
    part="val",
    split_by="image",
    split_sha256="aa",
    images=2,
    images_sha256="bb",
    foreign_sha256="dd",
    not_asked=0,
    beyond=0,
    excluded=0,
    prompts={"optic cup": "optic cup"},
)
QUESTION = Question(
    checkpoint="runs/a",
    weights_sha256="cc",
    image_size=1008,
    own_image_size=1008,
    prediction=PredictionConfig(
        rules=["top1"],
        score_threshold=0.0,
        union_threshold=0.5,
        presence_threshold=0.5,
        resolve_overlaps=True,
        queries_per_pass=8,
        tile=None,
        tile_overlap=0,
    ),
    prompt="text",
    box_noise=None,
    prompts="canonical",
    concepts="ours",
    ask="present",
    foreign=ForeignConfig(hard=0, easy=0, seed=0),
    synonyms=False,
    instances=None,
    metrics=["dice", "iou"],
    precision="float32",
    seed=42,
    training_rows_allowed=False,
    code="0123abc",
    versions={"torch": "2"},
    rows={"drive": ROWS, "papila": ROWS},
)


def test_a_score_is_the_mean_over_queries_and_the_average_the_mean_over_data_sets():
    found = summarise(RESULTS)["top1"]
    assert found["drive"] == _score(0.6, 0.5)
    assert found["papila"] == _score(0.95, 0.9, images=1)
    assert mean_score(found).values == {"dice": pytest.approx(0.775), "iou": pytest.approx(0.7)}


def test_table_has_the_columns_of_table_3_when_a_baseline_is_given():
    baseline = {
        "drive": score_of({"dice": 0.248, "iou": 0.143}, 2, 2),
        "papila": score_of({"dice": 0.862, "iou": 0.787}, 2, 1),
        "glas": score_of({"dice": 0.0, "iou": 0.0}, 2, 1),  # not asked now: not in the average
    }
    table = score_table(summarise(RESULTS)["top1"], {"drive": "DRIVE", "papila": "PAPILA"}, baseline)
    lines = table.splitlines()
    assert (
        lines[0]
        == "| Dataset | Dice baseline | Dice ours | Dice Δ | IoU baseline | IoU ours | IoU Δ | queries | images |"
    )
    assert lines[2] == "| DRIVE | 24.8 | 60.0 | +35.2 | 14.3 | 50.0 | +35.7 | 2 | 2 |"
    assert lines[4] == "| **Avg.** | 55.5 | 77.5 | +22.0 | 46.5 | 70.0 | +23.5 | 4 | 3 |"


def test_table_without_baseline():
    lines = score_table(summarise(RESULTS)["top1"], {"drive": "DRIVE"}).splitlines()
    assert lines[0] == "| Dataset | Dice (%) | IoU (%) | queries | images |"
    assert lines[2:] == [
        "| DRIVE | 60.0 | 50.0 | 2 | 2 |",
        "| papila | 95.0 | 90.0 | 2 | 1 |",
        "| **Avg.** | 77.5 | 70.0 | 4 | 3 |",
    ]


def test_a_new_metric_is_one_line_of_the_table(monkeypatch):
    """Columns, means and headings follow METRICS; a metric in a unit of its own is printed as it is."""
    monkeypatch.setitem(METRICS, "pixels", Metric("Size", lambda pixels: float(pixels.truth_px), is_fraction=False))
    values = measured(np.ones((2, 2), bool), np.ones((2, 2), bool), ["dice", "iou", "pixels"])
    row = QueryResult(**vars(RESULTS[0]) | {"values": values})
    assert list(results_csv([row]))[1].rstrip().endswith("1.000000,1.000000,4.000000,0.800000,10,12,px,,,")
    table = score_table(summarise([row])["top1"], {}).splitlines()
    assert table[0] == "| Dataset | Dice (%) | IoU (%) | Size | queries | images |" and "| 4.0 | 1 | 1 |" in table[2]


def test_results_json_says_what_was_asked_and_can_be_read_as_a_baseline(tmp_path):
    content = json.loads(results_json("internal", QUESTION, summarise(RESULTS)))
    assert content["checkpoint"] == "runs/a" and content["split"] == "internal"
    means = {"dice": pytest.approx(0.6), "iou": pytest.approx(0.5)}
    found = content["rules"]["top1"]
    assert found["datasets"]["drive"] == {
        "values": means, "ceiling": pytest.approx(0.8), "queries": 2, "images": 2, "absent": 0, "answered": None,
        "with_absent": means, "left_out": {"dice": 0, "iou": 0}, "unit": "px",
    }  # fmt: skip
    assert found["mean"]["values"] == {"dice": pytest.approx(0.775), "iou": pytest.approx(0.7)}
    assert content["question"]["rows"]["drive"]["images_sha256"] == "bb"
    baseline = read_baseline(_saved(tmp_path, content))
    assert baseline.scores["top1"]["drive"].queries == 2 and baseline.differences(QUESTION) == []


def _content() -> dict:
    return json.loads(results_json("internal", QUESTION, summarise(RESULTS)))


def _saved(folder: Path, content: dict) -> Path:
    path = folder / "results.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("keys", "value", "line"),
    [
        (["image_size"], 504, "image_size: 504 -> 1008"),
        (["prediction", "score_threshold"], 0.1, "prediction.score_threshold: 0.1 -> 0.0"),
        (["prompts"], "paper", "prompts: paper -> canonical"),
        (["rows", "drive", "prompts", "optic cup"], "cup", "rows.drive.prompts.optic cup: cup -> optic cup"),
        (["rows", "drive", "split_sha256"], "zz", "rows.drive.split_sha256: zz -> aa"),
        (["precision"], "bfloat16", "precision: bfloat16 -> float32"),
        (["versions", "torch"], "1", "versions.torch: 1 -> 2"),
    ],
)
def test_what_was_asked_differently_is_named(keys, value, line, tmp_path):
    content = _content()
    place = content["question"]
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    content["question"] |= {"checkpoint": "another", "weights_sha256": "that is the point"}
    assert read_baseline(_saved(tmp_path, content)).differences(QUESTION) == [line]


def test_a_baseline_on_other_images_is_refused_with_all_that_differs(tmp_path):
    content = _content()
    content["question"]["rows"]["drive"] |= {"images": 95, "images_sha256": "ee"}
    content["question"]["rows"]["glas"] = content["question"]["rows"]["drive"]  # more data sets do no harm
    content["rules"]["top1"]["datasets"]["glas"] = content["rules"]["top1"]["datasets"]["drive"]
    with pytest.raises(ValueError, match="asked on other images") as caught:
        read_baseline(_saved(tmp_path, content)).differences(QUESTION)
    assert "rows.drive.images: 95 -> 2" in str(caught.value) and "glas" not in str(caught.value)


def test_a_baseline_without_the_data_set_is_refused(tmp_path):
    content = _content()
    del content["rules"]["top1"]["datasets"]["papila"], content["question"]["rows"]["papila"]
    with pytest.raises(ValueError, match="no data set papila; it has drive"):
        read_baseline(_saved(tmp_path, content)).differences(QUESTION)


OLD = {"checkpoint": "a", "split": "val", "datasets": {"drive": {"dice": 1, "iou": 1, "queries": 1, "images": 1}}}


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"datasets": {"drive": {"f1": 1}}}', json.dumps(OLD)])
def test_a_file_that_is_no_baseline_is_named(tmp_path, content):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"other\.json.*evaluate it again"):
        read_baseline(path)
    with pytest.raises(ValueError, match="no such file"):
        read_baseline(tmp_path / "missing.json")


def test_a_baseline_by_another_rule_is_refused(tmp_path):
    content = _content()
    content["rules"]["union"] = content["rules"].pop("top1")
    with pytest.raises(ValueError, match=r"not measured by the mask rule top1, only by union.*rules=\[top1\]"):
        read_baseline(_saved(tmp_path, content)).differences(QUESTION)


def test_results_csv_has_one_row_per_query_and_rule():
    rows = [*RESULTS, _result("drive", "21", "optic cup", 0.0, 0.0, "union", 0, 3)]
    lines = "".join(results_csv(rows)).splitlines()
    assert lines[0] == (
        "dataset,item,group,part,concept,prompt,rule,present,kind,score,presence,dice,iou,ceiling,truth_px,prediction_px,"
        "unit,swapped,swapped_truths,swapped_absent"
    )
    vessel = "retinal blood vessel"
    numbers = "0.5,0.75,0.500000,0.400000,0.800000,10,12,px,,,"
    assert lines[1] == f"drive,21,p1,val,{vessel},{vessel},top1,1,present,{numbers}"
    assert lines[5].startswith("drive,21,p1,val,optic cup,optic cup,union,0,marked,") and len(lines) == 6


def test_scores_near_one_stay_apart_in_results_csv():
    """With six digits all of a model that is sure would tie, and AUROC from the file be another one."""
    scores = [1 - 2**-24, 1.0, float(np.float32(0.4999999))]
    rows = [replace(RESULTS[0], score=score) for score in scores]
    lines = csv.DictReader("".join(results_csv(rows)).splitlines())
    assert [float(line["score"]) for line in lines] == scores


def with_hd95(*values: float) -> dict[str, dict[str, Score]]:
    return summarise(
        QueryResult(**vars(row) | {"values": {"hd95": h, "dice": 0.5}}) for row, h in zip(RESULTS, values, strict=True)
    )


def test_a_distance_that_is_infinite_is_left_out_of_its_mean_and_counted():
    scores = with_hd95(3, math.inf, 5, 7)
    score = scores["top1"]["drive"]
    assert score.values["hd95"] == 3.0 and score.left_out == {"dice": 0, "hd95": 1}
    table = rule_tables(scores, {})
    assert "| **Avg.** | 4.5 | 50.0 |" in table and "HD95: 1 queries left out" in table


def test_means_of_different_queries_have_no_difference_and_no_set_drops_out_of_the_average():
    """Drive: 3 over both queries, before 2 over one of them. Papila: nothing was found before."""
    table = rule_tables(with_hd95(2, 4, 5, 7), {}, with_hd95(2, math.inf, math.inf, math.inf))
    rows = {line.split(" | ")[0]: line.split(" | ")[1:7] for line in table.splitlines() if line.startswith("| ")}
    dice = ["50.0", "50.0", "+0.0"]
    assert rows["| drive"] == ["2.0", "3.0", "-", *dice] and rows["| papila"] == ["-", "6.0", "-", *dice]
    assert rows["| **Avg.**"] == ["-", "4.5", "-", *dice] and "HD95: 3 queries left out of the baseline" in table


def test_what_has_no_mean_is_null_in_results_json_and_a_dash_beside_a_result(tmp_path):
    scores = with_hd95(math.inf, math.inf, 5, 7)
    (tmp_path / "results.json").write_text(results_json("internal", QUESTION, scores))
    content = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert content["rules"]["top1"]["datasets"]["drive"]["values"] == {"hd95": None, "dice": 0.5}
    baseline = read_baseline(tmp_path / "results.json").scores
    assert "| drive | - | 3.0 | - | 50.0 | 50.0 | +0.0 |" in rule_tables(with_hd95(2, 4, 5, 7), {}, baseline)


def test_intervals_count_groups_and_need_ten_of_them():
    rows = [
        QueryResult(**vars(_result("drive", str(i), "optic cup", d, d)) | {"group": f"p{i // 2}"})
        for i, d in enumerate(np.linspace(0.3, 0.9, 22))
    ]
    few = [QueryResult(**vars(row) | {"dataset": "papila"}) for row in rows[:18]]
    intervals = dice_intervals([*rows, *few])
    table = rule_tables(summarise([*rows, *few]), {}, intervals=intervals).splitlines()
    low, high = intervals["top1"]["drive"].interval
    assert low < 0.6 < high
    assert table[2].endswith("| Dice, 95 % interval | groups | queries | images |")
    assert f"| {100 * low:.1f} to {100 * high:.1f} | 11 | 22 | 22 |" in table[4] and "| - | 9 | 18 | 18 |" in table[5]
    assert "| - | 20 | 40 |" in table[6]
    assert table[8] == "No interval below 10 groups: papila; so the mean over data sets has none either."
    enough = dice_intervals([*rows, *(QueryResult(**vars(row) | {"dataset": "papila"}) for row in rows)])["top1"]
    low, high = enough["drive"].interval
    narrower = enough[AVERAGE].interval  # of two independent means of the same spread: by a factor of sqrt(2)
    assert (narrower[1] - narrower[0]) * 2**0.5 == pytest.approx(high - low, rel=0.07)


def test_distances_in_two_units_have_no_mean_and_every_table_says_the_unit(tmp_path):
    def row(dataset: str, hd95: float, unit: str) -> QueryResult:
        found = vars(_result(dataset, str(hd95), "optic cup", 0.5, 0.4))
        return QueryResult(**found | {"values": {"dice": 0.5, "hd95": hd95}, "unit": unit})

    rows = [row("drive", 3.0, "mm"), row("drive", 5.0, "mm"), row("papila", 9.0, "px")]
    table = rule_tables(summarise(rows), {}).splitlines()
    assert table[2] == "| Dataset | Dice (%) | HD95 | distances in | ceiling Dice (%) | queries | images |"
    assert table[4].startswith("| drive | 50.0 | 4.0 | mm |") and table[5].startswith("| papila | 50.0 | 9.0 | px |")
    assert table[6].startswith("| **Avg.** | 50.0 | - | mm and px |")
    assert table[8].startswith("Distances are in mm where the files say how large a pixel is, else in px")
    within = summarise([*rows, row("drive", 9.0, "px")])["top1"]["drive"]
    assert math.isnan(within.values["hd95"]) and within.values["dice"] == 0.5
    assert _shown(summarise(rows)["top1"]["drive"]) == {"Dice (%)": "50.0", "HD95 in mm": "4.0"}
    assert list(_shown(within)) == list(_shown(with_hd95(math.inf, math.inf, 1, 2)["top1"]["drive"])) == ["Dice (%)"]


ABSENT = [
    _result("drive", "23", "optic cup", 1.0, 1.0, truth_px=0, prediction_px=0),
    _result("drive", "24", "optic cup", 0.0, 0.0, truth_px=0, prediction_px=9),
    _result("drive", "25", "optic cup", 0.0, 0.0, truth_px=0, prediction_px=1),
]


def test_concepts_that_are_not_there_do_not_enter_the_mean_but_have_columns_of_their_own():
    score = summarise([*RESULTS, *ABSENT])["top1"]["drive"]
    assert score.values["dice"] == pytest.approx(0.6) and (score.queries, score.absent, score.images) == (2, 3, 5)
    assert score.answered == pytest.approx(2 / 3) and score.with_absent["dice"] == pytest.approx(2.2 / 5)
    table = score_table(summarise([*RESULTS, *ABSENT])["top1"], {}).splitlines()
    assert table[0] == (
        "| Dataset | Dice (%) | IoU (%) | Dice with absent (%) | absent answered (%) | queries | absent | images |"
    )
    assert table[2] == "| drive | 60.0 | 50.0 | 44.0 | 66.7 | 2 | 3 | 5 |"
    assert table[3] == "| papila | 95.0 | 90.0 | 95.0 | - | 2 | 0 | 1 |"
    assert table[4] == "| **Avg.** | 77.5 | 70.0 | 69.5 | 66.7 | 4 | 3 | 6 |"


def test_every_table_names_its_rule_and_top1_its_ceiling():
    scores = summarise([*RESULTS, *(QueryResult(**vars(row) | {"rule": "union"}) for row in RESULTS)])
    first, second = rule_tables(scores, {}).split("Mask rule ")[1:]
    assert first.startswith("**top1**: the mask of the highest score") and "| ceiling Dice (%) |" in first
    assert "| drive | 60.0 | 50.0 | 80.0 | 2 | 2 |" in first
    assert second.startswith("**union**") and "ceiling" not in second


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
