"""The manifest: one row per (image, concept), with a frozen part, in one split file per data set.

A split file is plain CSV. Beside it lies an Arrow copy that is memory-mapped, so that data loading processes share it.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from medsam3.data.draw import draw_each, draw_groups, draw_images, rounded_share
from medsam3.files import file_hash, new_file

FILE_PARTS = ("train", "val", "external")  # in a split file
PARTS = ("train", "val", "test", "external")  # with data.split.test_fraction, a share of `val` becomes `test`
CHECKED = b"checked_sha256"  # metadata of an Arrow copy: hash of the split file, whose rows were checked
TEXT = pa.dictionary(pa.int32(), pa.string())
COLUMNS = pa.schema(
    [
        ("dataset", TEXT),
        ("item", TEXT),
        ("group", TEXT),  # patient, video or volume
        ("part_by_image", TEXT),
        ("part_by_group", TEXT),
        ("concept", TEXT),
        ("instances", pa.int32()),  # 0: annotated and absent
        ("area_px", pa.int64()),  # of all instances together, at the original size
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("train_fraction", pa.float64()),  # what the parts were drawn with, the same in all rows
        ("seed", pa.int64()),
    ]
)


def split_file(folder: str | Path, name: str) -> Path:
    """The split file of a data set."""
    return Path(folder) / f"{name}.csv"


def exclusions_file(split: Path) -> Path:
    """The list of what was left out when a data set was prepared, beside its split file."""
    return split.with_suffix(".exclusions.csv")


def excluded_items(split: Path) -> list[str]:
    """The items of the list of exclusions."""
    path = exclusions_file(split)
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [row["item"] for row in csv.DictReader(file)]


def write_split(path: Path, columns: dict[str, Any]) -> None:
    """Write a split file; it is there in full or not at all.

    Args:
        columns: an array or Arrow array for each of COLUMNS; rows of one image one behind the other.
    """
    table = pa.table(columns, pa.schema([(field.name, _plain(field.type)) for field in COLUMNS]))
    options = pyarrow.csv.WriteOptions(quoting_style="needed", quoting_header="none")
    with new_file(path) as temporary:
        pyarrow.csv.write_csv(table, temporary, options)


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


class SplitTable:
    """The rows of one split file. Numbers are views of memory-mapped Arrow buffers."""

    def __init__(self, path: Path, table: pa.Table, cohort: str | None) -> None:
        self.path = path
        self.cohort = cohort
        self.hash = table.schema.metadata[CHECKED].decode()
        columns = {name: table.column(name).chunk(0) for name in table.column_names}
        self.items: pa.StringArray = columns["item"].dictionary  # [images], in the order of the rows
        self.concepts: list[str] = columns["concept"].dictionary.to_pylist()
        self.instances = columns["instances"].to_numpy()  # [rows]
        self.area_px = columns["area_px"].to_numpy()  # [rows]
        self.concept_codes = columns["concept"].indices.to_numpy()  # [rows]
        item_codes = columns["item"].indices.to_numpy()
        first = np.flatnonzero(np.diff(item_codes, prepend=-1))
        if len(first) != len(self.items):
            raise ValueError(f"{path}: the rows of an image do not stand together")
        self.offsets = np.append(first, len(item_codes))  # [images + 1]: rows of image i are offsets[i]:offsets[i + 1]
        self._by_image = {
            name: (columns[name].dictionary, columns[name].indices.to_numpy()[first])
            for name in ("group", "part_by_image", "part_by_group")
        }
        self.train_fraction = float(columns["train_fraction"][0].as_py())
        self.seed = int(columns["seed"][0].as_py())
        self._parts: dict[tuple[str, float], NDArray[np.str_]] = {}

    @classmethod
    def open(cls, path: Path, cohort: str | None = None) -> SplitTable:
        """Open a split file by its Arrow copy, which is made anew if it is of another content.

        Args:
            cohort: of the data set, see DatasetSpec.

        Raises:
            ValueError: no such file, no rows, or columns that are not right.
        """
        if not path.is_file():
            raise ValueError(
                f"{path}: no split file; run python scripts/prepare_data.py datasets={path.stem} "
                f"data.splits={path.parent}"
            )
        digest = file_hash(path)
        copy = path.with_suffix(".arrow")
        table = _open_copy(copy, digest)
        if table is None:
            table = _read_csv(path).replace_schema_metadata({CHECKED: digest})
            _check_rows(path, table)
            table = _write_copy(copy, table, digest)
        return cls(path, table, cohort)

    def __reduce__(self) -> tuple[Any, ...]:
        return SplitTable.open, (self.path, self.cohort)  # a process that gets this object maps the file again

    def rows(self, image: int) -> slice:
        """The rows of an image."""
        return slice(self.offsets[image], self.offsets[image + 1])

    def texts(self, column: str) -> tuple[pa.StringArray, NDArray[np.integer]]:
        """Distinct texts of a column and, per image, which of them it has."""
        return self._by_image[column]

    def check_cohort(self) -> None:
        """Raises a ValueError if a group has another part by group than its cohort gives it."""
        if self.cohort is None:
            return
        groups, codes = self.texts("group")
        parts, part_codes = self.texts("part_by_group")
        names = groups.to_pylist()
        val = draw_each(f"{self.seed}:{self.cohort}", names, 1 - Decimal(str(self.train_fraction)))
        for code, part in zip(codes, parts.take(pa.array(part_codes)).to_pylist(), strict=True):
            expected = "val" if names[code] in val else "train"
            if part not in (expected, "external"):
                raise ValueError(
                    f"{self.path}: part_by_group={part!r} of {names[code]!r} is not that of the cohort {self.cohort!r} "
                    f"({expected!r}), so another set of it may hold the patient in the other part: run python "
                    f"scripts/prepare_data.py datasets={self.path.stem} again"
                )

    def parts(self, by: str, test_fraction: float) -> NDArray[np.str_]:
        """The part of each image, by image or by group.

        A test part is drawn from `val`: so many of the images that train and val hold, by image in the order of
        SHA-256("<seed>:<data set>:test:<id>"), by group likewise with whole groups; some of `val` always stays. By
        group in a cohort each group is drawn alone, as in `assign_parts`, by SHA-256("<seed>:<cohort>:test:<group>").
        """
        if (by, test_fraction) not in self._parts:
            texts, codes = self.texts(f"part_by_{by}")
            parts = np.asarray(texts.to_pylist(), dtype="<U8")[codes]
            val = np.flatnonzero(parts == "val")
            if test_fraction and len(val):
                drawn = int(np.count_nonzero(parts == "train")) + len(val)
                wanted = rounded_share(Decimal(str(test_fraction)), drawn, len(val) - 1)
                salt = f"{self.seed}:{self.path.stem}:test"
                if by == "image":
                    names = [self.items[int(image)].as_py() for image in val]
                    chosen = draw_images(salt, names, wanted)
                else:
                    groups, group_codes = self.texts("group")
                    names = [groups[int(code)].as_py() for code in group_codes[val]]
                    chosen = draw_groups(salt, names, wanted)
                    if self.cohort is not None:
                        share = Decimal(str(test_fraction)) / (1 - Decimal(str(self.train_fraction)))
                        chosen = draw_each(f"{self.seed}:{self.cohort}:test", names, share)
                parts[val[[name in chosen for name in names]]] = "test"
            self._parts[by, test_fraction] = parts
        return self._parts[by, test_fraction]


def _check_rows(path: Path, table: pa.Table) -> None:
    """What a hand that edits a split file can get wrong, so that a row would be read as another or not at all.

    Raises:
        ValueError: names the file, the column, what stands there, and an image.
    """
    columns = {name: table.column(name).chunk(0) for name in table.column_names}
    items, item_codes = columns["item"].dictionary, columns["item"].indices.to_numpy()
    legal_texts: dict[str, Sequence[str]] = {
        "part_by_image": FILE_PARTS,
        "part_by_group": FILE_PARTS,
        "dataset": [path.stem],
    }
    for name, legal in legal_texts.items():
        texts, codes = columns[name].dictionary, columns[name].indices.to_numpy()
        for code, text in enumerate(texts.to_pylist()):
            rows = np.flatnonzero(codes == code)
            if text not in legal and len(rows):
                image = items[int(item_codes[rows[0]])].as_py()
                raise ValueError(f"{path}: {name}={text!r} of {image!r}: must be one of {', '.join(legal)}")
    same_image = np.diff(item_codes) == 0
    for name in ("group", "part_by_image", "part_by_group"):
        mixed = np.flatnonzero(same_image & (np.diff(columns[name].indices.to_numpy()) != 0))
        if len(mixed):
            raise ValueError(f"{path}: {items[int(item_codes[mixed[0]])].as_py()!r} has several values of {name}")
    pairs = item_codes.astype(np.int64) * len(columns["concept"].dictionary) + columns["concept"].indices.to_numpy()
    if len(np.unique(pairs)) < len(pairs):
        twice = np.sort(pairs)[np.flatnonzero(np.diff(np.sort(pairs)) == 0)[0]]
        image, concept = divmod(int(twice), len(columns["concept"].dictionary))
        raise ValueError(
            f"{path}: two rows of {items[image].as_py()!r} and {columns['concept'].dictionary[concept].as_py()!r}"
        )
    for name in ("train_fraction", "seed"):
        if len(np.unique(columns[name].to_numpy())) > 1:
            raise ValueError(f"{path}: several values of {name}; it was not written in one go")


def _read_csv(path: Path) -> pa.Table:
    convert = pyarrow.csv.ConvertOptions(
        column_types=COLUMNS, include_columns=COLUMNS.names, strings_can_be_null=False, quoted_strings_can_be_null=False
    )
    try:
        table = pyarrow.csv.read_csv(path, convert_options=convert)
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as error:
        raise ValueError(f"{path}: not a split file of scripts/prepare_data.py ({error})") from error
    if table.num_rows == 0:
        raise ValueError(f"{path}: holds no rows")
    return table.unify_dictionaries().combine_chunks()


def _open_copy(path: Path, digest: str) -> pa.Table | None:
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowInvalid):
        return None
    return table if (table.schema.metadata or {}).get(CHECKED) == digest.encode() else None


def _write_copy(path: Path, table: pa.Table, digest: str) -> pa.Table:
    """Write the Arrow copy and map it; where the folder cannot be written, the table itself in memory serves."""
    try:
        with new_file(path) as temporary, pa.ipc.new_file(str(temporary), table.schema) as file:
            file.write_table(table, max_chunksize=table.num_rows)
    except OSError:
        return table
    return _open_copy(path, digest) or table


@dataclass(frozen=True)
class ImageRows:
    """The rows of one image."""

    dataset: str
    item: str
    group: str
    part: str
    present: tuple[str, ...]  # concepts with at least one instance
    absent: tuple[str, ...]  # concepts that were annotated and are not there


class Manifest:
    """Images of one or several data sets with their rows; `manifest[i]` is one image."""

    def __init__(
        self, splits: Sequence[SplitTable], by: str, test_fraction: float, chosen: Sequence[NDArray[np.integer]]
    ) -> None:
        """
        Args:
            by: image | group, which of the two part columns counts.
            test_fraction: share of the images of train and val that forms a test part, taken from val.
            chosen: for each split table the images that belong to this manifest.
        """
        self.splits = list(splits)
        self.by = by
        self.test_fraction = test_fraction
        self.chosen = list(chosen)
        self.starts = np.cumsum([0, *(len(images) for images in self.chosen)])  # [data sets + 1]

    @classmethod
    def load(
        cls,
        names: Iterable[str],
        folder: str | Path,
        by: str,
        train_fraction: float,
        seed: int,
        test_fraction: float = 0.0,
        cohorts: Mapping[str, str] | None = None,
    ) -> Manifest:
        """All images of the named data sets.

        Args:
            cohorts: data set -> cohort, of those that belong to one (see DatasetSpec).

        Raises:
            ValueError: a split file is missing (names the command that makes it), damaged, or was made with another
                train_fraction or seed, or, by group, before its data set was of a cohort.
        """
        splits = [SplitTable.open(split_file(folder, name), (cohorts or {}).get(name)) for name in names]
        for split in splits:
            if (split.train_fraction, split.seed) != (train_fraction, seed):
                raise ValueError(
                    f"{split.path} was made with data.split.train_fraction={split.train_fraction} and "
                    f"data.split.seed={split.seed}, not {train_fraction} and {seed}: use these, or run python "
                    f"scripts/prepare_data.py datasets={split.path.stem} data.split.train_fraction={train_fraction} "
                    f"data.split.seed={seed} again"
                )
            if by == "group":
                split.check_cohort()
        return cls(splits, by, test_fraction, [np.arange(len(split.items), dtype=np.int32) for split in splits])

    def select(self, part: str | None = None, dataset: str | None = None) -> Manifest:
        """The images of a part (train | val | test | external; None: all) and of one data set (None: all)."""
        assert part is None or part in PARTS
        splits, chosen = [], []
        for split, images in zip(self.splits, self.chosen, strict=True):
            if dataset is not None and split.path.stem != dataset:
                continue
            if part is not None:
                images = images[split.parts(self.by, self.test_fraction)[images] == part]
            splits.append(split)
            chosen.append(images)
        return Manifest(splits, self.by, self.test_fraction, chosen)

    def with_present_concepts(self, at_most: int | None = None) -> Manifest:
        """The images that hold at least one concept (of at most so many instances)."""
        chosen = []
        for split, images in zip(self.splits, self.chosen, strict=True):
            there = (split.instances > 0) & (split.instances <= (at_most or split.instances))
            chosen.append(images[np.logical_or.reduceat(there, split.offsets[:-1])[images]])
        return Manifest(self.splits, self.by, self.test_fraction, chosen)

    def crowded(self, index: int, at_most: int) -> set[str]:
        """Concepts of an image with more instances than so many."""
        split, image = self._find(index)
        rows = split.rows(image)
        return {split.concepts[code] for code in split.concept_codes[rows][split.instances[rows] > at_most]}

    @property
    def names(self) -> list[str]:
        """Data sets, in the order of their images."""
        return [split.path.stem for split in self.splits]

    @property
    def counts(self) -> dict[str, int]:
        """Images of each data set."""
        return {name: len(images) for name, images in zip(self.names, self.chosen, strict=True)}

    def hashes(self) -> dict[str, str]:
        """SHA-256 of each split file."""
        return {split.path.stem: split.hash for split in self.splits}

    def __len__(self) -> int:
        return int(self.starts[-1])

    def _find(self, index: int) -> tuple[SplitTable, int]:
        """The split table of an image and its number there."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.splits[number], int(self.chosen[number][index - self.starts[number]])

    def __getitem__(self, index: int) -> ImageRows:
        split, image = self._find(index)
        rows = split.rows(image)
        concepts = [split.concepts[code] for code in split.concept_codes[rows]]
        there = split.instances[rows] > 0
        groups, group_codes = split.texts("group")
        return ImageRows(
            dataset=split.path.stem,
            item=split.items[image].as_py(),
            group=groups[int(group_codes[image])].as_py(),
            part=str(split.parts(self.by, self.test_fraction)[image]),
            present=tuple(c for c, t in zip(concepts, there, strict=True) if t),
            absent=tuple(c for c, t in zip(concepts, there, strict=True) if not t),
        )
