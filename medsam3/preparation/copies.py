"""Copies: items of one data set whose images have the same pixels, under whatever names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from medsam3.layouts.reader import Item, Problem, Reader


def fingerprint(reader: Reader, item: Item) -> str | None:
    """SHA-256 of the pixels of an item's image; None if it cannot be read, which checking the item will say."""
    try:
        image = reader.image(item)
    except ValueError:
        return None
    return hashlib.sha256(f"{image.shape}".encode() + image.tobytes()).hexdigest()


def find_copies(items: Sequence[Item], fingerprints: Iterable[str | None], keep: str) -> dict[str, Problem]:
    """Items to leave out, by id, each as a listed exclusion that names the other item.

    Args:
        items: sorted by id.
        keep: first: all copies but the first are left out; none: the first too, as their labels contradict each other.
    """
    first_of: dict[str, Item] = {}
    left_out: dict[str, Problem] = {}
    for item, found in zip(items, fingerprints, strict=True):
        first = first_of.setdefault(found, item) if found is not None else item
        if first is not item:
            left_out[item.id] = Problem(item.id, f"the same image as {first.id} (copies: {keep})", expected=True)
            if keep == "none":
                left_out[first.id] = Problem(first.id, f"the same image as {item.id} (copies: none)", expected=True)
    return left_out
