"""What a reader must know to judge a result: a section of the report.

The questions are those of Metrics Reloaded (Maier-Hein et al. 2024) and of the CLAIM checklist (2024 update).
"""

from __future__ import annotations

import math
from typing import Any

from medsam3.metrics.masks import NSD_TOLERANCE, measure_distances, one_unit
from medsam3.metrics.statistics import MIN_GROUPS
from medsam3.reports.beside import Pair, Side, dice_of, key_of
from medsam3.reports.charts import table
from medsam3.results.question import MASKS
from medsam3.results.scores import DRAWS, LEVEL, SEED

WORST = 5


def protocol_section(results: Pair) -> str:
    """Question and answer, and the parts of the data sets."""
    lines = [*model_lines(results.ours.question, results.ours.hashes), *_numbers(results)]
    return (
        "<h2>How this was measured</h2><p>What Metrics Reloaded and the CLAIM checklist (2024) ask of a result.</p>"
        + table(["asked", "answer"], lines, words=2, kind="words")
        + _parts(results.ours)
    )


def _known(content: dict[str, Any], name: str, not_known: str = "not recorded") -> str:
    return str(content.get(name, not_known))


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _input(asked: dict[str, Any]) -> str:
    if asked.get("prompt") == MASKS:
        return "masks from files; what was shown to their maker, and what it was trained on, is not known here"
    shown = {
        "text": "text alone",
        "box": "the TRUE BOX of the target",
        "text_box": "text and the TRUE BOX of the target",
    }
    shown["noisy_box"] = f"the true box of the target with noise ({_known(asked, 'box_noise')})"
    return (
        f"{shown.get(asked.get('prompt', ''), _known(asked, 'prompt'))}; names {_known(asked, 'prompts')}; images at "
        f"{_known(asked, 'image_size')} px (trained at {_known(asked, 'own_image_size')}); {_known(asked, 'precision')}"
    )


def _foreign(asked: dict[str, Any]) -> str:
    words = [f"{number} {kind}" for kind in ("hard", "easy") if (number := asked.get("foreign", {}).get(kind))]
    return f"; and of each image {' and '.join(words)} words for what it cannot show" if words else ""


def model_lines(asked: dict[str, Any], hashes: dict[str, str]) -> list[list[str]]:
    """Of a question, and of the SHA-256 of the files of its answers."""
    prediction = ", ".join(f"{key} {_plain(value)}" for key, value in (asked.get("prediction") or {}).items())
    versions = ", ".join(f"{name} {version or 'absent'}" for name, version in asked.get("versions", {}).items())
    wanted = {"present": "only what is in the image, as in the paper", "all": "what is there and what is not"}
    seen = {
        "True": "allow_training_rows=true: rows that the model was trained on were NOT refused",
        "False": "refused by split and by content, if the checkpoint records them (those from elsewhere do not)",
    }
    return [
        ["Model", f"{_known(asked, 'checkpoint')}; SHA-256 of its weights {_known(asked, 'weights_sha256')}"],
        ["Input", _input(asked)],
        ["Concepts asked", wanted.get(asked.get("ask", ""), _known(asked, "ask")) + _foreign(asked)],
        ["From answers to masks", prediction or "not recorded"],
        ["Reference standard", "the masks of the data sets as published, read as their YAML files say"],
        ["Training rows", seen.get(_known(asked, "training_rows_allowed"), "not recorded")],
        ["Software", f"code {_known(asked, 'code')}; {versions or 'not recorded'}; seed {_known(asked, 'seed')}"],
        ["Files", "; ".join(f"{name} SHA-256 {code}" for name, code in hashes.items())],
    ]  # fmt: skip


def _numbers(results: Pair) -> list[list[str]]:
    ours = results.ours
    cases = ours.of(ours.rules[0])
    wrong = {name: sum(not math.isfinite(case.values[name]) for case in cases) for name in ours.metrics}
    left_out = ", ".join(f"{count} queries have no finite {name}" for name, count in wrong.items() if count)
    finite = [case for case in cases if math.isfinite(dice_of(case))]
    worst = [f"{' '.join(key_of(case)[:3])} {dice_of(case):.3f}" for case in sorted(finite, key=dice_of)[:WORST]]
    distances = ""
    if measure_distances(ours.metrics):
        units = {name: one_unit(case.unit for case in cases if case.dataset == name) for name in ours.datasets}
        distances = (
            f". Distances (NSD within {NSD_TOLERANCE:g}, HD95) in mm where the file says how large a pixel is, else in "
            f"px: {', '.join(f'{name} {unit}' for name, unit in units.items())}; no mean over both"
        )
    lines = [
        ["Metrics", f"{', '.join(ours.metrics)}; per query at the image's own size, then the mean over the queries of "
         "a data set, then the unweighted mean over data sets" + distances],
        ["Empty truth", "Means are over queries whose concept is in the image. Where nothing is there, Dice and IoU "
         "are 1 if nothing is answered, else 0; these queries have numbers of their own."],
        ["Left out of means", left_out or "nothing: every value is finite"],
        ["Uncertainty", f"{100 * LEVEL:.0f} % bootstrap interval of the mean, {DRAWS:,} draws of whole groups (seed "
         f"{SEED}), percentiles corrected for few groups and for skewness; none below {MIN_GROUPS} groups, none of "
         "medians. Of the mean over data sets: groups drawn within each set; none if one has fewer; it speaks of other "
         "patients of these sets, not of other sets"],
        ["Worst cases", f"by Dice: {'; '.join(worst)}"],
    ]  # fmt: skip
    if results.baseline:
        differs = "; ".join(results.differences) or "nothing but the checkpoint"
        name = _known(results.baseline.question, "checkpoint")
        lines.append(["Baseline", f"{name}, on the same queries; asked differently (baseline -> ours): {differs}"])
    return lines


def _parts(ours: Side) -> str:
    """What was asked of each data set."""
    rows = []
    for name in ours.datasets:
        cases = ours.of(ours.rules[0], name) + ours.of(ours.rules[0], name, present=False)
        asked = ours.question["rows"].get(name, {})
        groups = {case.group for case in cases}
        numbers = [f"{len({case.item for case in cases}):,}", f"{len(groups):,}"]
        hashes = [_known(asked, key, "–")[:12] for key in ("split_sha256", "images_sha256")]
        counts = [_known(asked, key, "–") for key in ("excluded", "not_asked")]
        rows.append([name, _known(asked, "part", "–"), _known(asked, "split_by", "–"), *numbers, *counts, *hashes])
    heads = [
        "data set",
        "part",
        "split by",
        "images",
        "groups",
        "left out when prepared",
        "images of the part not asked",
    ]
    return "<h3>Parts</h3>" + table([*heads, "split file", "images and concepts asked"], rows, words=3)
