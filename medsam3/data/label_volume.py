"""Reader `label_volume`: volumes with label volumes of the same shape, one item per slice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from medsam3.data.instances import Instances
from medsam3.data.mask_coding import Key, MaskCoding, NamedPixels
from medsam3.data.pairing import Pair, check_missing_mask, pair_files
from medsam3.data.pixels import grey_to_rgb
from medsam3.data.reader import Item, Listing, Problem, Reader
from medsam3.data.spec import DatasetSpec
from medsam3.data.volumes import AXES, CachedSlices, Recipe, cached_slices

AXIS_LETTER = {"sagittal": "x", "coronal": "y", "axial": "z", 0: "s", 1: "s", 2: "s"}


@dataclass(frozen=True)
class LabelVolumeOptions:
    """Ranges of slices include both ends."""

    axis: int | str  # axial | coronal | sagittal (turned upright), or 0 | 1 | 2 (as stored): see volumes.cut
    window: tuple[float, float] | None = None  # grey values shown as 0 and 255
    percentiles: tuple[float, float] | None = None  # the same, by percentiles of each volume
    threshold: dict[int | str, float] | float | None = None  # for probability maps, see MaskCoding
    ignore_values: tuple[int | str, ...] = ()
    missing_mask: str = "error"  # see pair_files
    min_slice_area: int | None = None  # slices with fewer labelled px (of any one mask file) are left out
    slices: tuple[int, int] | None = None  # only these
    val_slices: tuple[int, int] | None = None  # these are the validation part, the others the training part
    gap_slices: int = 0  # left out on either side of val_slices


class LabelVolumeReader(Reader):
    """Slices of volumes. The group of a slice is its volume, unless the spec has a group pattern."""

    Options: ClassVar[type] = LabelVolumeOptions

    def __init__(self, spec: DatasetSpec, root: Path, cache: Path) -> None:
        super().__init__(spec, root, cache)
        self._coding = _slice_coding(spec, self.options)

    @classmethod
    def check(cls, spec: DatasetSpec) -> LabelVolumeOptions:
        options: LabelVolumeOptions = super().check(spec)
        if spec.masks is None:
            raise ValueError("masks: the reader label_volume needs a pattern, or one per concept")
        if options.axis not in AXES:
            raise ValueError(f"options.axis={options.axis!r}: must be one of {', '.join(map(str, AXES))}")
        check_missing_mask(options.missing_mask)
        if options.gap_slices and options.val_slices is None:
            raise ValueError(f"options.gap_slices={options.gap_slices} has no effect without options.val_slices")
        MaskCoding(spec, options.threshold, options.ignore_values)
        return options

    def find(self) -> Listing:
        pairs, problems = pair_files(self.spec, self.root, self.options.missing_mask)
        items: list[Item] = []
        for pair in pairs:
            try:
                found = self._slices_of(pair)
            except ValueError as error:
                problems.append(Problem(pair.id, str(error)))
                continue
            items += found.items
            problems += found.problems
        return Listing(items, problems)

    def image(self, item: Item) -> NDArray[np.uint8]:
        index, _ = item.masks
        return grey_to_rgb(np.array(self._image_slices(item.image).slices[index]))

    def masks(self, item: Item) -> dict[str, Instances]:
        index, files = item.masks
        size = self._image_slices(item.image).slices.shape[1:]
        pixels = [
            NamedPixels(key, np.array(self._label_slices(key, path).slices[index]), f"{self.root / path} slice {index}")
            for key, paths in files
            for path in paths
        ]
        result = self._coding.decode(pixels, size)
        for key, paths in files:
            if not paths:  # options.missing_mask: absent
                concepts = self.spec.concept_names if key is None else (self.spec.concepts[key],)
                result |= {concept: Instances.separate([], size) for concept in concepts if concept not in result}
        return result

    def unpack_jobs(self) -> list[Any]:
        return pair_files(self.spec, self.root, self.options.missing_mask)[0]

    def unpack(self, job: Pair) -> None:
        self._image_slices(job.image)
        for key, paths in job.masks:
            for path in paths:
                self._label_slices(key, path)

    def _slices_of(self, pair: Pair) -> Listing:
        """Items of one volume; left out are slices outside the wanted range, with too few labels, and in the gap."""
        volume = self._image_slices(pair.image)
        count = len(volume.slices)
        most_labelled = np.zeros(count, dtype=np.int64)
        for key, paths in pair.masks:
            if len(paths) > 1:
                raise ValueError(f"{pair.image}: several label volumes: {', '.join(paths)}")
            for path in paths:
                labels = self._label_slices(key, path)
                if labels.slices.shape != volume.slices.shape:
                    raise ValueError(
                        f"{self.root / path}: the label volume is {labels.slices.shape}, its image "
                        f"{volume.slices.shape} (slices, height, width)"
                    )
                most_labelled = np.maximum(most_labelled, labels.nonzero_px)
        items, reasons = [], dict[str, int]()
        for index in range(count):
            reason = self._reason_to_leave_out(index, int(most_labelled[index]))
            if reason is None:
                items.append(self._item(pair, index, count))
            else:
                reasons[reason] = reasons.get(reason, 0) + 1
        problems = [Problem(pair.id, f"{number} slices {reason}", expected=True) for reason, number in reasons.items()]
        return Listing(items, problems)

    def _reason_to_leave_out(self, index: int, labelled_px: int) -> str | None:
        options: LabelVolumeOptions = self.options
        if options.slices is not None and not options.slices[0] <= index <= options.slices[1]:
            return f"outside options.slices {list(options.slices)}"
        if options.min_slice_area is not None and labelled_px < options.min_slice_area:
            return f"with less than {options.min_slice_area} labelled px"
        if options.val_slices is not None and 0 < _distance(index, options.val_slices) <= options.gap_slices:
            return "in the gap between the training and the validation part"
        return None

    def _item(self, pair: Pair, index: int, count: int) -> Item:
        digits = max(3, len(str(count - 1)))
        part = None
        if self.options.val_slices is not None:
            part = "train" if _distance(index, self.options.val_slices) else "val"
        item_id = f"{pair.id}/{AXIS_LETTER[self.options.axis]}{index:0{digits}d}"
        return Item(item_id, group=pair.id, image=pair.image, masks=(index, pair.masks), part=part)

    def _image_slices(self, path: str) -> CachedSlices:
        options: LabelVolumeOptions = self.options
        recipe = Recipe(options.axis, labels=False, window=options.window, percentiles=options.percentiles)
        return cached_slices(self.root / path, self.cache / f"{path.replace('/', '__')}.image", recipe)

    def _label_slices(self, key: Key, path: str) -> CachedSlices:
        threshold = self.options.threshold
        if isinstance(threshold, dict):
            threshold = threshold.get(key)
        recipe = Recipe(self.options.axis, labels=True, threshold=threshold)
        ending = "labels" if key is None else f"{key}.labels"
        return cached_slices(self.root / path, self.cache / f"{path.replace('/', '__')}.{ending}", recipe)


def _slice_coding(spec: DatasetSpec, options: LabelVolumeOptions) -> MaskCoding:
    """The coding of cached slices, where a threshold has already been applied."""
    threshold = options.threshold
    if isinstance(threshold, dict):
        threshold = dict.fromkeys(threshold, 0.0)
    elif threshold is not None:
        threshold = 0.0
    return MaskCoding(spec, threshold, options.ignore_values)


def _distance(index: int, ends: tuple[int, int]) -> int:
    """Slices between `index` and the range; 0 inside it."""
    return max(ends[0] - index, index - ends[1], 0)
