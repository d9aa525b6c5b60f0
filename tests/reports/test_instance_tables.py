"""What an evaluation says of single instances in its files, and what it refuses."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import pytest

from medsam3.reports.comparison_tables import comparison_markdown
from medsam3.reports.instance_tables import instance_section, instance_table, instances_csv
from medsam3.results.comparison import SINGLE, Contestant, Settings, compare
from medsam3.results.findings import Finding
from medsam3.results.folder import read_results
from medsam3.results.instance_scores import InstanceScores, average, instance_scores, scalars
from tests.evaluation.results_files import write_results
from tests.evaluation.test_evaluator import EVALUATE
from tests.results.test_instance_scores import EMPTY, FALSE, PERFECT, SILENT, record
from tests.scripts import run_script

WITH_ABSENT = instance_scores([record("a", "cell", PERFECT), record("b", "cell", EMPTY)])["small"]
PRESENT_ALONE = instance_scores([record("a", "cell", PERFECT), record("b", "cell", SILENT)])["small"]


def cells(table: str, start: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {start} |")]
    return [cell.strip() for cell in line.split("|")[2:-1]]


def test_a_set_without_absent_prompts_says_that_its_cgf1_is_zero_by_definition():
    table = instance_table({"one": WITH_ABSENT, "two": PRESENT_ALONE}, {}, {})
    assert cells(table, "one")[:8] == ["100.0", "100.0", "100.0", "100.0", "100.0", "100.0", "1.000", "100.0"]
    assert cells(table, "two")[3:8] == ["66.7", "66.7", "0 (no absent)", "0 (no absent)", "66.7"]
    assert cells(table, "two")[9:] == ["2", "1", "2", "0", "2"]  # true, shown, queries, absent, groups
    assert cells(table, "**Avg.**")[3:8] == ["83.3", "83.3", "–", "–", "83.3"]
    assert "No absent concept was asked of two, so IL_MCC and cgF1 are 0 by definition" in table
    assert "No absent" not in instance_table({"one": WITH_ABSENT}, {}, {})


def test_what_has_no_number_is_a_dash_with_its_reason():
    records = [record("a", "cell", PERFECT, ranked=False, exhaustive=False), record("b", "cell", FALSE)]
    table = instance_table(instance_scores(records), {}, {})
    assert cells(table, "small")[:3] == ["–"] * 3
    assert "Masks of small came without scores, so there is no AP." in table
    assert "Left out of cgF1, as the concept is marked in places only: 1 of small." in table


def test_the_baseline_stands_above_ours_and_intervals_in_brackets():
    many = [record(f"{n:02}", "cell", PERFECT if n % 3 else SILENT) for n in range(12)]
    own = instance_scores(many, draws=2000)
    table = instance_table(own, {"small": "Small"}, {"small": WITH_ABSENT})
    assert cells(table, "Small, baseline")[3] == "100.0"
    low, high = own["small"].own.intervals["f1"]
    assert cells(table, "Small")[3] == f"80.0 [{100 * low:.1f}, {100 * high:.1f}]" and 0.4 < low < 0.8 < high < 1
    nine = instance_scores(many[:9], draws=2000)["small"].own
    assert set(nine.intervals.values()) == {None}


def test_results_json_gives_the_scores_back_and_the_report_shows_them():
    content = json.loads(json.dumps(dataclasses.asdict(WITH_ABSENT)))
    assert InstanceScores.from_json(content) == WITH_ABSENT
    page = instance_section({"<one>": WITH_ABSENT}, {}, "predictions of a score of 0.05 or more")
    assert "<h2>Single instances</h2>" in page and "&lt;one&gt;" in page and "<one>" not in page
    assert instance_section({}, {}, "") == ""


def test_the_log_of_a_run_gets_what_there_is():
    values = scalars({"one": WITH_ABSENT, "two": PRESENT_ALONE})
    assert values["f1"] == pytest.approx(5 / 6) and values["two/pq"] == pytest.approx(2 / 3)
    assert "cgf1" not in values and "two/cgf1" not in values and values["one/cgf1"] > 0.99
    assert scalars({}) == {} and average({"one": WITH_ABSENT})["ap"] == 1.0


def test_the_files_of_an_evaluation(data, tmp_path):
    run_script(
        "evaluate.py",
        *EVALUATE,
        *data,
        "evaluation.instances=true",
        "evaluation.save_masks=true",
        "name=run",
        cwd=tmp_path,
    )
    folder = tmp_path / "runs/run"
    with (folder / "instances.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 * 3 and {row["truths"] for row in rows} == {"1"}
    content = json.loads((folder / "results.json").read_text())
    own = InstanceScores.from_json(content["instances"]["mni152"]).own
    assert own.truths == 18 and own.predictions == sum(int(row["shown"]) for row in rows)
    assert content["question"]["instances"] == "predictions of a score of 0.05 or more"
    assert "Single instances, whatever the mask rule." in (folder / "table.md").read_text()
    assert "<h2>Single instances</h2>" in (folder / "report.html").read_text()
    assert json.loads((folder / "results.json").read_text())["files"].keys() == {"results.csv", "instances.csv"}
    with (folder / "instances.csv").open("a") as file:
        file.write("\n")
    with pytest.raises(ValueError, match=r"instances\.csv: is not as its evaluation wrote it"):
        read_results(folder)
    again = ["predictions=runs/run/masks/truth", "evaluation.instances=true", "name=files"]
    run_script("evaluate.py", *EVALUATE, *data, *again, cwd=tmp_path)
    content = json.loads((tmp_path / "runs/files/results.json").read_text())
    own = InstanceScores.from_json(content["instances"]["mni152"]).own
    assert own.values["f1"] == own.values["pq"] == 1.0 and own.values["ap"] is None  # whole, though in many parts
    run_script("evaluate.py", *EVALUATE, *data, "name=run", cwd=tmp_path)
    assert not (folder / "instances.csv").exists() and "Single" not in (folder / "table.md").read_text()


def test_a_score_that_would_hide_what_counts_is_refused(data, tmp_path):
    wrong = ["evaluation.instances=true", "evaluation.instance_score=0.4", "prediction.union_threshold=0.3"]
    done = run_script("evaluate.py", *EVALUATE, *data, *wrong, cwd=tmp_path, check=False)
    assert done.returncode == 2 and "evaluation.instance_score=0.4: must be at most 0.5 (cgF1) and" in done.stderr


def evaluated(folder: Path, scenes: list) -> Path:
    """The folder of an evaluation of one data set, an image and patient for each scene."""
    items = [f"{n:02}" for n in range(len(scenes))]
    write_results(folder, {"small": [(item, item, "cell", 0.5) for item in items]}, weights=folder.name)
    records = [record(item, "cell", scene) for item, scene in zip(items, scenes, strict=True)]
    content = json.loads((folder / "results.json").read_text())
    content["instances"] = {name: dataclasses.asdict(own) for name, own in instance_scores(records).items()}
    (folder / "results.json").write_text(json.dumps(content))
    finding = Finding(dataset="small", item="", results=[], reworded=[], concepts=[], cross_dice=[], instances=records)
    (folder / "instances.csv").write_text("".join(instances_csv([finding])))
    return folder


def test_f1_and_pq_are_compared_image_by_image_where_there_is_something(tmp_path):
    """The second finds 12 of 12 instead of 6; both are silent where nothing is, which must not count."""
    half = evaluated(tmp_path / "half", [PERFECT, SILENT] * 6 + [EMPTY])
    full = evaluated(tmp_path / "full", [PERFECT] * 12 + [EMPTY])
    contestants = [Contestant(path.name, [read_results(path)]) for path in (half, full)]
    settings = Settings(["f1", "dice"], None, False, (), 0.95, 2000, 0)
    duels, _, _ = compare(contestants, settings)
    found = {(duel.rule, duel.metric): duel for duel in duels}
    assert set(found) == {("top1", "dice"), (SINGLE, "f1")}
    duel = found[SINGLE, "f1"]
    assert duel.means == (0.5, 1.0) and (duel.paired.better, duel.paired.equal) == (6, 6)
    assert duel.paired.permutation_p == pytest.approx(2 / 2**6, abs=0.02)  # of 6 patients that differ
    assert "## F1@.5 (%), single instances, mean over images" in comparison_markdown(
        contestants, duels, [], [], settings
    )
    with pytest.raises(ValueError, match="--absent: not for f1"):
        compare(contestants, dataclasses.replace(settings, absent=True))
    (full / "instances.csv").write_text("dataset,item,truths\nsmall,00,\n")
    with pytest.raises(ValueError, match=r"instances\.csv: not an instances\.csv"):
        read_results(full)
    (full / "instances.csv").unlink()
    with pytest.raises(ValueError, match="no f1 of small; evaluate it again with"):
        compare([contestants[0], Contestant("full", [read_results(full)])], settings)
