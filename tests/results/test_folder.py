"""Folders that were edited by hand, cut short or mixed: one error that names the file, and no other number."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medsam3.files import file_hash
from medsam3.results.folder import read_results
from tests.evaluation.results_files import write_results
from tests.results.test_comparison import rows

Lines = list[list[str]]


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_results(tmp_path / "a", {"x": rows([0.5, 0.6, 0.0, 0.0])}, kinds=["present"] * 2 + ["marked", "hard"])


def edit(folder: Path, change: Callable[[Lines], Any], name: str = "results.csv") -> None:
    with (folder / name).open(newline="") as file:
        lines = list(csv.reader(file))
    change(lines)
    with (folder / name).open("w", newline="") as file:
        csv.writer(file).writerows(lines)


def cell(line: int, column: str, value: str) -> Callable[[Lines], Any]:
    return lambda lines: lines[line].__setitem__(lines[0].index(column), value)


def note(folder: Path, **changes: Any) -> None:
    path = folder / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (cell(1, "dice", "abc"), "conversion error to double: invalid value 'abc'"),
        (cell(1, "score", "high"), "invalid value 'high'"),
        (cell(1, "truth_px", "1.5"), "conversion error to int64: invalid value '1.5'"),
        (cell(0, "iou", "dice"), "exists 2 times"),
        (cell(3, "kind", "foo"), "kind='foo': must be one of present, marked, hard, easy"),
        (cell(0, "kind", "kinds"), "no column kind"),
    ],
)
def test_a_table_that_is_none_is_named(folder, change, expected):
    edit(folder, change)
    with pytest.raises(ValueError, match=f"{folder}/results.csv: .*{expected}"):
        read_results(folder)


@pytest.mark.parametrize("change", [lambda lines: lines.pop(), cell(3, "dice", "1.0"), cell(3, "kind", "hard")])
def test_rows_in_no_mean_of_results_json_cannot_change_either(folder, change):
    note(folder, files={"results.csv": file_hash(folder / "results.csv")})
    assert list(read_results(folder).rows["top1"]["x"].present) == [True, True, False, False]
    edit(folder, change)
    with pytest.raises(ValueError, match=f"{folder}/results.csv: is not as its evaluation wrote it"):
        read_results(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"rules": {"top1": {}}}, {"rules": {"top1": {"datasets": {"x": None}}}}, {"instances": [1]}, {"obedience": []},
        {"instances": {"x": {"own": {}, "concepts": {}, "kind": ""}}}, {"question": {"rows": {}, "prediction": "a"}},
    ],
)  # fmt: skip
def test_a_results_json_of_another_shape_is_named(folder, changes):
    note(folder, **changes)
    with pytest.raises(ValueError, match=f"{folder}/results.json: not of this version"):
        read_results(folder)
    (folder / "results.json").write_bytes(b'{"question": "\xe9"}')
    with pytest.raises(ValueError, match=f"{folder}/results.json: not of this version"):
        read_results(folder)
