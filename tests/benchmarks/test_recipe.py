"""The evidence of the recipe: what is measured of a run, what differences amount to, and what the page says of them."""

from __future__ import annotations

import math

import pytest

from medsam3.benchmarks import recipe, recipe_page
from medsam3.benchmarks.evidence import Table, half_width, work
from medsam3.benchmarks.levers import LEVERS, TARGETS, VARIANTS, Lever
from tests.scripts import ROOT

SHARED = {"image_size": "56", "start": "abc"}
LEVER = Lever("negatives", "data.absent_concepts", "what", "why", on="recipe", off="no_negatives")


def measured(value: float) -> dict[str, dict[str, float]]:
    names = (*recipe_page.SHOWN, "cpu_s", *(f"dice_union/{name}" for name in recipe.DATASETS))
    return {"last": dict.fromkeys(names, value)}


def done(path, seeds, variants=("recipe", "no_negatives"), calls=None) -> Table:
    """Work in which every run measures .1 x seed, and .05 less with negatives."""

    def run_once(overrides, steps, seed):
        if calls is not None:
            calls.append((overrides, steps, seed))
        return measured(0.1 * (seed + 1) ** 2 - (0.05 + 0.01 * seed) * (not overrides))

    table = Table(path)
    work(table, seeds, variants, 40, SHARED, run_once, lambda _: None)
    return table


def test_what_matters_most_is_done_first_and_nothing_twice(tmp_path):
    calls: list[tuple[tuple[str, ...], int, int]] = []
    variants = ("no_synonyms", "large_steps", "no_negatives", "recipe")
    done(tmp_path / "runs.csv", (0, 1), variants, calls)
    assert [seed for _, _, seed in calls] == [0, 0, 1, 1, 0, 1, 0, 1]
    assert {overrides for overrides, _, _ in calls[:4]} == {(), VARIANTS["no_negatives"].overrides}
    assert calls[-1][1:] == (10, 1)  # large steps: a quarter of them
    done(tmp_path / "runs.csv", (0, 1, 2), variants, calls)
    assert len(calls) == 12 and {seed for _, _, seed in calls[8:]} == {2}
    with pytest.raises(ValueError, match=r"runs\.csv: recipe, seed 0 ran with steps=40 \(now 50\); give another file"):
        work(Table(tmp_path / "runs.csv"), (0,), ("recipe",), 50, SHARED, lambda *_: measured(0), lambda _: None)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"other\.csv: no column run, seed"):
        Table(tmp_path / "other.csv")


def test_a_lever_adds_the_mean_of_paired_differences_with_students_interval(tmp_path):
    assert done(tmp_path / "none.csv", ()).difference(LEVER, "auroc") is None
    few = done(tmp_path / "few.csv", (0, 1)).difference(LEVER, "auroc")
    assert few is not None and few.half_width == math.inf and few.seeds == 2
    found = done(tmp_path / "runs.csv", (0, 1, 2)).difference(LEVER, "auroc")
    # -.05, -.06, -.07: mean -.06, standard deviation .01, t of 2 degrees of freedom 4.303
    assert found is not None and found.mean == pytest.approx(-0.06)
    assert found.half_width == pytest.approx(4.303 * 0.01 / math.sqrt(3), rel=1e-3)
    assert half_width([1.0, 1.0, 1.0]) == 0


def test_the_page_gets_what_was_run_and_says_what_was_not(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A\n<!-- levers -->\n<!-- end -->\n<!-- runs -->\n<!-- end -->\n")
    recipe_page.write(page, Table(tmp_path / "none.csv"))
    assert page.read_text().count("<!-- end -->") == 2
    page.write_text("# A\n<!-- levers -->\nold\n<!-- end -->\nbetween\n<!-- runs -->\n<!-- end -->\nafter\n")
    recipe_page.write(page, done(tmp_path / "runs.csv", (0, 1, 2)))
    text = page.read_text()
    assert "old" not in text and "-->\nbetween\n" in text and text.endswith("<!-- end -->\nafter\n")
    (negatives,) = [line for line in text.splitlines() if line.startswith("| negatives |")]
    assert "| on: 2 |" in negatives and "Dice union -6.0 ± 2.5; semantic -6.0 ± 2.5; top1 -6.0 ± 2.5; " in negatives
    assert "; score where absent -6.0 ± 2.5; " in negatives
    (synonyms,) = [line for line in text.splitlines() if line.startswith("| synonyms |")]
    assert synonyms.endswith("| not run | not run |")
    again = page.read_text()
    recipe_page.write(page, Table(tmp_path / "runs.csv"))
    assert page.read_text() == again
    page.write_text("nothing")
    with pytest.raises(ValueError, match=r"page\.md: must hold <!-- levers --> once, and <!-- end --> below"):
        recipe_page.write(page, Table(tmp_path / "runs.csv"))


def test_the_page_of_the_project_is_that_of_its_runs(tmp_path):
    page = tmp_path / "recipe.md"
    page.write_bytes((ROOT / "docs/recipe.md").read_bytes())
    recipe_page.write(page, Table(ROOT / "docs/recipe.csv"))
    assert page.read_bytes() == (ROOT / "docs/recipe.md").read_bytes()
    assert {lever.on for lever in LEVERS} | {lever.off for lever in LEVERS} == {*VARIANTS, TARGETS, ""}


def test_a_start_and_a_run_from_it_are_measured_and_withheld_words_stay_so(data, monkeypatch, tmp_path):
    """On the template alone; that training drew no withheld word is asserted in the code."""
    monkeypatch.setattr(recipe, "SETTINGS", (*recipe.SETTINGS, "datasets=[mni152]"))
    monkeypatch.setattr(recipe, "IMAGES", 2)
    setting = recipe.Setting(tuple(data), tmp_path / "start", 56)
    table = Table(tmp_path / "runs.csv")
    recipe.do(table, setting, 2, 3, ("recipe", "no_negatives"), (5,))
    assert list(table.rows) == [
        ("targets", 1008, "last"),
        ("start", recipe.START_SEED, "last"),
        ("recipe", 5, "last"),
        ("recipe", 5, "average"),
        ("no_negatives", 5, "last"),
        ("no_negatives", 5, "average"),
    ]
    of_run = {name: float(value) for name, value in table.rows["recipe", 5, "last"].items() if name in of_interest}
    assert all(0 <= value <= 1 for value in of_run.values()) and set(of_run) == of_interest
    assert float(table.rows["recipe", 5, "last"]["words_drawn"]) > 6  # 3 steps of two images with two each
    assert float(table.rows["no_negatives", 5, "last"]["words_drawn"]) == 0
    before = (tmp_path / "runs.csv").read_bytes()
    recipe.do(Table(tmp_path / "runs.csv"), setting, 2, 3, ("recipe",), (5,))
    assert (tmp_path / "runs.csv").read_bytes() == before


of_interest = {"dice_union", "dice_semantic", "dice_top1", "score_drawn", "score_never", "score_hard_never", "auroc"}
