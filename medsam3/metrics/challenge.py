"""The metrics of the CVPR 2025 text-guided 3D challenge, with its faults, beside honest ones.

Reproduced from its `CVPR25_text_eval.py` (https://github.com/JunMa11/CVPR-MedSegFMCompetition): masks cut to 8 bits;
DSC and NSD (2 mm) as means over the classes that the truth holds, so that a mask of an absent class costs nothing; for
single objects F1 at IoU 0.5 and the mean Dice of the pairs found, so that above 255 numbers wrap and objects merge.

The honest columns take all classes that were asked (an absent one counts 1 if nothing is claimed, else 0) and all
objects.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from medsam3.config import ChallengeConfig
from medsam3.files import writable_folder, write_text
from medsam3.layouts.challenge_files import ANSWER, TRUTH, read_case, read_labels
from medsam3.metrics.surfaces import nsd

TOLERANCE_MM = 2.0
MATCHED = 0.5  # IoU
Labels = NDArray[np.integer]


@dataclass(frozen=True)
class CaseScores:
    """0..1; None: does not apply. Where an answer is missing all that applies is 0."""

    case: str
    missing: bool
    dsc: float | None = None
    nsd: float | None = None
    f1: float | None = None
    dsc_tp: float | None = None  # None also where no object was found
    honest_dsc: float | None = None
    honest_nsd: float | None = None
    honest_f1: float | None = None
    honest_dsc_tp: float | None = None


NUMBERS = [field.name for field in fields(CaseScores)][2:]


def semantic_scores(
    answer: Labels, truth: Labels, asked: Sequence[int], spacing_mm: Sequence[float]
) -> tuple[float | None, float | None, float, float]:
    """DSC and NSD of the challenge (None: the truth is empty), and honest ones over all classes asked.

    Raises:
        ValueError: the truth holds a class that was not asked.
    """
    unasked = sorted(set(np.unique(truth).tolist()) - {0, *asked})
    if unasked:
        raise ValueError(f"the truth holds the labels {unasked}, which no prompt asks for")
    own = [(answer == label, truth == label) for label in asked]
    honest = _means(own, spacing_mm)
    narrow, narrow_truth = answer.astype(np.uint8), truth.astype(np.uint8)
    present = np.unique(narrow_truth)
    pairs = [(narrow == label, narrow_truth == label) for label in present[present > 0]]
    return (*(_means(pairs, spacing_mm) if pairs else (None, None)), *honest)


def _dice(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    total = np.count_nonzero(one) + np.count_nonzero(other)
    return 2 * np.count_nonzero(one & other) / total if total else 1.0


def _means(pairs: Iterable[tuple[Any, Any]], spacing_mm: Sequence[float]) -> tuple[float, float]:
    found = [(_dice(one, other), nsd(one, other, TOLERANCE_MM, spacing_mm)) for one, other in pairs]
    return float(np.mean([d for d, _ in found])), float(np.mean([n for _, n in found]))


def instance_scores(answer: Labels, truth: Labels) -> tuple[float, float | None]:
    """F1 at IoU 0.5 and mean Dice of the pairs found (None: there is none).

    An answer with a single number is cut into its parts, joined by faces, as the challenge does.
    """
    answer = _single_objects(answer)
    shared = _contingency(answer, truth)
    areas, truth_areas = shared.sum(axis=1)[1:], shared.sum(axis=0)[1:]
    pairs = shared[1:, 1:]
    iou = pairs / np.maximum(areas[:, None] + truth_areas[None] - pairs, 1)
    rows, columns = linear_sum_assignment(-1.0 * (iou >= MATCHED) - iou / (2 * max(min(iou.shape), 1)))
    kept = iou[rows, columns] >= MATCHED
    found = int(kept.sum())
    total = len(areas) + len(truth_areas)
    dices = 2 * pairs[rows, columns][kept] / (areas[rows] + truth_areas[columns])[kept]
    return (2 * found / total if total else 1.0), (float(dices.mean()) if found else None)


def _single_objects(answer: Labels) -> Labels:
    if len(np.unique(answer)) != 2 or not (answer == 0).any():
        return answer
    parts = ndimage.label(answer)[0]
    return np.where(parts > 0, parts + int(answer.max()), 0).astype(answer.dtype)  # in 8 bits they wrap


def _contingency(answer: Labels, truth: Labels) -> NDArray[np.int64]:
    """[1 + N, 1 + M] voxels that each object of one shares with each of the other; the first are the background."""
    numbers = []
    for labels in (answer, truth):
        known, inverse = np.unique(np.append(labels.ravel(), 0), return_inverse=True)
        numbers.append((inverse[:-1], len(known)))
    (first, n), (second, m) = numbers
    return np.bincount(first * m + second, minlength=n * m).reshape(n, m)


def score_case(case: Path, truth: Path, answer: Path) -> CaseScores:
    """
    Raises:
        ValueError: a file that cannot be read, other shapes.
    """
    asked, labels = read_case(case), read_labels(truth, TRUTH)
    missing = not answer.is_file()
    given = np.zeros_like(labels) if missing else read_labels(answer, ANSWER)
    if not given.shape == labels.shape == asked.pictures.shape:
        raise ValueError(f"{answer}: segs {given.shape}, gts {labels.shape} and imgs {asked.pictures.shape} differ")
    if asked.instances:
        f1, dsc_tp = instance_scores(given.astype(np.uint8), labels.astype(np.uint8))
        honest = instance_scores(given.astype(np.int64), labels.astype(np.int64))
        if not given.any():
            f1 = 0.0
        return CaseScores(
            case.name, missing, None, None, f1, dsc_tp, None, None, 0.0 if missing else honest[0], honest[1]
        )
    names = ("dsc", "nsd", "honest_dsc", "honest_nsd")
    try:
        scores = semantic_scores(given, labels, list(asked.prompts), asked.spacing_mm)
    except ValueError as error:
        raise ValueError(f"{case}: {error}") from error
    if missing:
        scores = (0.0 if scores[0] is not None else None, 0.0 if scores[1] is not None else None, 0.0, 0.0)
    return CaseScores(case.name, missing, **dict(zip(names, scores, strict=True)))


def score(config: ChallengeConfig) -> list[CaseScores]:
    """Score all cases; writes challenge.csv with a row per case, and prints the means.

    Raises:
        ValueError: no cases, truth that is missing, see `score_case`.
    """
    cases = sorted(Path(config.cases).glob("*.npz"))
    if not cases:
        raise ValueError(f"cases={config.cases}: no .npz file in it")
    folder = writable_folder(config.output_dir, "output_dir", "output_dir")
    found = [score_case(case, Path(config.truth) / case.name, Path(config.predictions) / case.name) for case in cases]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([field.name for field in fields(CaseScores)])
    table.writerows([[getattr(one, field.name) for field in fields(CaseScores)] for one in found])
    write_text(folder / "challenge.csv", text.getvalue())
    for name in NUMBERS:
        values = [value for one in found if (value := getattr(one, name)) is not None]
        mean = f"{100 * math.fsum(values) / len(values):6.2f}" if values else "     -"
        print(f"{name:14} {mean}   {len(values)} cases")
    missing = [one.case for one in found if one.missing]
    if missing:
        print(f"WARNING {len(missing)} cases without an answer count as 0: {', '.join(missing[:5])}")
    return found
