"""The tables of docs/recipe.md, from the CSV file of the runs: no figure there is typed."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import mean, stdev

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from medsam3.benchmarks.evidence import Table
from medsam3.benchmarks.levers import LEVERS, TARGET_PX, TARGETS, VARIANTS, Lever
from medsam3.command_line import CONFIG_FOLDER
from medsam3.config import register_schemas
from medsam3.files import write_text
from medsam3.messages import markdown_table
from medsam3.registry.spec import load_specs

NOT_RUN = "not run"
SHOWN = {  # measure -> heading; all in percent
    "dice_union": "Dice, union",
    "dice_semantic": "semantic",
    "dice_top1": "top1",
    "score_present": "score, present",
    "score_drawn": "absent, drawn",
    "score_never": "absent, never drawn",
    "score_elsewhere": "absent, another set's concept",
    "auroc": "AUROC of presence",
}
EFFECT = {  # of a lever
    "dice_union": "Dice union",
    "dice_semantic": "semantic",
    "dice_top1": "top1",
    "score_drawn": "score where absent",
    "score_never": "the same, words never drawn",
    "score_elsewhere": "the same, concepts of other sets",
    "auroc": "AUROC",
}


def write(page: Path, table: Table) -> str:
    """Put the tables between the marks of the page, and return them.

    Raises:
        ValueError: the page lacks a mark.
    """
    text = page.read_text(encoding="utf-8")
    blocks = {"levers": _levers(table), "runs": _runs(table)}
    for name, block in blocks.items():
        before, mark, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if not end or mark in rest:
            raise ValueError(f"{page}: must hold <!-- {name} --> once, and <!-- end --> below it")
        text = before + mark + block + end + after
    write_text(page, text)
    return "\n".join(blocks.values())


def _levers(table: Table) -> str:
    head = ("lever", "what", "why", "`recommended`", "CPU time of a run", "effect, in points, with 95 % interval")
    register_schemas()
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        recommended = compose("train", ["experiment=recommended"])
    rows = [
        (lever.name, lever.what, lever.why, _setting(lever, recommended), _cost(table, lever), _effect(table, lever))
        for lever in LEVERS
    ]
    return markdown_table(head, rows).replace("---:", "---")  # words


def _setting(lever: Lever, recommended: DictConfig) -> str:
    if not lever.key:
        return "always"
    value = OmegaConf.select(recommended, lever.key)
    return "off" if value in (None, 0, "none") else f"on: {value}"


def _cost(table: Table, lever: Lever) -> str:
    if lever.cost:
        return lever.cost
    on, off = (table.values(name, "last", "cpu_s") for name in (lever.on, lever.off))
    both = sorted(on.keys() & off.keys())
    return f"x {mean(on[seed] / off[seed] for seed in both):.2f}" if both else NOT_RUN


def _effect(table: Table, lever: Lever) -> str:
    if lever.on in ("", TARGETS):
        return lever.effect or _gains(table)
    parts = []
    for measure, name in EFFECT.items():
        found = table.difference(lever, measure)
        if found is None:
            return NOT_RUN
        width = f"± {100 * found.half_width:.1f}" if math.isfinite(found.half_width) else f"({found.seeds} seeds)"
        parts.append(f"{name} {100 * found.mean:+.1f} {width}")
    return "; ".join(parts)


def _gains(table: Table) -> str:
    row = table.rows.get((TARGETS, TARGET_PX, "last"), {})
    shown = []
    for name in (key.removeprefix("gain/") for key, value in row.items() if key.startswith("gain/") and value):
        mean, low, high = (100 * float(row[f"{part}/{name}"]) for part in ("gain", "low", "high"))
        interval = f" ({low:+.2f} to {high:+.2f})" if math.isfinite(low) else ""
        shown.append(f"Dice {mean:+.2f}{interval} on {load_specs(name)[name].title}")
    return "; ".join(shown) or NOT_RUN


def _runs(table: Table) -> str:
    """Mean and standard deviation over seeds of every variant."""
    rows = []
    names = [("start", "last"), *((name, "last") for name in VARIANTS)]
    names.insert(2, ("recipe", "average"))
    for name, weights in names:
        values = {measure: list(table.values(name, weights, measure).values()) for measure in SHOWN}
        seeds = len(values["dice_union"])
        title = name.replace("_", " ") + (", averaged weights" if weights == "average" else "")
        rows.append((title, str(seeds) if seeds else NOT_RUN, *(_spread(found) for found in values.values())))
    by_set = [f"dice_union/{name}" for name in ("mni152", "drive", "kvasir_seg")]
    sets = [
        (name.replace("_", " "), *(_spread(list(table.values(name, "last", measure).values())) for measure in by_set))
        for name, _ in (("start", ""), ("recipe", ""), ("no_negatives", ""))
    ]
    return (
        markdown_table(("runs", "seeds", *SHOWN.values()), rows)
        + "\n"
        + markdown_table(("Dice, union", "MNI152", "DRIVE", "Kvasir-SEG"), sets)
    )


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    return f"{100 * mean(values):.1f}" + (f" ± {100 * stdev(values):.1f}" if len(values) > 1 else "")
