"""A finished evaluation read back from its folder: what was asked, and a value per query.

results.json holds the question, results.csv the rows; neither is of use without the other, so both are read and held
against each other.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from medsam3.files import file_hash
from medsam3.messages import listed, one_of
from medsam3.metrics.masks import METRICS, MM, PX
from medsam3.results.asking import FOREIGN, MARKED, PRESENT
from medsam3.results.instance_scores import IMAGE_METRICS, InstanceScores

FILES = ("results.json", "results.csv")
VOLUME_FILES = ("results_volumes.json", "results_volumes.csv")
NSD_MM = re.compile(r"nsd_(.+)mm")  # columns of volumes
Key = tuple[str, str]  # item, concept
_TEXTS = ("dataset", "item", "group", "concept", "rule", "kind")
_NUMBERS = ("score", "presence", "ceiling", "swapped", "swapped_truths", "swapped_absent")
_ROUNDING = 2e-6  # results.csv has six digits


@dataclass(frozen=True)
class Rows:
    """The rows of one data set by one mask rule, in the order of results.csv."""

    keys: list[Key]
    groups: list[str]
    kinds: list[str]  # see QueryResult
    values: dict[str, NDArray[np.float64]]  # by metric
    others: dict[str, list[Any]]  # further columns

    @property
    def present(self) -> NDArray[np.bool_]:
        return np.asarray(self.kinds) == PRESENT


@dataclass(frozen=True)
class Results:
    folder: Path
    question: dict[str, Any]  # as results.json has it
    rows: dict[str, dict[str, Rows]]  # rule -> data set
    baseline: str | None = None  # what it was shown beside: results.json, seen from the folder
    synonyms: Sequence[dict[str, Any]] = ()  # of results.json: see `Spread`
    instances: Mapping[str, InstanceScores] = field(default_factory=dict)  # by data set, if they were looked at
    single: Mapping[str, Rows] = field(default_factory=dict)  # IMAGE_METRICS of what is there, by data set
    chosen_on: Sequence[str] = ()  # data sets on whose rows asked for the checkpoint was chosen


def read_results(path: str | Path) -> Results:
    """
    Args:
        path: the folder of an evaluation, or one of its results.json and results.csv.

    Raises:
        ValueError: a file that is missing, of another version, or not of the same evaluation as the other one; a query
            that has two rows.
    """
    folder = Path(path).parent if Path(path).name in FILES else Path(path)
    for name in FILES:
        if not (folder / name).is_file():
            volumes = " (of slices: it holds results of volumes, see its volumes.md)" * is_of_volumes(folder)
            raise ValueError(f"{path}: no {name} in {folder}; give the folder of an evaluation (runs/<name>){volumes}")
    rows = _read_rows(folder / "results.csv")
    try:
        content = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        question = content["question"]
        named = [question["rows"], *(question.get(name) or {} for name in ("prediction", "versions"))]
        assert all(isinstance(own, dict) for own in named)
        means = [
            (rule, dataset, score["values"])
            for rule, found in content["rules"].items()
            for dataset, score in found["datasets"].items()
        ]
        synonyms = content.get("obedience", {}).get("spreads", ())
        single = {name: InstanceScores.from_json(own) for name, own in content.get("instances", {}).items()}
        _check_files(folder, content)
        _check_means(folder, rows, means)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise ValueError(
            f"{folder}/results.json: not of this version of scripts/evaluate.py ({error!r}); evaluate it again"
        ) from error
    table = folder / "instances.csv"
    alone = _read_instances(table) if single and table.is_file() else {}
    return Results(
        folder, question, rows, content.get("baseline"), synonyms, single, alone, content.get("chosen_on", ())
    )


def is_of_volumes(path: str | Path) -> bool:
    """Whether a path is the result of an evaluation of volumes; of a folder that holds both kinds it is not."""
    inside = (Path(path) / VOLUME_FILES[0]).is_file() and not (Path(path) / FILES[0]).is_file()
    return Path(path).name in VOLUME_FILES or inside


def read_volumes(path: str | Path) -> Results:
    """The same for an evaluation of volumes: an item is a volume, and the mask rule is the one that made its mask.

    Raises:
        ValueError: a file that is missing, of another version, or not of the same evaluation as the other one.
    """
    folder = Path(path).parent if Path(path).name in VOLUME_FILES else Path(path)
    try:
        content = json.loads((folder / VOLUME_FILES[0]).read_text(encoding="utf-8"))
        with (folder / VOLUME_FILES[1]).open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
        columns = [name for name in lines[0] if name in METRICS or NSD_MM.fullmatch(name)]
        further = [name for name in lines[0] if name not in columns]
        rows: dict[str, dict[str, Rows]] = {lines[0]["rule"]: {}}
        for name in dict.fromkeys(line["dataset"] for line in lines):
            own = [line for line in lines if line["dataset"] == name]
            present = np.asarray([line["present"] == "1" for line in own])
            values = {column: np.asarray([float(line[column] or "nan") for line in own]) for column in columns}
            rows[lines[0]["rule"]][name] = Rows(
                keys=[(line["volume"], line["concept"]) for line in own],
                groups=[line["group"] for line in own],
                kinds=[PRESENT if there else MARKED for there in present],
                values=values,
                others={"unit": [MM] * len(own)} | {name: [line[name] for line in own] for name in further},
            )
            for column, mean in content["means"].get(name, {}).get("all", {}).items():
                there = values[column][present & np.isfinite(values[column])].mean()
                if not abs(there - mean["mean"]) < _ROUNDING * max(1, abs(there)):
                    raise ValueError(f"{name}, {column}: {there:.6f} in one file, {mean['mean']:.6f} in the other")
        _check_files(folder, content)
        return Results(folder, content["question"], rows)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{path}: {' and '.join(VOLUME_FILES)} cannot be read together ({error})") from error


def _read_instances(path: Path) -> dict[str, Rows]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = [line for line in csv.DictReader(file) if int(line["truths"])]
        found = {}
        for name in dict.fromkeys(line["dataset"] for line in lines):
            own = [line for line in lines if line["dataset"] == name]
            found[name] = Rows(
                keys=[(line["item"], line["concept"]) for line in own],
                groups=[line["group"] for line in own],
                kinds=[PRESENT] * len(own),
                values={metric: np.asarray([float(line[metric]) for line in own]) for metric in IMAGE_METRICS},
                others={"unit": [PX] * len(own)},
            )
        return found
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not an instances.csv ({error!r}); evaluate it again") from error


def _read_rows(path: Path) -> dict[str, dict[str, Rows]]:
    types = dict.fromkeys((*_TEXTS, "part", "prompt", "unit"), pa.string())
    types |= dict.fromkeys((*METRICS, *_NUMBERS), pa.float64()) | dict.fromkeys(
        ("truth_px", "prediction_px"), pa.int64()
    )
    try:
        table = pyarrow.csv.read_csv(path, convert_options=pyarrow.csv.ConvertOptions(column_types=types))
        columns = {name: table.column(name).to_pylist() for name in table.column_names}
    except (pa.ArrowInvalid, KeyError) as error:  # KeyError: a column that is there twice
        raise ValueError(f"{path}: not a results.csv ({error})") from error
    metrics = [name for name in METRICS if name in columns]
    missing = [name for name in (*_TEXTS, "unit") if name not in columns]
    if missing or not metrics:
        raise ValueError(f"{path}: no column {listed(missing or METRICS)}; evaluate it again with this version")
    for kind in dict.fromkeys(columns["kind"]):
        one_of(f"{path}: kind", kind, (PRESENT, MARKED, *FOREIGN))
    values = {name: np.asarray(columns[name], dtype=np.float64) for name in metrics}
    for name in metrics:
        wrong = values[name][np.isfinite(values[name]) & ((values[name] < 0) | (values[name] > 1))]
        if METRICS[name].is_fraction and len(wrong):
            raise ValueError(f"{path}: {name}={wrong[0]:g}: must lie in 0 to 1")
    further = [name for name in columns if name not in (*_TEXTS, *metrics, "present")]
    others = {name: [math.nan if value is None else value for value in columns[name]] for name in further}
    places: dict[tuple[str, str], list[int]] = {}
    for i, place in enumerate(zip(columns["rule"], columns["dataset"], strict=True)):
        places.setdefault(place, []).append(i)
    found: dict[str, dict[str, Rows]] = {}
    for (rule, dataset), own in places.items():
        keys = [(columns["item"][i], columns["concept"][i]) for i in own]
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"{path}: {dataset}/{twice[0]} has two rows for {twice[1]!r} by {rule}")
        found.setdefault(rule, {})[dataset] = Rows(
            keys,
            [columns["group"][i] for i in own],
            [columns["kind"][i] for i in own],
            {name: value[own] for name, value in values.items()},
            {name: [column[i] for i in own] for name, column in others.items()},
        )
    return found


def _check_files(folder: Path, content: dict[str, Any]) -> None:
    """Raises a ValueError if a table is not the one that the means, intervals and refusals of the JSON file are of."""
    for name, written in content.get("files", {}).items():
        if (folder / name).is_file() and file_hash(folder / name) != written:
            raise ValueError(
                f"{folder / name}: is not as its evaluation wrote it (another SHA-256 than in the .json file beside "
                "it): edited, cut short, or of another evaluation; evaluate it again"
            )


def _check_means(
    folder: Path, rows: dict[str, dict[str, Rows]], means: list[tuple[str, str, dict[str, float]]]
) -> None:
    for rule, dataset, scores in means:
        own = rows.get(rule, {}).get(dataset)
        for name, mean in scores.items():
            if mean is None or math.isnan(mean) or (own is not None and name not in own.values):
                continue
            values = np.empty(0) if own is None else own.values[name][own.present]
            there = float(values[np.isfinite(values)].mean()) if np.isfinite(values).any() else math.inf
            if there != mean and not abs(there - mean) < _ROUNDING * max(1, abs(mean)):
                raise ValueError(
                    f"{folder}: results.csv and results.json are not of the same evaluation ({dataset}, {rule}, "
                    f"{name}: {there:.6f} and {mean:.6f}); evaluate it again"
                )


def pick(results: Results, datasets: Sequence[str] | None) -> Results:
    """The same with some data sets alone; None: all. Raises a ValueError for one that is not there."""
    if datasets is None:
        return results
    for name in datasets:
        one_of(f"{results.folder}: data set", name, results.question["rows"])
    asked = {name: rows for name, rows in results.question["rows"].items() if name in datasets}
    rows = {
        rule: {name: own for name, own in found.items() if name in datasets} for rule, found in results.rows.items()
    }
    parts = {name: own for name, own in results.instances.items() if name in datasets}
    single = {name: own for name, own in results.single.items() if name in datasets}
    question = results.question | {"rows": asked}
    return dataclasses.replace(results, question=question, rows=rows, instances=parts, single=single)
