"""The report: numbers worked out by hand, names that want to be markup, what is missing, and what it may weigh."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medsam3.metrics.refusals import reliability
from medsam3.reports import charts, page
from medsam3.reports.extremes import extremes
from medsam3.reports.page import write_report
from medsam3.reports.pictures import overlay, overlay_name, overlay_panels
from medsam3.reports.tables import results_csv
from medsam3.results.scores import QueryResult
from tests.scripts import run_script


def case(item: str, dice: float, concept: str = "optic cup", **changes: Any) -> QueryResult:
    values = {"dice": dice, "iou": dice / 2}
    found: dict[str, Any] = {
        "dataset": "papila", "item": item, "group": item, "part": "test", "concept": concept, "prompt": concept,
        "rule": "union", "kind": "present", "score": 0.75, "presence": 0.75, "values": values, "ceiling": 1.0,
        "truth_px": 100, "prediction_px": 90,
    }  # fmt: skip
    return QueryResult(**found | changes)


def write(
    folder: Path,
    cases: list[QueryResult],
    baseline: str | None = None,
    chosen_on: Sequence[str] = (),
    **question: Any,
) -> Path:
    """A folder as evaluate.py leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.csv").write_text("".join(results_csv(cases)), encoding="utf-8")
    rules: dict[str, dict[str, Any]] = {}
    for rule, name in {(c.rule, c.dataset) for c in cases if c.present}:
        dice = [c.values["dice"] for c in cases if (c.rule, c.dataset, c.present) == (rule, name, True)]
        finite = [value for value in dice if math.isfinite(value)]
        mean = sum(finite) / len(finite) if finite else math.inf
        rules.setdefault(rule, {"datasets": {}})["datasets"][name] = {"values": {"dice": mean}}
    asked = {"part": "test", "split_by": "group", "excluded": 2, "not_asked": 3, "split_sha256": "5" * 64}
    content = {"checkpoint": "runs/a", "ask": "all", "rows": {c.dataset: asked for c in cases}} | question
    content = {"question": content, "rules": rules, "baseline": baseline, "chosen_on": chosen_on}
    (folder / "results.json").write_text(json.dumps(content))
    return folder


class Reader(HTMLParser):
    """Rows of tables, headings, number of tags, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.data = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        self._inside = "data" if dict(attributes).get("id") == "data" else tag
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "data":
            self.data += data
        elif self._inside in ("td", "th"):
            self.rows[-1][-1] += data
        if self._inside not in ("data", "script", "style"):
            self.text += data

    def row(self, *first: str) -> list[str]:
        return next(row for row in self.rows if row[: len(first)] == list(first))


def read(folder: Path, baseline: Path | None = None) -> Reader:
    return Reader(write_report(folder, baseline).read_text(encoding="utf-8"))


def test_means_by_data_set_and_concept_with_baseline_and_difference(tmp_path):
    ours = [case("1", 0.5), case("2", 0.7), case("1", 1.0, "optic disc"), case("9", 0.9, dataset="drive")]
    theirs = [case("1", 0.25), case("2", 0.25), case("1", 0.1, "optic disc"), case("9", 1.0, dataset="drive")]
    baseline = write(tmp_path / "b", theirs, checkpoint="sam3", image_size=504)
    found = read(write(tmp_path / "a", ours, image_size=1008), baseline)
    # papila: (.5 + .7 + 1) / 3 = .7333, before (.25 + .25 + .1) / 3 = .2; drive .9 and 1
    assert found.row("papila", "union") == ["papila", "union", "73.3", "20.0", "+53.3", "36.7", "10.0", "+26.7", *"322"]
    assert found.row("drive", "union")[2:5] == ["90.0", "100.0", "-10.0"]
    assert found.row("mean over data sets")[2:5] == ["81.7", "60.0", "+21.7"]
    assert "81.7mean Dice (%); baseline 60.0, Δ +21.7" in found.text
    assert found.row("papila", "optic cup")[2:5] == ["60.0", "25.0", "+35.0"]
    assert "asked differently (baseline -> ours): image_size: 504 -> 1008" in found.row("Baseline")[1]
    assert found.row("papila", "test", "group") == ["papila", "test", "group", "2", "2", "2", "3", "5" * 12, "–"]


def test_an_interval_needs_ten_groups_and_is_that_of_the_statistics(tmp_path):
    cases = [case(str(i), (i % 5) / 5) for i in range(20)]
    assert re.fullmatch(r"40\.0 \[\d\d\.\d, \d\d\.\d\]", read(write(tmp_path / "a", cases)).row("papila", "union")[2])
    same_patient = [case(str(i), (i % 5) / 5, group=str(i % 9)) for i in range(20)]
    row = read(write(tmp_path / "b", same_patient)).row("papila", "union")
    assert row[2] == "40.0" and row[-3:] == ["20", "20", "9"]


def test_values_that_are_not_finite_are_left_out_and_counted(tmp_path):
    cases = [case("1", 0.5), case("2", math.nan), case("3", math.inf), case("4", 0.7, score=math.nan)]
    found = read(write(tmp_path, cases))
    assert found.row("papila", "union")[2] == "60.0 (2 left out)"
    assert found.row("Left out of means")[1] == "2 queries have no finite dice, 2 queries have no finite iou"
    rows = json.loads(found.data)["rows"]  # the worst first, and nothing is worse than no value
    assert [row[8] is None for row in rows] == [True, True, False, False]


def test_what_is_not_there_is_counted_apart(tmp_path):
    present = [case(str(i), 0.6, score=score) for i, score in enumerate((0.9, 0.8, 0.3))]
    absent = [
        case("4", 0.0, kind="marked", truth_px=0, prediction_px=5, score=0.7),
        case("5", 1.0, kind="marked", truth_px=0, prediction_px=0, score=0.1),
    ]
    found = read(write(tmp_path, [*present, *absent]))
    # a present one scores higher in 5 of 6 pairs; MCC of 2 hits, 1 miss, 1 alarm, 1 silence: (2 - 1) / sqrt(3 3 2 2)
    row = found.row("ours", "papila", "union", "marked")
    assert row[4:] == ["3", "2", "2", "50.0", "50.0", "40.0", "83.3", "0.167"]
    assert found.row("papila", "union")[2] == "60.0"  # not in the mean
    assert "50.0% of 2 absent concepts (marked) score 0.5 or more, 50.0 % got a mask" in found.text
    unscored = case("4", 0.0, kind="marked", truth_px=0, score=math.nan, dataset="drive")
    found = read(write(tmp_path / "two", [*present, *absent, case("1", 0.6, dataset="drive"), unscored]))
    assert "50.0% of 3 absent concepts (marked) score 0.5 or more, 75.0 % got a mask" in found.text  # each set once
    without = [case("1", 0.6, score=math.nan, dataset="drive"), unscored]
    assert "100.0% of 1 absent concepts (marked) got a mask" in read(write(tmp_path / "files", without)).text


def test_the_ceiling_of_top1_and_the_dice_with_what_is_not_there_stand_beside_the_means(tmp_path):
    def answers(rule: str, dataset: str, *dice: float) -> list[QueryResult]:
        own = {"rule": rule, "dataset": dataset}
        absent = case("9", 1.0, kind="marked", truth_px=0, prediction_px=0, ceiling=1.0, **own)
        return [*(case(str(i), value, ceiling=0.5, **own) for i, value in enumerate(dice)), absent]

    cases = [*answers("union", "papila", 0.6), *answers("top1", "papila", 0.1, 0.4), *answers("top1", "drive", 0.2)]
    found = read(write(tmp_path, cases))
    assert found.row("data set", "mask rule")[-2:] == ["ceiling Dice (%)", "Dice with absent (%)"]
    assert found.row("papila", "union")[-2:] == ["", "80.0"]
    assert found.row("papila", "top1")[-2:] == ["50.0", "50.0"]  # (.1 + .4 + 1) / 3
    assert found.row("mean over data sets", "top1")[-2:] == ["50.0", "55.0"]  # of 50 and 60


def test_a_rule_that_never_answers_is_said(tmp_path):
    cases = [case(str(i), 0.0, rule=rule, prediction_px=0, score=0.1 * i) for i in (1, 2) for rule in ("top1", "union")]
    cases += [case("3", 0.0, rule="top1", score=0.3), case("4", 0.0, kind="marked", truth_px=0)]
    prediction = {"union_threshold": 0.5, "score_threshold": 0.0}
    found = read(write(tmp_path, cases, prediction=prediction)).text
    line = "by union in papila: the highest score where something is there is 0.20, prediction.union_threshold is 0.5."
    assert line in found and found.count("Not one mask") == 1
    assert "Not one mask" not in read(write(tmp_path / "files", cases)).text  # a question without thresholds


def test_foreign_words_stand_apart_and_beside_a_baseline_that_was_asked_the_same(tmp_path):
    def answers(hard: float, easy: str) -> list[QueryResult]:
        nothing = {"truth_px": 0, "prediction_px": 5}
        return [
            case("1", 0.5, score=0.8, swapped_absent=0.25),
            case("1", 0.0, "car", kind="easy", score=0.1, **nothing | {"prediction_px": 0}),
            case("1", 0.0, "lens", kind="hard", score=hard, **nothing),
            case("2", 0.0, easy, kind="easy", score=0.7, **nothing),
        ]

    baseline = write(tmp_path / "b", answers(0.9, "boat"))
    found = read(write(tmp_path / "a", answers(0.2, "bird")), baseline)
    assert found.row("papila", "union")[2:5] == ["50.0", "50.0", "+0.0"]
    assert found.row("ours", "papila", "union", "hard")[4:9] == ["1", "1", "1", "100.0", "0.0"]
    assert found.row("baseline", "papila", "union", "hard")[4:9] == ["1", "1", "1", "100.0", "100.0"]
    assert found.row("ours", "papila", "union", "easy")[4:9] == ["1", "2", "2", "50.0", "50.0"]
    assert not [row for row in found.rows if row[:4] == ["baseline", "papila", "union", "easy"]]  # other words
    assert "0.0% of 1 absent concepts (hard) score 0.5 or more, 100.0 % got a mask" in found.text
    assert found.row("papila", "what is not there")[2:] == ["1", "1", "50.0", "25.0", "0.0"]
    rows = json.loads(found.data)["rows"]
    assert [(row[2], row[6]) for row in rows] == [
        ("optic cup", "present"), ("car", "easy"), ("lens", "hard"), ("bird", "easy")
    ]  # fmt: skip
    assert [row[10] for row in rows] == [0.5, 0.0, 0.0, None]  # Dice of the baseline


def test_masks_without_scores_are_counted_all_the_same(tmp_path):
    cases = [case("1", 0.5, score=math.nan), case("2", 0.0, kind="marked", truth_px=0, score=math.nan)]
    found = read(write(tmp_path, cases, prompt="masks"))
    assert found.row("ours", "papila", "union", "marked")[4:] == ["1", "1", "1", "100.0", "–", "–", "–", "–"]
    assert "masks from files" in found.row("Input")[1] and "shown where" not in found.text


def test_a_model_that_saw_the_box_is_not_passed_off_as_asked_by_text(tmp_path):
    found = read(write(tmp_path, [case("1", 0.5)], prompt="text_box"))
    assert "the model was shown where the truth lies" in found.text and "TRUE BOX" in found.row("Input")[1]
    found = read(write(tmp_path, [case("1", 0.5)], prompt="text", training_rows_allowed=True))
    assert "rows that the model was trained on were not refused" in found.text
    found = read(write(tmp_path, [case("1", 0.5)], prompt="text"))
    assert (
        "were not refused" not in found.text
        and "shown where" not in found.text
        and found.row("Input")[1].startswith("text alone")
    )


def test_without_absent_concepts_the_report_says_that_it_cannot_tell(tmp_path):
    assert "No absent concept was asked" in read(write(tmp_path, [case("1", 0.5)])).text


def test_names_are_text_whatever_they_hold_and_nothing_is_fetched(tmp_path):
    name = "</script><script>alert('1')</script><img src=x onerror=1>&amp;Größe"
    cases = [case(name + str(i), 0.5, name, dataset=name, group=name) for i in range(3)]
    found = read(write(tmp_path, cases, checkpoint=name))
    assert [attributes for tag, attributes in found.tags if tag == "script"] == [
        {"type": "application/json", "id": "data"},
        {},
    ]
    assert not [tag for tag, _ in found.tags if tag in ("img", "link", "iframe")]
    assert found.row(name, "union")[2] == "50.0"
    assert json.loads(found.data)["rows"][0][:3] == [name, name + "0", name]
    assert "http:" not in (text := (tmp_path / "report.html").read_text()) and "https:" not in text
    assert "default-src 'none'" in text


def test_the_same_result_gives_the_same_bytes_wherever_it_lies(tmp_path):
    cases = [case(str(i), i / 20) for i in range(20)]
    one, two = (write(tmp_path / name, cases) for name in ("one", "two"))
    assert write_report(one).read_bytes() == write_report(two).read_bytes()


def test_ten_thousand_rows_stay_small_and_of_too_many_the_worst_are_kept(tmp_path, monkeypatch):
    cases = [case(f"a_name_of_usual_length_{i:05d}", i / 10_000, group=str(i % 12)) for i in range(10_000)]
    folder = write(tmp_path, cases)
    found = read(folder)
    assert len(json.loads(found.data)["rows"]) == 10_000
    assert (folder / "report.html").stat().st_size < 1_500_000
    monkeypatch.setattr(page, "MAX_ROWS", 7)
    found = read(folder)
    assert [row[1][-1] for row in json.loads(found.data)["rows"]] == list("0123456")
    assert "the 7 of 10,000 rows with the lowest Dice" in found.text


@pytest.mark.parametrize("cases", [
    [case("1", 0.5)],
    [case("1", math.nan, score=math.nan)],
    [case("1", 1.0, kind="marked", truth_px=0, prediction_px=0)],
    [case("1", 0.0, score=0.0, truth_px=1, prediction_px=0)],
], ids=["one", "no value", "nothing there", "nothing found"])  # fmt: skip
def test_the_smallest_results_have_a_report(cases, tmp_path):
    found = read(write(tmp_path, cases))
    assert "nan" not in re.sub(r'<script id="data".*', "", (tmp_path / "report.html").read_text()).split("<script")[0]
    assert len(json.loads(found.data)["rows"]) == 1


def test_a_baseline_of_other_queries_or_another_truth_is_refused(tmp_path):
    ours = write(tmp_path / "a", [case("1", 0.5), case("2", 0.5)])
    with pytest.raises(ValueError, match=r"lacks 1 of the 2 queries.*papila \| 2 \| optic cup \| union"):
        write_report(ours, write(tmp_path / "b", [case("1", 0.5)]))
    with pytest.raises(ValueError, match="another truth"):
        write_report(ours, write(tmp_path / "c", [case("1", 0.5), case("2", 0.5, truth_px=7)]))
    assert not (ours / "report.html").exists()


def test_the_baseline_of_the_evaluation_is_found_again_or_its_loss_is_said(tmp_path):
    baseline = write(tmp_path / "b", [case("1", 0.25)])
    ours = write(tmp_path / "a", [case("1", 0.5)], baseline="../b/results.json")
    assert read(ours).row("papila", "union")[2:5] == ["50.0", "25.0", "+25.0"]
    (baseline / "results.csv").unlink()
    found = read(ours)
    assert "No results.csv lies beside the baseline ../b/results.json" in found.text
    assert found.row("papila", "union")[2:4] == ["50.0", "25.0"]  # IoU follows


def test_rows_that_chose_the_checkpoint_are_said_and_no_others(tmp_path):
    chosen = read(write(tmp_path / "a", [case("1", 0.5)], chosen_on=["papila"]))
    assert "Chosen on these rows: those of papila picked this checkpoint" in chosen.text
    assert "Chosen on" not in read(write(tmp_path / "b", [case("1", 0.5)])).text  # as of untrained weights, or files


def test_best_median_and_worst(tmp_path):
    cases = [case(str(i), dice) for i, dice in enumerate((0.3, 0.9, 0.5, 0.9, math.nan))]
    assert [(word, c.item) for word, c in extremes(cases)] == [("Best", "1"), ("Median", "2"), ("Worst", "0")]
    assert [word for word, _ in extremes(cases[:1])] == ["Best"]
    assert [word for word, _ in extremes(cases[:2])] == ["Best", "Worst"]
    assert extremes(cases[4:]) == []


def picture(folder: Path, item: str, prediction: slice) -> None:
    image, truth, mask = np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32), bool), np.zeros((32, 32), bool)
    truth[:16], mask[prediction] = True, True
    (folder / "overlays").mkdir(exist_ok=True)
    overlay(image, truth, mask, "caption").save(folder / "overlays" / overlay_name("papila", item, "optic cup"))


def test_pictures_stand_beside_those_of_the_baseline(tmp_path):
    ours, theirs = (write(tmp_path / name, [case("a/1", 0.5)]) for name in ("ours", "theirs"))
    picture(ours, "a/1", slice(16, 32))
    panels = overlay_panels(ours / "overlays" / "papila_a_1_optic_cup.png")
    top = [panel.getpixel((10, 10)) for panel in panels]
    assert top[0] == top[2] == (0, 0, 0) and top[1][1] > 80  # the truth is above, the answer below
    assert panels[2].getpixel((10, panels[2].height - 10))[0] > 80
    found = read(ours, theirs)
    assert [attributes["alt"] for tag, attributes in found.tags if tag == "img"] == ["image", "truth", "ours"]
    assert "No picture of the baseline was kept" in found.text
    picture(theirs, "a/1", slice(0, 4))
    shown = [attributes for tag, attributes in read(ours, theirs).tags if tag == "img"]
    assert [attributes["alt"] for attributes in shown] == ["image", "truth", "baseline", "ours"]
    assert len({attributes["src"] for attributes in shown}) == 4
    assert (ours / "report.html").stat().st_size < 40_000


def test_a_picture_whose_name_two_queries_share_is_nobodys(tmp_path):
    folder = write(tmp_path, [case("a/1", 0.5), case("a_1", 0.9)])
    picture(folder, "a/1", slice(0, 4))
    found = read(folder)
    assert not [tag for tag, _ in found.tags if tag == "img"] and "No picture of it was kept" in found.text


def test_charts_draw_what_they_are_given():
    bar = charts.bars([charts.Bar("a < b", "n = 4", 0.5, (0.25, 0.75), 0.1)])
    assert [float(w) for w in re.findall(r'<rect [^>]*width="([\d.]+)"', bar)] == [167.0, pytest.approx(33.4)]
    assert "M89.5 31.5H256.5" in bar and "a &lt; b" in bar  # 6 + 334 / 4 to 6 + 334 * 3 / 4
    shape = charts.radar(["up", "right", "down", "left"], [1.0, 0.5, 0.0, 0.25], None)
    assert "M200.0 48.0L256.0 160.0L200.0 160.0L172.0 160.0Z" in shape  # centre 200, 160; radius 112
    diagram = charts.calibration(reliability([0.25, 0.75], [0.0, 0.5], 10))
    assert re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', diagram) == [("133.0", "244.0"), ("303.0", "129.0")]
    assert "ECE 0.250, 2 answers" in diagram
    sizes = charts.by_size([10, 1000], [0.0, 1.0], None)
    assert "M48 244h0M388 14h0" in sizes and ">10<" in sizes and ">1,000<" in sizes


def test_evaluate_writes_it_with_pictures_of_the_extremes_and_report_writes_it_again(data, tmp_path):
    small = ["checkpoint=tiny", "image_size=56", "split=[mni152]", "device=cpu", "evaluation.workers=0", *data]
    small += ["evaluation.images=7", "evaluation.overlays=1", "wandb.mode=offline"]
    done = run_script("evaluate.py", *small, cwd=tmp_path)
    assert "report   runs/evaluation/report.html" in done.stdout
    written = tmp_path / "runs/evaluation/report.html"
    found = Reader(before := written.read_text())
    images = [attributes["alt"] for tag, attributes in found.tags if tag == "img"]
    assert images == ["image", "truth", "ours"] * 3 and "No picture" not in found.text
    assert found.row("mni152", "val")[3:7] == ["7", "1", "2", "11"]  # 7 of 18 images; 2 slices show too little brain
    (media,) = (tmp_path / "runs/evaluation/wandb").glob("offline-run-*/files/media")
    assert next(media.glob("html/report_*.html")).stat().st_size >= written.stat().st_size
    table = json.loads(next(media.glob("table/scores_*.json")).read_text())
    (row,) = table["data"]
    assert row[:2] == ["top1", "mni152"] and f"{100 * row[2]:.1f}" == found.row("mni152", "top1")[2]
    assert len(list(media.glob("images/overlay/*.png"))) == len(list((written.parent / "overlays").glob("*.png")))
    written.unlink()
    run_script("report.py", "results=runs/evaluation", cwd=tmp_path)
    assert written.read_text() == before
    assert "give one of them, results=" in run_script("report.py", cwd=tmp_path, check=False).stderr
