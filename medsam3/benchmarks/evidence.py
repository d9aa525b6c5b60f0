"""The runs of the recipe's evidence: one line of a CSV file each, and what their differences amount to."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from medsam3.benchmarks.levers import VARIANTS, Lever
from medsam3.files import new_file
from medsam3.messages import listed

KEYS = ("run", "seed", "weights")
SETTINGS = ("image_size", "start", "steps", "overrides")
MIN_SEEDS = 3
FIRST = list(VARIANTS)[:2]


@dataclass(frozen=True)
class Difference:
    """What a lever adds, mean over seeds, each seed's pair of runs having the same order of images."""

    mean: float
    half_width: float  # of the 95 % interval of Student's t; infinite for fewer than 3 seeds
    seeds: int


class Table:
    """Rows of the CSV file, by run, seed and weights; written after every run, so that the work can be interrupted."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            ValueError: the file is there and not such a table.
        """
        self.path = path
        self.rows: dict[tuple[str, int, str], dict[str, str]] = {}
        if path.exists():
            with path.open(encoding="utf-8", newline="") as file:
                reader = csv.DictReader(file)
                missing = [name for name in (*KEYS, *SETTINGS) if name not in (reader.fieldnames or ())]
                if missing:
                    raise ValueError(f"{path}: no column {listed(missing)}; give another file")
                for row in reader:
                    self.rows[row["run"], int(row["seed"]), row["weights"]] = row

    def holds(self, run: str, seed: int, settings: dict[str, str]) -> bool:
        """
        Raises:
            ValueError: the run is there with other settings.
        """
        row = self.rows.get((run, seed, "last"))
        if row is None:
            return False
        other = [f"{name}={row[name]} (now {value})" for name, value in settings.items() if row[name] != value]
        if other:
            raise ValueError(f"{self.path}: {run}, seed {seed} ran with {listed(other)}; give another file")
        return True

    def add(self, run: str, seed: int, settings: dict[str, str], measured: dict[str, dict[str, float]]) -> None:
        for weights, values in measured.items():
            texts = {name: f"{value:.6g}" for name, value in values.items()}
            self.rows[run, seed, weights] = {"run": run, "seed": str(seed), "weights": weights, **settings, **texts}
        columns = list(dict.fromkeys(name for row in self.rows.values() for name in row))
        with new_file(self.path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows.values())

    def values(self, run: str, weights: str, measure: str) -> dict[int, float]:
        """By seed."""
        return {
            seed: float(row[measure])
            for (name, seed, kind), row in sorted(self.rows.items())
            if (name, kind) == (run, weights)
        }

    def difference(self, lever: Lever, measure: str) -> Difference | None:
        """None where a run is missing."""
        on = self.values(lever.on, lever.on_weights, measure)
        off = self.values(lever.off, "last", measure)
        gains = np.asarray([on[seed] - off[seed] for seed in sorted(on.keys() & off.keys())])
        if not len(gains):
            return None
        return Difference(float(gains.mean()), half_width(gains), len(gains))


def half_width(values: Iterable[float]) -> float:
    """Of the 95 % interval of a mean, by Student's t; infinite for fewer than 3 values."""
    array = np.asarray(list(values), dtype=np.float64)
    if len(array) < MIN_SEEDS:
        return math.inf
    return float(stats.t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / math.sqrt(len(array)))


def work(
    table: Table,
    seeds: Sequence[int],
    variants: Sequence[str],
    steps: int,
    settings: dict[str, str],
    run_once: Callable[[tuple[str, ...], int, int], dict[str, dict[str, float]]],
    say: Callable[[str], None],
) -> None:
    """Do what is not in the table yet, in an order in which what matters most comes first.

    Args:
        settings: what all runs share, for the file.
        run_once: (overrides, steps, seed) -> weights -> measured.
    """
    order = [(name, seed) for seed in seeds for name in variants if name in FIRST]
    order += [(name, seed) for name in variants if name not in FIRST for seed in seeds]
    for place, (name, seed) in enumerate(order):
        variant = VARIANTS[name]
        own_steps = round(steps * variant.steps)
        own = settings | {"steps": str(own_steps), "overrides": " ".join(variant.overrides)}
        if table.holds(name, seed, own):
            continue
        measured = run_once(variant.overrides, own_steps, seed)
        table.add(name, seed, own, measured)
        last = measured["last"]
        say(
            f"{place + 1} of {len(order)}  {name}, seed {seed}: {last['cpu_s']:.0f} s, Dice {last['dice_union']:.3f}, "
            f"score where absent {last['score_drawn']:.3f} (drawn), {last['score_never']:.3f} (never drawn)"
        )
