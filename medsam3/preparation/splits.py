"""Training and validation parts, drawn by hash (paper, section 4.1: 85 % and 15 %, seed 42)."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from medsam3.data.draw import draw_each, draw_groups, draw_images, rounded_share
from medsam3.layouts.reader import Item


def assign_parts(
    dataset: str, items: Sequence[Item], train_fraction: float, seed: int, cohort: str | None = None
) -> tuple[list[str], list[str]]:
    """Parts of the items, drawn by image and drawn by group.

    By image: items in the order of SHA-256("<seed>:<dataset>:<id>"); the first are validation, as many as the fraction
    says (rounded half up, at least one and not all where there are two or more). By group: groups in the order of
    SHA-256("<seed>:<dataset>:<group>"); the first are validation, as many as bring the images nearest to that number
    (the fewer on a tie). By group in a cohort (see DatasetSpec): those groups are validation whose
    SHA-256("<seed>:<cohort>:<group>") falls into the fraction, whoever else is in the data set, so that a patient has
    one part in all of them; the images come near the fraction only where there are many patients. Items with a part of
    their own keep it and take no part in the draw. So the parts depend on the ids alone, not on the order of files, the
    machine or the Python version.
    """
    drawn = [item for item in items if item.part is None]
    fraction = 1 - Decimal(str(train_fraction))
    wanted = rounded_share(fraction, len(drawn), len(drawn) - 1)
    val_ids = draw_images(f"{seed}:{dataset}", [item.id for item in drawn], wanted)
    groups = [item.group for item in drawn]
    val_groups = draw_groups(f"{seed}:{dataset}", groups, wanted)
    if cohort is not None:
        val_groups = draw_each(f"{seed}:{cohort}", groups, fraction)
    by_image = [item.part or ("val" if item.id in val_ids else "train") for item in items]
    by_group = [item.part or ("val" if item.group in val_groups else "train") for item in items]
    return by_image, by_group
