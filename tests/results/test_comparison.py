"""Two and more results: what is refused, what is paired with what, and the numbers against scipy and by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from medsam3.reports.comparison_tables import comparison_markdown
from medsam3.results.comparison import Contestant, Settings, compare
from medsam3.results.folder import pick, read_results
from tests.evaluation.results_files import QUESTION, Row, write_results
from tests.scripts import run_script

SETTINGS = Settings(metrics=["dice"], rule=None, absent=False, allow=[], level=0.95, draws=2000, seed=0)


def rows(values: list[float], concept: str = "polyp") -> list[Row]:
    """A row per patient."""
    return [(f"i{n:02d}", f"p{n:02d}", concept, value) for n, value in enumerate(values)]


def contestants(**folders: Path | list[Path]) -> list[Contestant]:
    return [
        Contestant(name, [read_results(path) for path in (paths if isinstance(paths, list) else [paths])])
        for name, paths in folders.items()
    ]


def settings(**changes) -> Settings:
    return Settings(**(vars(SETTINGS) | changes))


def test_rows_are_paired_by_image_and_concept_whatever_their_order(tmp_path):
    low, high = [0.1 * n for n in range(10)], [0.1 * n + 0.01 * n for n in range(10)]
    a = write_results(tmp_path / "a", {"x": rows(low)})
    b = write_results(tmp_path / "b", {"x": rows(high)[::-1]}, "01")
    (duel,), spreads, notes = compare(contestants(a=a, b=b), SETTINGS)
    assert duel.means == pytest.approx((0.45, 0.495)) and duel.paired.difference.mean == pytest.approx(0.045)
    assert (duel.paired.better, duel.paired.equal, duel.paired.worse) == (9, 1, 0)
    assert duel.permutation_holm == pytest.approx(2 / 2**9)  # all gain: two of the signs of nine patients
    assert duel.wilcoxon_holm == pytest.approx(stats.wilcoxon(np.subtract(high, low).round(6)).pvalue)
    assert not spreads and notes == [f"{a} -> {b}: weights_sha256: 00 -> 01"]


def test_holm_counts_data_sets_and_contestants(tmp_path):
    one = {"x": rows([0.5] * 12), "y": rows([0.5] * 12)}
    a = write_results(tmp_path / "a", one)
    two = {"x": rows([0.6] * 11 + [0.5]), "y": rows([0.6] * 6 + [0.4] * 6)}
    b, c = (write_results(tmp_path / name, two, name) for name in "bc")
    duels, _, _ = compare(contestants(a=a, b=b, c=c), SETTINGS)
    assert [(d.name, d.dataset) for d in duels] == [("b", "x"), ("b", "y"), ("c", "x"), ("c", "y")]
    assert duels[0].permutation_holm == pytest.approx(4 * duels[0].paired.permutation_p)
    assert duels[1].permutation_holm == 1


def test_concepts_that_are_not_there_count_only_when_asked_for(tmp_path):
    a = write_results(tmp_path / "a", {"x": rows([0.5, 0.7, 0.0])}, present=[1, 1, 0])
    b = write_results(tmp_path / "b", {"x": rows([0.5, 0.7, 1.0])}, "01", present=[1, 1, 0])
    assert compare(contestants(a=a, b=b), SETTINGS)[0][0].means == pytest.approx((0.6, 0.6))
    assert compare(contestants(a=a, b=b), settings(absent=True))[0][0].means == pytest.approx((0.4, 2.2 / 3))


def test_answers_to_what_is_not_there_stand_beside_each_other_if_all_were_asked_alike(tmp_path):
    kinds = ["present", "marked", "hard"]
    a = write_results(tmp_path / "a", {"x": rows([0.5, 0.0, 0.0])}, kinds=kinds)
    b = write_results(tmp_path / "b", {"x": rows([0.5, 0.0, 1.0])}, "01", kinds=kinds, foreign={"hard": 1})
    found = contestants(first=a, other=b)
    duels, spreads, notes = compare(found, settings(absent=True))
    assert duels[0].paired.difference.rows == 2  # no foreign word
    assert "foreign: (absent) -> {'hard': 1}" in notes[0]
    lines = comparison_markdown(found, duels, spreads, notes, SETTINGS).splitlines()
    start = lines.index("## Does it say no?")
    cells = [line.strip("| ").split(" | ")[:8] for line in lines[start:] if line.startswith("| x ")]
    assert cells == [
        ["x", "top1", kind, name, "1", "1", "1", "100.0"] for kind in kinds[1:] for name in ("first", "other")
    ]
    b = write_results(tmp_path / "c", {"x": rows([0.5, 0.0])}, "01", kinds=kinds[:2])
    text = comparison_markdown(found := contestants(first=a, other=b), *compare(found, SETTINGS), SETTINGS)
    assert "Not asked for the same absent concepts (hard)" in text and "| marked | other |" in text


def test_several_runs_are_averaged_row_by_row_and_their_spread_is_told(tmp_path):
    a = write_results(tmp_path / "a", {"x": rows([0.5, 0.5])})
    runs = [
        write_results(tmp_path / f"s{n}", {"x": rows([0.5 + n / 10, 0.6])}, f"s{n}", rules=["top1", "union"])
        for n in range(3)
    ]
    found = contestants(a=a, ours=runs)
    duels, spreads, notes = compare(found, SETTINGS)
    assert [duel.rule for duel in duels] == ["top1"]  # a has no other
    assert duels[0].means == pytest.approx((0.5, 0.6)) and duels[0].paired.equal == 0
    assert spreads[0].means == pytest.approx([0.55, 0.6, 0.65]) and spreads[0].name == "ours"
    text = comparison_markdown(found, duels, spreads, notes, SETTINGS)
    assert "| x | ours | top1 | dice | 3 | 60.00 | 5.00 | 55.00 | 65.00 |" in text
    with pytest.raises(ValueError, match="ours: two of its 2 runs have the same weights"):
        compare(contestants(a=a, ours=[runs[0], runs[0]]), SETTINGS)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"image_size": 672}, "image_size: 1008 -> 672"),
        ({"prompt": "box"}, "prompt: text -> box"),
        ({"prediction": {"rules": ["top1"], "score_threshold": 0.1}}, r"prediction.score_threshold: 0.0 -> 0.1"),
        ({"rows": {"x": {"images_sha256": "2", "prompts": {}}}}, "rows.x.images_sha256: 1 -> 2"),
        ({"training_rows_allowed": True}, "training_rows_allowed: .absent. -> True"),
    ],
)
def test_what_was_not_asked_alike_is_refused_by_name_unless_it_is_allowed(tmp_path, changes, expected):
    a = write_results(tmp_path / "a", {"x": rows([0.5, 0.6])})
    b = write_results(tmp_path / "b", {"x": rows([0.5, 0.6])}, "01", **changes)
    with pytest.raises(ValueError, match=expected):
        compare(contestants(a=a, b=b), SETTINGS)
    _, _, notes = compare(contestants(a=a, b=b), settings(allow=[next(iter(changes))]))
    assert len(notes) == 2


def test_the_rules_of_a_question_may_be_more(tmp_path):
    a = write_results(tmp_path / "a", {"x": rows([0.5, 0.6])}, rules=["top1", "union"])
    more = {"rules": ["union", "top1", "semantic"], "score_threshold": 0.0}
    b = write_results(tmp_path / "b", {"x": rows([0.5, 0.6])}, "01", ["union", "top1", "semantic"], prediction=more)
    assert [duel.rule for duel in compare(contestants(a=a, b=b), SETTINGS)[0]] == ["top1", "union"]
    with pytest.raises(ValueError, match="rule='semantic': must be one of top1, union"):
        compare(contestants(a=a, b=b), settings(rule="semantic"))


def test_masks_from_files_stand_against_every_rule(tmp_path):
    a = write_results(
        tmp_path / "a", {"x": rows([0.5, 0.6])}, rules=["masks"], prompt="masks", image_size=None, prediction=None
    )
    b = write_results(tmp_path / "b", {"x": rows([0.5, 0.7])}, "01", ["top1", "union"])
    duels, _, _ = compare(contestants(a=a, b=b), SETTINGS)
    assert [(duel.rule, duel.means) for duel in duels] == [(r, pytest.approx((0.55, 0.6))) for r in ("top1", "union")]


def test_rows_that_one_lacks_are_named_whatever_the_question_says(tmp_path):
    a = write_results(tmp_path / "a", {"x": rows([0.5, 0.6])})
    b = write_results(tmp_path / "b", {"x": rows([0.5])}, "01")
    with pytest.raises(ValueError, match=r"not the same rows of x: 1 .*i01 / polyp"):
        compare(contestants(a=a, b=b), settings(allow=["rows"]))
    d = write_results(tmp_path / "d", {"x": rows([0.5, 0.6])}, "03")
    (d / "results.csv").write_text(
        (d / "results.csv").read_text().replace(",9,9,px", ",8,9,px", 1)
    )  # a mask was mended
    with pytest.raises(
        ValueError, match=r"2 are .*or their truth has another size: i00 / polyp / 8 / p00, .* / 9 / p00"
    ):
        compare(contestants(a=a, d=d), SETTINGS)
    c = write_results(tmp_path / "c", {"x": [("i00", "p00", "polyp", 0.5), ("i01", "p00", "polyp", 0.5)]}, "02")
    with pytest.raises(ValueError, match="not the same rows of x"):  # another patient
        compare(contestants(a=a, c=c), SETTINGS)


def test_a_value_that_is_not_finite_is_left_out_and_counted(tmp_path):
    a = write_results(tmp_path / "a", {"x": rows([0.5, 0.6, 0.7])})
    b = write_results(tmp_path / "b", {"x": rows([0.5, 0.7, float("inf")])}, "01")
    found = contestants(a=a, b=b)
    duels, spreads, notes = compare(found, SETTINGS)
    assert duels[0].means == pytest.approx((0.55, 0.6)) and duels[0].left_out == 1
    assert "x (dice, top1): 1." in comparison_markdown(found, duels, spreads, notes, SETTINGS)


def test_a_folder_that_is_no_result_or_a_mixture_of_two_is_refused(tmp_path):
    a = write_results(tmp_path / "a", {"x": rows([0.5, 0.6])})
    write_results(tmp_path / "b", {"x": rows([0.5, 0.9])})
    assert read_results(a / "results.csv").folder == read_results(a / "results.json").folder == a
    with pytest.raises(ValueError, match=r"no results\.json in"):
        read_results(tmp_path)
    (a / "results.csv").write_bytes((tmp_path / "b/results.csv").read_bytes())
    with pytest.raises(ValueError, match=r"not of the same evaluation \(x, top1, dice: 0.700000 and 0.550000\)"):
        read_results(a)
    with (tmp_path / "b/results.csv").open("a") as file:
        file.write("x,i00,p00,val,polyp,top1,1,present,0.5,0.25,polyp,0.5,0.5,1,9,9,px,,,\n")
    with pytest.raises(ValueError, match="x/i00 has two rows for 'polyp' by top1"):
        read_results(tmp_path / "b")


def test_the_script_writes_both_files_and_picks_data_sets(tmp_path):
    write_results(tmp_path / "a", {"x": rows([0.5] * 12), "y": rows([0.1])})
    write_results(tmp_path / "b", {"x": rows([0.6] * 12)}, "01")
    done = run_script("compare.py", "a", "b", cwd=tmp_path, check=False)
    assert done.returncode == 2 and "rows.y" in done.stderr and "--datasets" in done.stderr
    run_script(
        "compare.py", "a", "b", "--names", "SAM3", "ours", "--datasets", "x", "--metrics", "dice", "iou", cwd=tmp_path
    )
    text = (tmp_path / "comparison/comparison.md").read_text()
    assert (
        "| x | ours | 50.0 | 60.0 | +10.0 | +10.0 to +10.0 | < 0.001 | < 0.001 | inf | 1.00 | 12 / 0 / 0 | 12 |" in text
    )
    content = json.loads((tmp_path / "comparison/comparison.json").read_text())
    assert [c["metric"] for c in content["comparisons"]] == ["dice", "iou"]
    assert content["comparisons"][1]["means"] == pytest.approx([0.25, 0.3])
    assert QUESTION["code"] == "abc" and pick(read_results(tmp_path / "a"), ["y"]).rows["top1"].keys() == {"y"}
