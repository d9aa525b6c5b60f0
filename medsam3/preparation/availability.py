"""What is there of the data sets, by the names of their files, and what to do next for the rest."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medsam3.layouts.readers import NotFoundError, find_root
from medsam3.messages import listed
from medsam3.registry.cards import DatasetCard
from medsam3.registry.patterns import FilePattern, is_junk, list_files
from medsam3.registry.spec import DatasetSpec


@dataclass(frozen=True)
class Availability:
    """One row of the table."""

    name: str
    title: str
    state: str  # there | partly there | not there | unclear
    images: int  # image files found
    expected: int | None  # of the whole set; None: not known
    remark: str  # what is odd about it
    way: str  # fetch | account | home page
    account: str | None
    home: str
    licence: str
    commercial: str  # allowed | forbidden | unclear
    derivatives: str  # allowed | same licence | forbidden | unclear
    sharing: str  # allowed | forbidden | unclear
    size: str
    links: tuple[str, ...]
    links_tried_on: str | None  # None: not tried from here
    next: tuple[str, ...]  # what to type or click


def availability(spec: DatasetSpec, card: DatasetCard, data_root: Path) -> Availability:
    """The row of a data set. Reads names of files only: whether they are whole is for prepare_data.py to say."""
    found, remark = count_images(spec, data_root)
    expected = card.download.images
    if remark and not found:
        state = "unclear"
    elif not found:
        state = "not there"
    else:
        state = "partly there" if remark or found < (expected or 0) else "there"
    if state == "there" and expected is not None and found > expected:
        remark = "more than the set has: copies, or another version?"
    return Availability(
        name=card.name,
        title=card.title,
        state=state,
        images=found,
        expected=expected,
        remark=remark,
        way=card.download.way,
        account=card.download.account.kind if card.download.account else None,
        home=card.home[0].value,
        licence=str(card.licence),
        commercial=card.terms.commercial,
        derivatives=card.terms.derivatives,
        sharing=card.terms.sharing,
        size=size_of(card),
        links=tuple(file.url for file in card.download.files),
        links_tried_on=card.download.tried_on,
        next=_next(card, data_root, state),
    )


def count_images(spec: DatasetSpec, data_root: Path) -> tuple[int, str]:
    """How many files fit the image patterns, and what is odd: two copies, other files, no masks of a kind."""
    if not data_root.is_dir():
        return 0, ""
    try:
        root = find_root(spec, data_root)
        images = [FilePattern(text) for text in spec.images]
        masks = {key: [FilePattern(text) for text in texts] for key, texts in spec.mask_patterns().items()}
        files = list_files(root, [*images, *(pattern for patterns in masks.values() for pattern in patterns)])
    except NotFoundError as error:
        return 0, str(error) if _visible(data_root / spec.name) else ""
    except ValueError as error:
        return 0, str(error)
    own = [pattern for patterns in masks.values() for pattern in patterns if pattern.text not in spec.images]
    found = sum(_fits(file, images) and not _fits(file, own) for file in files)
    if not found and root != data_root and (there := _visible(root)):
        return 0, f"{root} is there, but no file in it is an image of this set; it holds {listed(there)}"
    bare = [key for key, patterns in masks.items() if found and not any(_fits(file, patterns) for file in files)]
    return found, f"no mask file{''.join(f' of {key!r}' for key in bare if key is not None)}" if bare else ""


def _visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not is_junk(path.name)) if folder.is_dir() else []


def _fits(path: str, patterns: Sequence[FilePattern]) -> bool:
    return any(pattern.match(path) is not None for pattern in patterns)


def size_of(card: DatasetCard) -> str:
    """What the card says, else the sum of its files, else that it is not known."""
    if card.size is not None:
        return str(card.size)
    known = [file.bytes for file in card.download.files if file.bytes is not None]
    if known and len(known) == len(card.download.files):
        return f"{sum(known) / 1e9:.1f} GB to fetch"
    return "not known"


def _next(card: DatasetCard, data_root: Path, state: str) -> tuple[str, ...]:
    where = f"data.root={shlex.quote(str(data_root))}"
    if state == "there":
        return (f"python scripts/prepare_data.py datasets={card.name} {where}",)
    if card.download.way == "fetch":
        return (f"python scripts/get_data.py datasets={card.name} accept_licence=true {where}",)
    return tuple(card.download.by_hand(card.home[0].value, str(data_root / card.name)))


def as_json(rows: Sequence[Availability]) -> str:
    return json.dumps([dataclasses.asdict(row) for row in rows], indent=2, ensure_ascii=False)


def as_table(rows: Sequence[Availability]) -> str:
    """One row per data set and below it, unless it is there, where it is from and what to do first and last."""
    head = ("data set", "there?", "commercial use", "how to get it", "size", "licence")
    cells = [head, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head) - 1)]
    lines = [_line(head, widths)]
    for row, line in zip(rows, cells[1:], strict=True):
        lines.append(_line(line, widths))
        lines += [f"    {row.remark}"] if row.remark else []
        then = f"; then: {row.next[-1]}" if len(row.next) > 1 else ""
        lines += [f"    from {row.home}", f"    next: {row.next[0]}{then}"] if row.state != "there" else []
    return "\n".join([*lines, "", *_summary(rows)])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join([*(cell.ljust(width) for cell, width in zip(cells, widths, strict=False)), cells[-1]]).rstrip()


def _cells(row: Availability) -> tuple[str, ...]:
    whole = "" if row.expected is None else f" of {row.expected:,}"
    count = {"there": f" ({row.images:,})", "partly there": f" ({row.images:,}{whole} images)"}.get(row.state, "")
    way = f"account ({row.account})" if row.way == "account" else row.way
    size = row.size if len(row.size) <= 30 else f"{row.size[:27]}..."
    return row.title, row.state + count, row.commercial, way, size, row.licence


def _summary(rows: Sequence[Availability]) -> list[str]:
    states = [row.state for row in rows]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    lines = [f"{len(rows)} data sets: {counts}. (?) likely, (??) unsure; a volume or array counts as one image."]
    missing = [row for row in rows if row.state != "there"]
    untried = [row.title for row in missing if row.way == "fetch" and row.links_tried_on is None]
    if untried:
        lines.append(f"Links that have not been tried from here, and may be dead: {', '.join(untried)}.")
    if any(row.way != "fetch" for row in missing):
        lines.append("All steps for those with an account or a home page: python scripts/get_data.py datasets=[...]")
    return lines
