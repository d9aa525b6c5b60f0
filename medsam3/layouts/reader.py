"""What every reader has: a listing of items, and for one item its image and the masks of its concepts.

An Item holds all that is needed to read it, so a reader needs no state beyond its options and the index of its items.
"""

from __future__ import annotations

import bisect
import dataclasses
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medsam3.layouts.instances import Instances
from medsam3.messages import listed
from medsam3.registry.grouping import group_finder
from medsam3.registry.patterns import FilePattern, archives_in, is_junk
from medsam3.registry.schema import build
from medsam3.registry.spec import DatasetSpec


@dataclass(frozen=True, slots=True)
class Item:
    """One image (or one slice of a volume) and where its masks are."""

    id: str  # unique in the data set, the same on every machine
    group: str  # patient, video or volume; the id itself if nothing is known
    image: str  # path relative to the data set's folder
    masks: Any  # what this reader needs to find the masks again: a small class of its own, or MaskFiles
    part: str | None = None  # train | val where the YAML fixes it, else drawn


@dataclass(frozen=True)
class SliceOf:
    """Which picture of a volume an item is, see volume_cache.cut."""

    volume: Path
    axis: str | int
    index: int
    count: int  # pictures of the volume
    affine: NDArray[np.floating] | None  # of the pictures, see volume_cache.picture_affine; None: the file has none


@dataclass(frozen=True)
class Problem:
    """An item, or a file without one, that is left out."""

    item: str  # id or path
    reason: str
    expected: bool = False  # the YAML says so: a listed exclusion; otherwise an error when the data are prepared


class LeftOutError(ValueError):
    """An item whose content makes the YAML leave it out: not read, but listed when the data are prepared."""


@dataclass(frozen=True)
class Listing:
    items: list[Item]
    problems: list[Problem]


@dataclass(frozen=True)
class NoOptions:
    """For readers that need nothing beyond the DatasetSpec."""


class ItemIndex:
    """Items by id, kept in Arrow buffers: data loading processes share them, which they would not share as objects."""

    def __init__(self, items: list[Item]) -> None:
        """
        Args:
            items: sorted by id.
        """
        self.ids = pa.array([item.id for item in items], pa.string())
        self._items = pa.array([pickle.dumps(item) for item in items], pa.large_binary())

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, item_id: str) -> Item:
        place = bisect.bisect_left(range(len(self)), item_id, key=lambda i: self.ids[i].as_py())
        if place == len(self) or self.ids[place].as_py() != item_id:
            raise KeyError(item_id)
        item: Item = pickle.loads(self._items[place].as_buffer())
        return item


class Reader(ABC):
    """A layout of files. Subclasses give `Options` (a frozen dataclass), `find`, `image` and `masks`."""

    Options: ClassVar[type] = NoOptions

    def __init__(self, spec: DatasetSpec, root: Path, cache: Path) -> None:
        """
        Args:
            root: the folder of this data set.
            cache: a folder of this data set's own for unpacked files; need not exist.
        """
        self.spec = spec
        self.root = root
        self.cache = cache
        self.options = self.check(spec)
        self._index: ItemIndex | None = None
        self.broken: list[Problem] = []  # what `index` could not list, and why

    @classmethod
    def check(cls, spec: DatasetSpec) -> Any:
        """The options of a spec in typed form; subclasses check here that they go together with the rest of the spec.

        Raises:
            ValueError: names the option, its value and the legal ones.
        """
        return build(cls.Options, spec.options, "options")

    @abstractmethod
    def find(self) -> Listing:
        """All items, in any order, with a default group; and what is left out, and why."""

    @abstractmethod
    def image(self, item: Item) -> NDArray[np.uint8]:
        """The image, [H, W, 3].

        Raises:
            ValueError: the file cannot be read; names it.
        """

    @abstractmethod
    def masks(self, item: Item) -> dict[str, Instances]:
        """Instances by concept. N = 0: annotated and absent. No entry: not annotated in this image.

        Raises:
            ValueError: a file that cannot be read, has another size than the image, or an unknown value; names it.
        """

    def place(self, item: Item) -> str:
        """Where in its image file an item's picture is (slice, row); empty where the file is the picture."""
        return ""

    def spacing_mm(self, item: Item) -> tuple[float, float] | None:
        """From row to row and from column to column of the image; None: its file does not say it."""
        return None

    def slice_of(self, item: Item) -> SliceOf | None:
        """Of which volume an item is a slice; its id is then `<volume>/<slice>`. None: it is a picture of its own."""
        return None

    def unpack_jobs(self) -> list[Any]:
        """What is to be unpacked once, so that listing and reading are quick afterwards; each is a job for `unpack`."""
        return []

    def unpack(self, job: Any) -> None:  # noqa: B027  (most readers have nothing to unpack)
        """Do one of `unpack_jobs`, unless its result is in the cache already."""

    def listing(self, splits: Path | None = None) -> Listing:
        """All items sorted by id, grouped and without the spec's exclusions, and all problems.

        Args:
            splits: folder of the split files, where group.links may lie too.

        Raises:
            ValueError: no file fits the patterns; two items of one id; an id that the group pattern does not fit.
        """
        found = self._sorted()
        if self.spec.group is None:
            return found
        group_of = group_finder(self.spec.group, self.root, self.spec.name, splits)
        return Listing([self._grouped(item, group_of) for item in found.items], found.problems)

    def _sorted(self) -> Listing:
        found = self.find()
        unread = [problem for problem in found.problems if problem.item not in self.spec.ignore_files]
        if not found.items and (not unread or self.spec.hint is not None):
            raise ValueError(self._nothing_found())
        items: list[Item] = []
        excluded = self.spec.exclude
        for item in sorted(found.items, key=lambda item: item.id):
            if items and items[-1].id == item.id:
                raise ValueError(f"{self.root}: two files for the item {item.id!r}: {items[-1].image} and {item.image}")
            if item.id not in excluded:
                items.append(item)
        ids = {item.id for item in found.items}
        problems = list(found.problems)
        for item_id, reason in excluded.items():
            known = item_id in ids
            problems.append(Problem(item_id, reason if known else "named in exclude, but there is no such item", known))
        return Listing(items, sorted(problems, key=lambda problem: (problem.item, problem.reason)))

    def index(self) -> ItemIndex:
        """The items of `listing`, without their groups, for look-up by id; listed at the first call only."""
        if self._index is None:
            found = self._sorted()
            self._index = ItemIndex(found.items)
            self.broken = [problem for problem in found.problems if not problem.expected]
        return self._index

    def take_index(self, index: ItemIndex, broken: list[Problem]) -> None:
        """Have what `index` found in another process, without looking through the folders."""
        self._index, self.broken = index, broken

    def item(self, item_id: str) -> Item:
        """The item of an id. KeyError if there is none."""
        return self.index()[item_id]

    def items(self) -> list[Item]:
        """The items of `listing`."""
        return self.listing().items

    def problems(self) -> list[Problem]:
        """The problems of `listing`."""
        return self.listing().problems

    def _grouped(self, item: Item, group_of: Callable[[str], str]) -> Item:
        try:
            return dataclasses.replace(item, group=group_of(item.id))
        except ValueError as error:
            raise ValueError(f"configs/dataset/{self.spec.name}.yaml: {error}") from error

    def _nothing_found(self) -> str:
        folders = [FilePattern(text).folder for text in self.spec.images]
        missing = next((folder for folder in folders if not (self.root / folder).is_dir()), "")
        nearest = self.root / missing
        while not nearest.is_dir():
            nearest = nearest.parent
        there = sorted(path.name for path in nearest.iterdir() if not is_junk(path.name))
        shown = f"{'the folder' if nearest == self.root else nearest} holds {listed(there, 8) or 'nothing'}"
        if there and missing:
            shown += f", but no folder {missing}"
        packed = archives_in(self.root)
        if packed:
            hint = f"unpack {', '.join(packed[:3])} there"
        else:
            hint = self.spec.hint or "is the download complete, and unpacked as it came?"
        return (
            f"{self.root}: no file fits images: {' | '.join(self.spec.images)} of data set {self.spec.name!r}; "
            f"{shown}; {hint}"
        )
