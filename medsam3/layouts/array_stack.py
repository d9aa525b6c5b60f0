"""Reader `array_stack`: many images in one .npy array, their masks in another, one channel for each concept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from medsam3.layouts.instances import Instances
from medsam3.layouts.mask_coding import MaskCoding, NamedPixels
from medsam3.layouts.pairing import Pair, check_missing_mask, pair_files
from medsam3.layouts.pixels import Range, grey_to_rgb, to_8_bit, unreadable
from medsam3.layouts.reader import Item, Listing, Problem, Reader
from medsam3.registry.spec import UNION, DatasetSpec


@dataclass(frozen=True)
class ArrayStackOptions:
    ignore_channels: tuple[int, ...] = ()  # of the mask array: hold no concept
    threshold: float | None = None  # see MaskCoding
    window: Range | None = None  # grey or colour values shown as 0 and 255
    missing_mask: str = "error"  # see pair_files


@dataclass(frozen=True, slots=True)
class StackRow:
    """An image's number in both arrays, and the file of the array of masks."""

    row: int
    file: str


class ArrayStackReader(Reader):
    """Images [N, H, W] or [N, H, W, 3], masks [N, H, W, K]; the keys of `concepts` are the numbers of the K channels.

    The arrays are memory-mapped; only the rows that are asked for are read.
    """

    Options: ClassVar[type] = ArrayStackOptions

    def __init__(self, spec: DatasetSpec, root: Path, cache: Path) -> None:
        super().__init__(spec, root, cache)
        self._coding = MaskCoding(spec, self.options.threshold, one_concept_each=True)
        self._channels = [key for key in spec.concepts if isinstance(key, int)]

    @classmethod
    def check(cls, spec: DatasetSpec) -> ArrayStackOptions:
        options: ArrayStackOptions = super().check(spec)
        if not isinstance(spec.masks, str):
            raise ValueError("masks: the reader array_stack needs one pattern")
        for key in spec.concepts:
            if key != UNION and (not isinstance(key, int) or key in options.ignore_channels):
                raise ValueError(f"concepts: {key!r} must be the number of a channel, and not in ignore_channels")
        check_missing_mask(options.missing_mask)
        MaskCoding(spec, options.threshold, one_concept_each=True)
        return options

    def find(self) -> Listing:
        pairs, problems = pair_files(self.spec, self.root, self.options.missing_mask)
        items: list[Item] = []
        for pair in pairs:
            try:
                items += self._rows_of(pair)
            except ValueError as error:
                problems.append(Problem(pair.id, str(error)))
        return Listing(items, problems)

    def image(self, item: Item) -> NDArray[np.uint8]:
        path, row = self.root / item.image, item.masks.row
        pixels = _in_8_bit(np.array(_array(path)[row]), self.options.window, f"{path} row {row}")
        return pixels if pixels.ndim == 3 else grey_to_rgb(pixels)

    def masks(self, item: Item) -> dict[str, Instances]:
        path, row = self.root / item.masks.file, item.masks.row
        where = f"{path} row {row}"
        values = np.array(_array(path)[row])
        if self.options.threshold is None:
            values = _whole(values, where)
        channels = [NamedPixels(key, values[..., key], where) for key in self._channels]
        return self._coding.decode(channels, values.shape[:2])

    def place(self, item: Item) -> str:
        return str(item.masks.row)

    def _rows_of(self, pair: Pair) -> list[Item]:
        (mask_files,) = (mask.paths for mask in pair.masks)
        if len(mask_files) != 1:
            raise ValueError(f"{pair.image}: expected one mask array, found {', '.join(mask_files) or 'none'}")
        images, masks = _array(self.root / pair.image), _array(self.root / mask_files[0])
        if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3):
            raise ValueError(f"{self.root / pair.image}: has axes {images.shape}, expected N, H, W or N, H, W, 3")
        if masks.ndim != 4 or masks.shape[:3] != images.shape[:3]:
            raise ValueError(
                f"{self.root / mask_files[0]}: has axes {masks.shape}, expected {', '.join(map(str, images.shape[:3]))}"
                " and the channels"
            )
        unknown = set(range(masks.shape[3])) ^ {*self._channels, *self.options.ignore_channels}
        if unknown:
            raise ValueError(
                f"{self.root / mask_files[0]}: has channels 0 to {masks.shape[3] - 1}; concepts and "
                f"options.ignore_channels differ in {', '.join(map(str, sorted(unknown)))}"
            )
        digits = max(4, len(str(len(images) - 1)))
        ids = (f"{pair.id}/{row:0{digits}d}" for row in range(len(images)))
        return [Item(name, name, pair.image, StackRow(row, mask_files[0])) for row, name in enumerate(ids)]


def _array(path: Path) -> NDArray[Any]:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise unreadable(path, error) from error


def _in_8_bit(values: NDArray[Any], window: Range | None, where: str) -> NDArray[np.uint8]:
    """Values 0 to 255 of any type need no window."""
    if window is None and values.dtype != np.uint8 and values.min() >= 0 and values.max() <= 255:
        return np.rint(values).astype(np.uint8)
    return to_8_bit(values, window, None, where)


def _whole(values: NDArray[Any], where: str) -> NDArray[Any]:
    if not np.issubdtype(values.dtype, np.floating):
        return values
    if not (values == np.rint(values)).all():
        raise ValueError(f"{where}: holds numbers that are not whole, or NaN: set options.threshold")
    return values.astype(np.int64)
