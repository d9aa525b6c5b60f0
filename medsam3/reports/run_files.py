"""What a run's folder holds for its page: the lines of its logs, also while the run goes on, and its fixed cases."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

METRICS, EVENTS = "metrics.jsonl", "events.jsonl"
Point = tuple[float, float]


@dataclass(frozen=True)
class RunFiles:
    folder: Path
    lines: list[dict[str, Any]]  # of metrics.jsonl
    events: list[dict[str, Any]]
    config: dict[str, Any]
    environment: dict[str, Any]
    torn: bool  # the last line is not whole: it is being written, or a kill cut it

    def names(self) -> list[str]:
        """Of all values, in the order of their first appearance."""
        return list(dict.fromkeys(name for line in self.lines for name in line if "/" in name))

    def curve(self, name: str, over: str) -> list[Point]:
        """The finite values of a name.

        Args:
            over: step | epoch
        """
        found = [(line.get(over, line["step"]), line[name]) for line in self.lines if name in line]
        return [(float(x), float(y)) for x, y in found if isinstance(y, int | float) and math.isfinite(y)]

    def validated(self) -> dict[int, float]:
        """Step -> epochs done, of all validations."""
        return {line["step"]: line.get("epoch", math.nan) for line in self.lines if "validation/dice" in line}


def read_run(folder: Path) -> RunFiles:
    """
    Raises:
        ValueError: it is no run's folder, nothing has been logged yet, or a line cannot be read.
    """
    path = folder / METRICS
    if not path.is_file():
        raise ValueError(f"run={folder}: no {METRICS} there; it must be the folder of a training run (runs/<name>)")
    lines, torn = _read_lines(path)
    if not lines:
        raise ValueError(f"{path}: nothing is logged yet; a run writes every trainer.log_every_steps steps")
    events = _read_lines(folder / EVENTS)[0] if (folder / EVENTS).is_file() else []
    config, environment = _mapping(folder / "config.yaml"), _mapping(folder / "environment.json")
    return RunFiles(folder, lines, events, config, environment, torn)


def _read_lines(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """The lines, and whether the last one is torn; that one is left out."""
    content = path.read_bytes()
    whole, _, rest = content.rpartition(b"\n")
    lines = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            values = json.loads(line)
            assert isinstance(values["step"], int)
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise ValueError(f"{path}: line {number} is not of a run ({error!r}); mend or remove it") from error
        lines.append(values)
    return lines, bool(rest)


def _mapping(path: Path) -> dict[str, Any]:
    """Of a YAML or JSON file; empty if it is not there.

    Raises:
        ValueError: it is something else.
    """
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not the file that a run writes: a mapping is expected")
    return content


def cases(run: RunFiles, group: str = "cases") -> dict[str, dict[int, Path]]:
    """Case -> step -> its picture, of those validations whose lines are there."""
    steps = run.validated()
    found: dict[str, dict[int, Path]] = {}
    for path in sorted((run.folder / group).glob("*/*.jpg")):
        if path.stem.isdigit() and int(path.stem) in steps:
            found.setdefault(path.parent.name, {})[int(path.stem)] = path
    return found


def caption(path: Path) -> str:
    """What `pictures.overlay` wrote below the panels."""
    with Image.open(path) as picture:
        comment = picture.info.get("comment", b"")
    return comment.decode("utf-8", "replace") if isinstance(comment, bytes) else str(comment)
