"""The page of a training run shows all that was logged, of a run that goes on too, and says what it cannot read."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from medsam3.reports import curves
from medsam3.reports.panels import ELSEWHERE, GROUPS, TABLED
from medsam3.reports.run_files import cases, read_run
from medsam3.reports.run_page import run_report
from tests.conftest import ROOT
from tests.scripts import run_script

LINE = {"step": 1, "loss/total": 2.0}


def written(folder: Path, *lines: object, rest: str = "") -> Path:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + rest)
    return folder


def test_every_name_of_a_run_has_a_panel_and_every_group_is_explained(run):
    names = read_run(run).names()
    panels = [panel for group in GROUPS.values() for panel in group]
    shown = {name for panel in panels for name in panel.lines(names)}
    rest = [
        name for name in names if name not in shown and not TABLED.fullmatch(name) and not ELSEWHERE.fullmatch(name)
    ]
    assert rest == [] and {"loss_layers_o2m/box_1", "presence/accuracy_present", "lr_vision/block_01"} <= shown
    explained = (ROOT / "docs/dashboards.md").read_text()
    assert all(f"## {group}\n" in explained for group in GROUPS)
    names_in_docs = ("gradient_norm/", "speed/mfu", "speed/data_wait_share", "matched/one_to_one", "asked/")
    assert all(name in explained for name in names_in_docs)


def test_the_page_of_a_trained_run_is_one_file_and_holds_its_cases(run, tmp_path):
    folder = Path(shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("last", "best")))
    done = run_script("report.py", f"run={folder}", cwd=tmp_path)
    assert done.stdout == f"report   {folder}/report.html\n"
    page = (folder / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)|https?:|url\(|@import', page)
    for words in ("Finished (ended", "No MFU: no peak is known of CPU.", "<h3>Total<", "Dice by data set", "mni152"):
        assert words in page
    cells = re.findall(r'<td class="word">([^<]*)', page)
    assert cells[(place := cells.index("trainer.max_steps")) + 1 : place + 3] == ["None", "1"]
    (some, *_) = cases(read_run(folder)).values()
    (picture,) = some.values()
    comment = Image.open(picture).info["comment"].decode()
    assert "Dice" in comment and comment in page and page.count('class="answer"') == len(cases(read_run(folder)))


def test_pictures_of_a_validation_that_is_not_in_the_log_are_not_shown(tmp_path):
    written(tmp_path, LINE, {"step": 2, "epoch": 1.0, "validation/dice": 0.5})
    for step in (2, 4):
        (tmp_path / "cases/a").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (976, 364)).save(tmp_path / f"cases/a/{step:08d}.jpg")
    assert [*cases(read_run(tmp_path))["a"]] == [2]


def test_what_a_folder_holds_is_text_and_nothing_else(tmp_path):
    (tmp_path / "config.yaml").write_text("name: <script>x</script>\n")
    written(tmp_path, LINE, {"step": 2, "skipped": ["a/<b>/c"], "reasons": ["<i>nan"]}, rest='{"step": 3, "lo')
    page = run_report(read_run(tmp_path), {"name": "dev"})
    assert "&lt;script&gt;x" in page and "<script>x" not in page and "a/&lt;b&gt;/c" in page and "<i>nan" not in page
    assert "The last line of metrics.jsonl is not whole" in page and "<b>1</b>steps left out" in page


def test_a_kill_is_told_from_a_stop(tmp_path):
    events = [("started", 0), ("resumed", 2), ("stopped", 4), ("resumed", 4)]
    lines = [json.dumps({"time": "t", "event": what, "step": step}) + "\n" for what, step in events]
    (tmp_path / "events.jsonl").write_text("".join(lines))
    page = run_report(read_run(written(tmp_path, LINE)), {})
    assert page.count("killed, or ended without a word") == 1 and "In progress, or killed (resumed t, step 4)" in page
    for end, words in ((4, "Finished early, by trainer.patience (ended t"), (5, "Finished (ended t, step 5)")):
        last = json.dumps({"time": "t", "event": "ended", "step": end}) + "\n"
        (tmp_path / "events.jsonl").write_text(
            "".join(lines).replace('"step": 4}', '"step": 4, "total_steps": 5}') + last
        )
        assert words in run_report(read_run(tmp_path), {})


def test_what_cannot_be_read_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"no metrics\.jsonl there; it must be the folder of a training run"):
        read_run(tmp_path)
    for content in ("", '{"step": 1'):
        (tmp_path / "metrics.jsonl").write_text(content)
        with pytest.raises(ValueError, match=r"metrics\.jsonl: nothing is logged yet"):
            read_run(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n[]\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl: line 2 is not of a run"):
        read_run(tmp_path)
    for given in ([], ["results=a", "run=b"]):
        done = run_script("report.py", *given, cwd=tmp_path, check=False)
        assert done.returncode == 2 and "give one of them" in done.stderr


def test_a_chart_puts_values_where_they_belong():
    """The frame goes from (48, 244) to (388, 14); a logarithmic scale has no zero, two points are left."""
    drawn = curves.chart({"a": [(0, 0.0), (10, 0.01), (100, 1.0)]}, log=True, over="step")
    assert 'd="M82.0 244.0L388.0 14.0"' in drawn and "logarithmic" in drawn
    drawn = curves.chart({"a": [(0, 0.0), (50, 4.0)], "b": [(0, 2.0), (50, float(1))]}, log=False, over="epoch")
    assert 'd="M48.0 244.0L388.0 14.0"' in drawn and 'd="M48.0 129.0L388.0 186.5"' in drawn
    assert curves.chart({"a": [(0, 0.0)]}, log=True, over="step") == ""


def test_ticks_are_told_apart():
    drawn = curves.chart({"a": [(0, 0.34701), (50, 0.34789)]}, log=False, over="step")
    assert ">0.34725<" in drawn and ">0.34750<" not in drawn and "<b>0.348</b>" in drawn
    assert curves._labels([0.0, 2000.0, 4000.0]) == ["0", "2,000", "4,000"]
    assert curves._labels([1000.2, 1000.4]) == ["1000.2", "1000.4"]


def test_a_long_line_is_thinned_by_means():
    drawn = curves.chart({"a": [(i, float(i % 2)) for i in range(500)]}, log=False, over="step")
    assert "a <b>1</b>" in drawn  # the last value; its neighbour, 0, is averaged with it in the line alone
    assert drawn.count("L") < 260
