"""Parts drawn by hash: they depend on the ids alone, not on the order of files, the machine or the Python version."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from decimal import ROUND_HALF_UP, Decimal

import numpy as np


def rounded_share(fraction: Decimal, images: int, at_most: int) -> int:
    """So many of the images, rounded half up: at least one, if `at_most` allows."""
    return min(max(int((fraction * images).quantize(Decimal(1), ROUND_HALF_UP)), 1), max(at_most, 0))


def draw_images(salt: str, ids: Iterable[str], wanted: int) -> set[str]:
    """The first of the ids in the order of SHA-256("<salt>:<id>")."""
    return set(_by_hash(salt, ids)[:wanted])


def draw_groups(salt: str, groups: Sequence[str], wanted: int) -> set[str]:
    """The first groups in the order of SHA-256("<salt>:<group>"), as many as bring their images nearest to `wanted`.

    The fewer on a tie; never the last group.

    Args:
        groups: of each image.
    """
    sizes: dict[str, int] = {}
    for group in groups:
        sizes[group] = sizes.get(group, 0) + 1
    order = _by_hash(salt, sizes)
    totals = np.cumsum([sizes[group] for group in order[:-1]])
    if totals.size == 0:
        return set()
    return set(order[: int(np.abs(totals - wanted).argmin()) + 1])


def draw_each(salt: str, names: Iterable[str], fraction: Decimal) -> set[str]:
    """Those whose SHA-256("<salt>:<name>"), as a number from 0 to 1, is below the fraction, whoever else is there."""
    return {name for name in names if int(_hash(salt, name), 16) < fraction * 2**256}


def _by_hash(salt: str, names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: _hash(salt, name))


def _hash(salt: str, name: str) -> str:
    return hashlib.sha256(f"{salt}:{name}".encode()).hexdigest()
