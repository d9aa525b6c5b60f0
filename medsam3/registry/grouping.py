"""Groups: which items belong to one patient, video or volume, so that no group straddles the split.

In a data set's YAML, `group` is a regular expression on the item id, or a mapping with one rule:
  group: ^(patient\\d+)_                                         the captured texts, joined by "/"
  group: {table: {file: Grade.csv, id: name, group: patient}}    a table that the data set ships
  group: {links: copies.csv}                                     pairs of items that belong together, in data_manifests/
                                                                 or data.splits; audit_pairs.csv is such a file
  group: {ranges: [[1, 25], [26, 50]]}                           by the number of an item, both ends included
  group: {blocks: 100}                                           100 consecutive numbers each, where nothing is known
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from medsam3.folders import MANIFESTS

AUDIT_COLUMNS = ("dataset", "item", "other_dataset", "other_item")
RULES = ("table", "links", "ranges", "blocks")
LAST_NUMBER = r"(\d+)\D*$"
WHOLE_ID = r"^(.*)$"


@dataclass(frozen=True)
class GroupTable:
    """A text table with a heading; blanks around its cells do not count, line ends may be of any kind."""

    file: str  # below the data set's folder
    id: str  # name of the column with item ids
    group: str  # name of the column with groups
    separator: str = ","
    encoding: str = "utf-8-sig"


@dataclass(frozen=True)
class GroupRule:
    """Exactly one of RULES; `key` is what of an item's id they look at."""

    table: GroupTable | None = None  # every item must be in it
    # CSV file with a heading and two ids a row, or the columns dataset, item, other_dataset and other_item; what is
    # linked, even by steps, is one group
    links: str | None = None
    ranges: tuple[tuple[int, int], ...] | None = None  # every item must be in one
    blocks: int | None = None
    key: str | None = None  # regex on the item id; None: the whole id, or its last number for ranges and blocks

    @property
    def pattern(self) -> str:
        """The regular expression of `key`."""
        by_number = self.ranges is not None or self.blocks is not None
        return self.key or (LAST_NUMBER if by_number else WHOLE_ID)


def check_group(group: str | GroupRule | None) -> None:
    """Check what can be checked without the files.

    Raises:
        ValueError: a regular expression that does not compile or captures nothing, no rule or several, an empty range.
    """
    if group is None:
        return
    if isinstance(group, GroupRule):
        given = [name for name in RULES if getattr(group, name) is not None]
        if len(given) != 1:
            raise ValueError(f"group: needs exactly one of {', '.join(RULES)}, has {' and '.join(given) or 'none'}")
        if group.blocks is not None and group.blocks < 1:
            raise ValueError(f"group.blocks={group.blocks}: must be 1 or more")
        for first, last in group.ranges or ():
            if first > last:
                raise ValueError(f"group.ranges: [{first}, {last}] is empty")
    name, pattern = ("group.key", group.pattern) if isinstance(group, GroupRule) else ("group", group)
    try:
        captures = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"{name}={pattern!r}: not a regular expression ({error})") from error
    if captures < 1:
        raise ValueError(f"{name}={pattern!r}: needs brackets around what names the patient or video")


def group_finder(
    group: str | GroupRule, root: Path, dataset: str = "", splits: Path | None = None
) -> Callable[[str], str]:
    """A function from an item id to its group.

    Args:
        root: the data set's folder.
        dataset: its name, by which group.links finds its pairs in a file about several.
        splits: folder of the split files, where group.links is looked for before data_manifests/.

    Raises:
        ValueError: a table that cannot be read. The function raises one for an id that the rule does not fit.
    """
    if isinstance(group, str):
        return lambda item_id: _captured(group, item_id, f"group={group!r}")
    where = f"group.key={group.pattern!r}"

    def key_of(item_id: str) -> str:
        return _captured(group.pattern, item_id, where)

    if group.links is not None:
        places = [folder / group.links for folder in (splits, MANIFESTS) if folder is not None]
        path = next((path for path in places if path.is_file()), places[-1])
        linked = _linked(_pairs(path, dataset, key_of))
        return lambda item_id: linked.get(key_of(item_id), key_of(item_id))
    find = _rule(group, root)
    return lambda item_id: find(key_of(item_id))


def _captured(pattern: str, item_id: str, where: str) -> str:
    found = re.search(pattern, item_id)
    texts = [text for text in found.groups() if text is not None] if found else []
    if not texts:
        raise ValueError(f"{where} finds nothing in {item_id!r}")
    return "/".join(texts)


def _rule(rule: GroupRule, root: Path) -> Callable[[str], str]:
    if rule.table is not None:
        return _from_table(rule.table, root)
    if rule.ranges is not None:
        ranges = rule.ranges
        return lambda key: _range_of(_number(key), ranges)
    size = rule.blocks
    assert size is not None
    return lambda key: _block_of(_number(key), size)


def _from_table(table: GroupTable, root: Path) -> Callable[[str], str]:
    path = root / table.file
    groups: dict[str, str] = {}
    for row in _rows(path, table.separator, table.encoding, (table.id, table.group)):
        key, group = row[table.id], row[table.group]
        if groups.setdefault(key, group) != group:
            raise ValueError(f"{path}: {key!r} is in two groups, {groups[key]!r} and {group!r}")

    def find(key: str) -> str:
        if key not in groups:
            raise ValueError(f"{path}: no row of {table.id} {key!r}")
        return groups[key]

    return find


def _rows(path: Path, separator: str, encoding: str, columns: Iterable[str]) -> Iterator[dict[str, str]]:
    """Rows of a table by column name. Raises a ValueError if the file or a column is missing."""
    try:
        with path.open(encoding=encoding) as file:  # any line end counts, the bare CR of old Macs too
            lines = [[cell.strip() for cell in line] for line in csv.reader(file, delimiter=separator)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    heading = lines[0] if lines else []
    missing = [column for column in columns if column not in heading]
    if missing:
        raise ValueError(f"{path}: no column {missing[0]!r}; there are: {', '.join(heading) or 'none'}")
    for line in lines[1:]:
        if any(line):
            yield dict(zip(heading, line, strict=False))


def _pairs(path: Path, dataset: str, key_of: Callable[[str], str]) -> list[tuple[str, str]]:
    """The pairs of keys in a file of two columns, or those of the items that audit_data.py pairs within a data set."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            heading, *rows = csv.reader(file)
        if not set(AUDIT_COLUMNS) <= set(heading):
            return [(first, second) for first, second in rows]
        lines = [dict(zip(heading, row, strict=True)) for row in rows]
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(
            f"group.links: {path}: not a file of two ids a row, nor with columns {', '.join(AUDIT_COLUMNS)} ({error})"
        ) from error
    within = [line for line in lines if line["dataset"] == line["other_dataset"] == dataset]
    pairs = [(key_of(line["item"]), key_of(line["other_item"])) for line in within]
    if not pairs:
        raise ValueError(
            f"group.links: {path} lists no pair within {dataset!r}: run python scripts/audit_data.py with it, or "
            "remove the key"
        )
    return pairs


def _linked(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Each id with the first, in alphabetical order, of all that it is linked to."""
    parent: dict[str, str] = {}

    def first(key: str) -> str:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for one, other in pairs:
        ends = sorted((first(one), first(other)))
        parent[ends[1]] = ends[0]
    return {key: first(key) for key in list(parent)}


def _number(key: str) -> int:
    if not key.isdecimal():
        raise ValueError(f"group: {key!r} is not a number")
    return int(key)


def _range_of(number: int, ranges: tuple[tuple[int, int], ...]) -> str:
    for first, last in ranges:
        if first <= number <= last:
            return f"{first}-{last}"
    raise ValueError(f"group.ranges: {number} is in none of them")


def _block_of(number: int, size: int) -> str:
    start = number - number % size
    return f"{start}-{start + size - 1}"
