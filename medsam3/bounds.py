"""The legal range of every number in configs/. A new key gets its line here; a test finds keys that have none."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any


@dataclass(frozen=True)
class Range:
    words: str  # completes "must be ..."
    holds: Callable[[float], bool]


ANY = Range("a number", lambda value: True)
NOT_NEGATIVE = Range("0 or more", lambda value: value >= 0)
POSITIVE = Range("greater than 0", lambda value: value > 0)
FRACTION = Range("from 0 to 1", lambda value: 0 <= value <= 1)
INSIDE = Range("between 0 and 1, and neither", lambda value: 0 < value < 1)
DECAY = Range("greater than 0, and at most 1", lambda value: 0 < value <= 1)
BELOW_1 = Range("0 or more, and less than 1", lambda value: 0 <= value < 1)
SEED = Range("from 0 to 4294967295", lambda value: 0 <= value < 2**32)
SIDE_PX = Range("a multiple of 14, 28 or more, for example 224 or 1008", lambda px: px >= 28 and px % 14 == 0)
NNUNET_ID = Range("from 1 to 999", lambda value: 1 <= value <= 999)
PERCENT = Range("from 0 to 100", lambda value: 0 <= value <= 100)
PORT = Range("from 1 to 65535", lambda value: 1 <= value <= 65535)
BITS = Range("from 0 to 256", lambda value: 0 <= value <= 256)

# The first pattern that fits a key counts; keys as on the command line.
RANGES: dict[str, Range] = {
    "seed": SEED,
    "data.split.seed": SEED,
    "model.image_size": SIDE_PX,
    "image_size": SIDE_PX,
    "model.regularisation.*": BELOW_1,
    "model.adapt.dropout": BELOW_1,
    "model.adapt.*": POSITIVE,
    "data.split.train_fraction": INSIDE,
    "data.split.test_fraction": BELOW_1,
    "data.absent_concepts": NOT_NEGATIVE,
    "data.hard_negatives": NOT_NEGATIVE,
    "data.synonyms": FRACTION,
    "data.own_negatives": FRACTION,
    "data.max_queries": POSITIVE,
    "data.max_repeats": POSITIVE,
    "data.augmentation.smallest": DECAY,
    "data.augmentation.*.crop": DECAY,
    "data.augmentation.*": FRACTION,
    "data.weights.*": NOT_NEGATIVE,
    "loss.one_to_many.top_k": POSITIVE,
    "loss.one_to_many.threshold": FRACTION,
    "loss.find.padded_queries": POSITIVE,
    "loss.*alpha": FRACTION,
    "loss.*gamma": NOT_NEGATIVE,
    "loss.*weight": NOT_NEGATIVE,
    "loss.*cost": NOT_NEGATIVE,
    "optim.lr.*": NOT_NEGATIVE,
    "optim.layer_decay": DECAY,
    "optim.layer_decay_depth": POSITIVE,
    "optim.weight_decay": BELOW_1,
    "optim.betas": BELOW_1,
    "optim.clip_norm": POSITIVE,
    "optim.reference_batch": POSITIVE,
    "optim.schedule.timescale": POSITIVE,
    "optim.schedule.*": NOT_NEGATIVE,
    "trainer.average_decay": INSIDE,
    "trainer.*": POSITIVE,
    "prediction.*_threshold": FRACTION,
    "prediction.queries_per_pass": POSITIVE,
    "prediction.tile": POSITIVE,
    "prediction.tile_overlap": NOT_NEGATIVE,
    "evaluation.images": POSITIVE,
    "pictures": NOT_NEGATIVE,
    "evaluation.foreign.seed": SEED,
    "evaluation.foreign.*": NOT_NEGATIVE,
    "evaluation.instance_score": FRACTION,
    "evaluation.overlays": NOT_NEGATIVE,
    "box_noise": NOT_NEGATIVE,
    "box_noise_max_px": POSITIVE,
    "volume.seed_threshold": FRACTION,
    "volume.nms_iou": FRACTION,
    "volume.slices_per_pass": POSITIVE,
    "volume.*": NOT_NEGATIVE,
    "scan.percentiles": PERCENT,
    "scan.window": ANY,
    "scan.modality_windows.*": ANY,
    "scan.modality_windows": ANY,
    "port": PORT,
    "upload_mb": POSITIVE,
    "keep_minutes": POSITIVE,
    "pictures_per_pass": POSITIVE,
    "max_distance": BITS,
    "export_id": NNUNET_ID,
    "attempts": POSITIVE,
    "nsd_mm": NOT_NEGATIVE,
    "wait_s": NOT_NEGATIVE,
    "timeout_s": POSITIVE,
    "*workers": NOT_NEGATIVE,
}


def range_of(key: str) -> Range | None:
    """The range of a dotted key; None if it has none."""
    return next((legal for pattern, legal in RANGES.items() if fnmatchcase(key, pattern)), None)


def check_numbers(config: Any) -> None:
    """
    Raises:
        ValueError: a number that is not finite or out of its range; names key, value and range.
    """
    for key, value in leaves(config):
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if not math.isfinite(value):
            raise ValueError(f"{key}={value}: must be a finite number")
        legal = range_of(key.partition("[")[0])
        if legal is not None and not legal.holds(value):
            raise ValueError(f"{key}={value}: must be {legal.words}")


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything that is neither dataclass, mapping nor list; list items as `key[0]`."""
    if dataclasses.is_dataclass(value) or isinstance(value, dict):
        for name, inner in (value if isinstance(value, dict) else vars(value)).items():
            yield from leaves(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from leaves(inner, f"{key}[{i}]")
    else:
        yield key, value
