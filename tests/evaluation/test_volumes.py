"""Volumes put together from slices: numbers against those of the slices and by hand, what is incomplete or refused."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest

from medsam3.config import EvaluationConfig, ForeignConfig
from medsam3.data.manifest import ImageRows
from medsam3.evaluation.volume_measurement import _notes
from medsam3.evaluation.volume_tables import volumes_csv, volumes_json, volumes_markdown
from medsam3.evaluation.volumes import VolumeFinding, VolumeResult, find_volumes, measure_volumes
from medsam3.metrics.surfaces import nsd
from medsam3.prediction.tracker import TrackedVolume
from medsam3.prediction.volume import VolumePrediction
from medsam3.reports.page import write_report
from medsam3.reports.volume_report import draw_slices, with_interval
from medsam3.results.findings import Journal
from medsam3.results.folder import read_volumes
from tests.reports.test_page import Reader
from tests.scripts import run_script

CONFIG = EvaluationConfig(
    metrics=["dice"], concepts="ours", ask="present", foreign=ForeignConfig(hard=0, easy=0, seed=0), synonyms=False,
    images=None, overlays=0, save_masks=False, workers=0,
)  # fmt: skip
SPACING = (5.0, 2.0, 0.5)  # mm from slice to slice, row to row, column to column
SHAPE = (6, 10, 12)


def box(*bounds: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(*own) for own in bounds)] = True
    return mask


LEFT, RIGHT = box((1, 5), (2, 8), (1, 5)), box((0, 3), (3, 9), (7, 11))
FOUND = {"left square": box((2, 6), (2, 8), (1, 5)), "right square": box((0, 3), (3, 9), (6, 11))}


@pytest.fixture
def corpus_of(folder, reader_of) -> Callable[..., Any]:
    """A corpus of one volume `v` and its slices of these numbers; `left square` may not overlap `right square`."""
    for name, voxels in (("images", np.arange(720).reshape(SHAPE) % 251), ("masks", 1 * LEFT + 2 * RIGHT)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        array = voxels.astype(np.uint8).transpose(2, 1, 0)
        nibabel.save(nibabel.Nifti1Image(array, np.diag([*SPACING[::-1], 1.0])), folder / name / "v.nii.gz")
    files = {"images": "images/{id}.nii.gz", "masks": "masks/{id}.nii.gz"}
    reader = reader_of(**files, reader="label_volume", options={"axis": 2}, modality="mr")

    def make(numbers: Collection[int] = range(6), exclusive: tuple[str, ...] = ()) -> Any:
        rows = []
        for item in reader.items():
            if item.masks.index in numbers:
                masks = reader.masks(item)
                there = tuple(concept for concept, found in masks.items() if found.union().any())
                absent = tuple(set(masks) - set(there))
                rows.append(ImageRows("small", item.id, "patient", "val", there, absent))
        return SimpleNamespace(
            readers={"small": reader},
            specs={"small": reader.spec},
            images=lambda _name, _part: rows[::-1],  # in any order
            prompt=lambda _name, concept: f"the {concept}",
            exclusive=lambda _name: exclusive,
        )

    return make


class Predictor:
    """Finds FOUND in the slices that it is shown, which it knows by their pixels."""

    config = SimpleNamespace(mode="detector")
    predictor = SimpleNamespace(config=SimpleNamespace(rules=["union"], resolve_overlaps=True))

    def __init__(self) -> None:
        self.asked: list[tuple[int, list[str], list[str], Any]] = []

    def predict(self, pictures: Any, concepts: list[str], prompts: list[str], spacing_mm: Any) -> TrackedVolume:
        self.asked.append((len(pictures), concepts, prompts, spacing_mm))
        volume = np.arange(720).reshape(SHAPE) % 251
        upright = volume.transpose(0, 2, 1)  # axis 2 of the file, its x along the rows
        numbers = [next(z for z in range(6) if (upright[z] == pictures[i][..., 0]).all()) for i in range(len(pictures))]
        masks = np.stack([FOUND[name].transpose(0, 2, 1)[numbers] for name in concepts])
        sure = masks * np.array([0.9 if name == "right square" else 0.5 for name in concepts])[:, None, None, None]
        scores = np.full(masks.shape[:2], 0.5, np.float32)
        return TrackedVolume(VolumePrediction(concepts, masks, sure.astype(np.float32), scores), None)


def measure(corpus: Any, tolerances: tuple[float, ...] = (2.0,)) -> tuple[dict[str, VolumeResult], Predictor, str]:
    predictor: Any = Predictor()
    found, left_out = find_volumes(corpus, {"small": "val"}, CONFIG)
    results, _ = measure_volumes(corpus, found, predictor, ["dice", "precision", "hd95"], tolerances)
    table = volumes_markdown(results, found["small"], left_out)
    return {result.concept: result for result in results}, predictor, table


def test_a_whole_volume(corpus_of):
    results, predictor, table = measure(corpus_of(), (2.0, 5.0))
    spacing = (SPACING[0], SPACING[2], SPACING[1])
    concepts = ["left square", "right square"]
    assert predictor.asked == [(6, concepts, [f"the {name}" for name in concepts], pytest.approx(spacing))]
    left, right = results["left square"], results["right square"]
    assert left.values["dice"] == pytest.approx(2 * 72 / (96 + 96)) and left.values["precision"] == 0.75
    assert right.values["dice"] == pytest.approx(2 * 72 / (72 + 90))
    for concept, truth in (("left square", LEFT), ("right square", RIGHT)):
        for tolerance in (2.0, 5.0):
            expected = nsd(FOUND[concept], truth, tolerance, SPACING)
            assert results[concept].values[f"nsd_{tolerance:g}mm"] == pytest.approx(expected, abs=1e-12)
    assert left.values["hd95"] == 5.0 and right.values["hd95"] == 0.5  # a slice, a column
    assert (left.group, left.volume, left.slices, left.slices_in_file, left.stretches) == ("patient", "v", 6, 6, 1)
    assert (left.truth_voxels, left.prediction_voxels, left.score) == (96, 96, 0.5)
    assert "| small | all | 1 |" in table and "Incomplete" not in table
    lines = list(csv.DictReader(volumes_csv(list(results.values())).splitlines()))
    assert lines[0]["spacing_mm"] == "5 x 0.5 x 2" and lines[0]["present"] == "1"


def test_slices_of_another_part_do_not_count_and_are_said(corpus_of):
    results, predictor, table = measure(corpus_of(numbers=(2, 3, 4)))
    assert predictor.asked[0][0] == 3 and results["left square"].values["dice"] == 1.0
    assert math.isnan(results["left square"].values["hd95"])
    truth, answer = (mask[2:5].transpose(0, 2, 1) for mask in (RIGHT, FOUND["right square"]))
    expected = nsd(answer, truth, 2.0, (5.0, 0.5, 2.0), cut=(True, True))
    assert results["right square"].values["nsd_2mm"] == pytest.approx(expected)
    assert "small/v: 3 of 6 slices (2-4)" in table


def test_across_a_gap_nothing_is_followed_and_no_distance_is_measured(corpus_of):
    results, predictor, table = measure(corpus_of(numbers=(0, 1, 4, 5)))
    assert [count for count, *_ in predictor.asked] == [2, 2]
    left = results["left square"]
    assert left.values["dice"] == pytest.approx(2 * 24 / (48 + 48)) and left.stretches == 2
    assert math.isnan(left.values["nsd_2mm"]) and ",," in volumes_csv([left]).splitlines()[1]
    assert "4 of 6 slices (0-1, 4-5)" in table and "without distances: small/v" in table
    assert table.count("| - |") == 3


def test_exclusive_concepts_share_no_voxel(corpus_of, monkeypatch):
    monkeypatch.setitem(FOUND, "left square", box((0, 6), (0, 10), (0, 12)))
    alone = measure(corpus_of())[0]["left square"]
    shared = measure(corpus_of(exclusive=("left square", "right square")))[0]["left square"]
    assert alone.prediction_voxels == 720 and shared.prediction_voxels == 720 - 90  # of less confidence


def test_a_concept_is_asked_of_all_slices_if_one_holds_it(corpus_of):
    _, predictor, _ = measure(corpus_of(numbers=(4, 5)))
    assert predictor.asked[0][1] == ["left square"]  # the right one ends on slice 2
    corpus = corpus_of(numbers=(3, 5))
    with pytest.raises(ValueError, match=r"no volume of several slices.*small: 1 volumes with one slice in part 'val'"):
        find_volumes(corpus_of(numbers=(3,)), {"small": "val"}, CONFIG)
    corpus.readers["small"] = SimpleNamespace(item=lambda name: name, slice_of=lambda _item: None)
    with pytest.raises(ValueError, match="small: its images are no slices of volumes"):
        find_volumes(corpus, {"small": "val"}, CONFIG)


def test_volumes_that_were_measured_before_an_interruption_are_not_asked_again(corpus_of, tmp_path):
    corpus, texts, asked = corpus_of(numbers=(2, 3, 4)), [], []
    found, _ = find_volumes(corpus, {"small": "val"}, CONFIG)
    for question in ("question", "question", "another"):
        predictor: Any = Predictor()
        journal = Journal(tmp_path / "unfinished", question, VolumeFinding.from_json)
        results, _ = measure_volumes(corpus, found, predictor, ["dice", "hd95"], (2.0,), journal)
        texts.append(volumes_csv(results))
        asked.append(len(predictor.asked))
    assert asked == [1, 0, 1] and texts[0] == texts[1] == texts[2] and ",," in texts[0]


def test_results_of_volumes_are_compared_volume_by_volume(corpus_of, tmp_path, monkeypatch):
    question = {"weights_sha256": "a", "rows": {"small": {}}, "volume": {"mode": "detector"}}
    for name, mode in (("first", "detector"), ("second", "detector"), ("third", "tracker")):
        results = list(measure(corpus_of())[0].values())
        (tmp_path / name).mkdir()
        (tmp_path / name / "results_volumes.csv").write_text(volumes_csv(results))
        (tmp_path / name / "results_volumes.json").write_text(
            volumes_json(question | {"volume": {"mode": mode}}, results, {})
        )
        monkeypatch.setitem(FOUND, "left square", LEFT)
    run_script("compare.py", "first", "second", "--metrics", "dice", "nsd_2mm", cwd=tmp_path)
    dice, surface = json.loads((tmp_path / "comparison/comparison.json").read_text())["comparisons"]
    right = 2 * 72 / (72 + 90)
    assert dice["means"] == pytest.approx([(2 * 72 / (96 + 96) + right) / 2, (1 + right) / 2], abs=1e-6)
    missed = 1 - nsd(FOUND["right square"], RIGHT, 2.0, SPACING)
    assert surface["metric"] == "nsd_2mm" and surface["means"][1] == pytest.approx(1 - missed / 2, abs=1e-6)
    assert surface["means"][0] < surface["means"][1]
    assert "Paired by volume" in (tmp_path / "comparison/comparison.md").read_text()
    done = run_script("compare.py", "first", "third", cwd=tmp_path, check=False)
    assert done.returncode == 2 and "volume.mode: detector -> tracker" in done.stderr, done.stderr
    for name in ("results.csv", "results.json"):
        (tmp_path / "first" / name).write_text("of slices, in the same folder")
    run_script("compare.py", "first", "third", "--allow", "volume", cwd=tmp_path)
    text = (tmp_path / "third/results_volumes.csv").read_text()
    (tmp_path / "third/results_volumes.csv").write_text(text.replace("1.000000", "0.900000"))
    done = run_script("compare.py", "first", "third", "--allow", "volume", cwd=tmp_path, check=False)
    assert done.returncode == 2 and "small, dice" in done.stderr, done.stderr
    (tmp_path / "third/results_volumes.csv").write_text(text.replace("detector", "tracker"))  # in no mean
    with pytest.raises(ValueError, match=r"results_volumes\.csv: is not as its evaluation wrote it"):
        read_volumes(tmp_path / "third")


def test_the_report_shows_every_volume_and_the_slices_that_matter(corpus_of, tmp_path):
    predictor: Any = Predictor()
    corpus = corpus_of(numbers=(1, 2, 3, 4, 5))
    found, _ = find_volumes(corpus, {"small": "val"}, CONFIG)
    drawn = tmp_path / "overlays_volumes"
    results, _ = measure_volumes(corpus, found, predictor, ["dice", "hd95"], (2.0,), None, drawn, 0)
    assert not drawn.exists()
    measure_volumes(corpus, found, predictor, ["dice", "hd95"], (2.0,), None, drawn, 1)
    # of the right square slice 1 has most of the target and most wrong; of the left one all four have the same
    names = ["small_v_left_square_slice_1.png", "small_v_right_square_slice_1.png"]
    assert sorted(path.name for path in drawn.iterdir()) == names
    question = {"checkpoint": "runs/<a>", "rows": {}, "volume": {"mode": "tracker"}}
    (tmp_path / "results_volumes.csv").write_text(volumes_csv(results))
    (tmp_path / "results_volumes.json").write_text(volumes_json(question, results, {}))
    (tmp_path / "volumes.md").write_text(volumes_markdown(results, found["small"], ["twice <b>"]))
    page = write_report(tmp_path).read_text()
    seen = Reader(page)
    right_dice, surface = 2 * 48 / (48 + 60), 100 * results[1].values["nsd_2mm"]
    assert [row[:3] for row in seen.rows if "all" in row] == [
        ["small", "all", f"{(75 + 100 * right_dice) / 2:.1f} (2)"]
    ]
    left, right = (row for row in seen.rows if row[3:4] == ["yes"])  # the lower Dice first
    assert left[:5] == ["small", "v", "left square", "yes", "75.0"]
    values = [f"{100 * right_dice:.1f}", f"{surface:.1f}", "–"]
    assert right[2:] == ["right square", "yes", *values, "0.50", "5", "6", "5 x 0.5 x 2", "48", "60"]
    assert "Mode <b>tracker</b>" in page and "runs/&lt;a&gt;" in page and "Left out: twice &lt;b&gt;." in page
    assert '<p class="warn">Incomplete: small/v: 5 of 6' in page and page.count("data:image/webp") == 6
    with pytest.raises(ValueError, match=r"baseline=.*scripts/compare\.py"):
        write_report(tmp_path, tmp_path)


def test_the_slices_that_are_drawn(tmp_path):
    truth, answer = np.zeros((2, 4, 8, 8), bool)
    truth[2, :4], answer[2, :5], answer[0] = True, True, True
    picture = np.zeros((8, 8, 3), np.uint8)
    draw_slices(tmp_path, ("small", "a/v", "cyst"), [3, 4, 7, 9], [picture] * 4, answer, truth)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "small_a_v_cyst_slice_3.png",
        "small_a_v_cyst_slice_7.png",
    ]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_the_script_in_both_modes_against_the_slices(data, tmp_path):
    """The Dice of a volume follows from the Dice and the sizes of the masks on its slices."""
    common = ["checkpoint=tiny", "image_size=56", "split=[mni152]", "device=cpu", "evaluation.workers=0", *data]
    common += ["evaluation=recommended", "prediction.union_threshold=0.1", "evaluation.overlays=0"]
    run_script("evaluate.py", *common, "name=slices", "evaluation.ask=present", cwd=tmp_path)
    done = run_script("evaluate.py", *common, "name=slices", "volumes=true", cwd=tmp_path)
    assert "18 of 189 slices (80-97)" in done.stdout
    report = (tmp_path / "runs/slices/report.html").read_text()  # of both kinds
    assert "<h2>By concept</h2>" in report and "<h2>Volumes</h2>" in report and "<h3>Every volume</h3>" in report
    slices = [row for row in rows_of(tmp_path / "runs/slices/results.csv") if row["rule"] == "union"]
    volumes = rows_of(tmp_path / "runs/slices/results_volumes.csv")
    assert [row["concept"] for row in volumes] == ["brain", "gray matter", "white matter"]
    for row in volumes:
        own = [other for other in slices if other["concept"] == row["concept"]]
        sizes = np.array([int(other["truth_px"]) + int(other["prediction_px"]) for other in own])
        dice = np.array([float(other["dice"]) for other in own])
        assert len(own) == int(row["slices"]) == 18 and row["spacing_mm"] == "1 x 1 x 1"
        assert int(row["prediction_voxels"]) == pytest.approx(sum(int(o["prediction_px"]) for o in own), rel=0.01)
        assert float(row["dice"]) == pytest.approx((dice * sizes).sum() / sizes.sum(), abs=0.005)
        assert 0 < float(row["nsd_2mm"]) < 1
    tracker = ["volume.mode=tracker", "volume.tracker=tiny", "name=tracked"]
    run_script("evaluate.py", *common, "volumes=true", *tracker, "evaluation.metrics=[dice]", cwd=tmp_path)
    tracked = rows_of(tmp_path / "runs/tracked/results_volumes.csv")
    assert {row["mode"] for row in tracked} == {"tracker"} and [row["dice"] for row in tracked] != [
        row["dice"] for row in volumes
    ]
    question = json.loads((tmp_path / "runs/tracked/results_volumes.json").read_text())["question"]
    assert question["tracker_vision"] == "original" and question["volume"]["mode"] == "tracker"
    page = (tmp_path / "runs/tracked/report.html").read_text()
    assert "random weights: it follows nothing" in page and f"tracker_sha256 {question['tracker_sha256']}" in page


@pytest.mark.parametrize(
    "override, message",
    [
        ("prompt=box", "volumes=true: prompt=box: is for slices"),
        ("predictions=masks", "volumes=true: predictions=masks: is for slices"),
        ("nsd_mm=[]", "nsd_mm=.*: must name one tolerance or several"),
        ("nsd_mm=[2,2]", "nsd_mm=.*: must name one tolerance or several"),
        ("nsd_mm=[-1]", "nsd_mm.*=-1.*: must be 0 or more"),
        ("volume.mode=tracker", "the tracker is missing|volume.tracker=no/where"),
    ],
)
def test_what_volumes_do_not_have(override, message, data, tmp_path):
    common = ["checkpoint=tiny", "image_size=56", "split=[mni152]", "device=cpu", *data, "volumes=true"]
    tracker = ["volume.tracker=./no/where"] if override == "volume.mode=tracker" else []
    done = run_script("evaluate.py", *common, override, *tracker, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert re.search(message.replace("no/where", "./no/where"), done.stderr), done.stderr


def test_a_mean_has_its_interval_and_fractions_are_percent():
    assert with_interval("dice", 0.5, (0.25, 0.751)) == "50.0 [25.0, 75.1]"
    assert with_interval("nsd_2mm", 0.5, None) == "50.0" and with_interval("hd95", 3.25, (1, 4)) == "3.2 [1.0, 4.0]"


def test_what_the_checkpoint_has_seen_of_the_volumes_is_said():
    source: Any = SimpleNamespace(chosen_on=["a", "b"], trained_on={"c": "its record says so"})
    first, second, third = _notes(source, [], {"a/v": [0.125]}).splitlines()
    assert first == "- Chosen on these slices: a, b." and second == "- TRAINED on rows of c: its record says so."
    assert third.startswith("- a/v: ") and "12 %" in third and third.endswith(".")
    assert _notes(SimpleNamespace(chosen_on=[], trained_on={}), [], {}) == ""
