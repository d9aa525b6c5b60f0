"""Training and validation parts, drawn by hash (paper, section 4.1: 85 % and 15 %, seed 42)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal

import numpy as np

from medsam3.layouts.reader import Item


def assign_parts(dataset: str, items: Sequence[Item], train_fraction: float, seed: int) -> tuple[list[str], list[str]]:
    """Parts of the items, drawn by image and drawn by group.

    By image: items in the order of SHA-256("<seed>:<dataset>:<id>"); the first are validation, as many as the fraction
    says (rounded half up, at least one and not all where there are two or more). By group: groups in the order of
    SHA-256("<seed>:<dataset>:<group>"); the first are validation, as many as bring the images nearest to that number
    (the fewer on a tie). Items with a part of their own keep it and take no part in the draw. So the parts depend on
    the ids alone, not on the order of files, the machine or the Python version.
    """
    drawn = [item for item in items if item.part is None]
    wanted = _validation_count(len(drawn), train_fraction)
    by_hash = sorted((item.id for item in drawn), key=lambda text: _hash(seed, dataset, text))
    val_ids = set(by_hash[:wanted])
    val_groups = _validation_groups(dataset, drawn, wanted, seed)
    by_image = [item.part or ("val" if item.id in val_ids else "train") for item in items]
    by_group = [item.part or ("val" if item.group in val_groups else "train") for item in items]
    return by_image, by_group


def _validation_count(images: int, train_fraction: float) -> int:
    if images < 2:
        return 0
    exact = (1 - Decimal(str(train_fraction))) * images
    return min(max(int(exact.quantize(Decimal(1), ROUND_HALF_UP)), 1), images - 1)


def _validation_groups(dataset: str, items: Sequence[Item], wanted: int, seed: int) -> set[str]:
    sizes: dict[str, int] = {}
    for item in items:
        sizes[item.group] = sizes.get(item.group, 0) + 1
    order = sorted(sizes, key=lambda text: _hash(seed, dataset, text))
    totals = np.cumsum([sizes[group] for group in order[:-1]])  # the last group always stays for training
    if totals.size == 0:
        return set()
    return set(order[: int(np.abs(totals - wanted).argmin()) + 1])


def _hash(seed: int, dataset: str, text: str) -> str:
    return hashlib.sha256(f"{seed}:{dataset}:{text}".encode()).hexdigest()
