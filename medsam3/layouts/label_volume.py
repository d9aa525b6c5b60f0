"""Reader `label_volume`: volumes with label volumes of the same shape, one item per slice."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from medsam3.layouts.instances import Instances
from medsam3.layouts.mask_coding import Key, MaskCoding, NamedPixels
from medsam3.layouts.pairing import MaskFiles, MissingMask, Pair, annotated_concepts, check_missing_mask, pair_files
from medsam3.layouts.pixels import grey_to_rgb
from medsam3.layouts.reader import Item, Listing, Problem, Reader, SliceOf
from medsam3.layouts.volume_cache import AXES, FARTHEST, CachedSlices, Recipe, cached_slices, grid_distance, middle
from medsam3.messages import one_of
from medsam3.registry.spec import DatasetSpec

ONE_SLICE = ("middle", "largest")
LABEL_HEADER = ("check", "ignore")
AXIS_LETTER = {"sagittal": "x", "coronal": "y", "axial": "z", 0: "s", 1: "s", 2: "s"}


@dataclass(frozen=True)
class LabelVolumeOptions:
    """Ranges of slices include both ends."""

    axis: int | str  # axial | coronal | sagittal (turned upright), or 0 | 1 | 2 (as stored): see volume_cache.cut
    window: tuple[float, float] | None = None  # grey values shown as 0 and 255
    percentiles: tuple[float, float] | None = None  # the same, by percentiles of each volume
    threshold: dict[int | str, float] | float | None = None  # for probability maps, see MaskCoding
    ignore_values: tuple[int | str, ...] = ()
    missing_mask: MissingMask = "error"  # see pair_files
    not_annotated: dict[str, tuple[str, ...]] = field(default_factory=dict)  # regex on the volume: concepts
    min_slice_area: int | None = None  # slices with fewer labelled px (of any one mask file) are left out
    # only these, or one of each volume: the middle one, or the one with most labelled px (of any one mask file)
    slices: tuple[int, int] | str | None = None
    val_slices: tuple[int, int] | None = None  # these are the validation part, the others the training part
    gap_slices: int = 0  # left out on either side of val_slices
    # what a label file says of how the patient lies: check (must be what its image says) | ignore (the image's counts)
    label_header: str = "check"


@dataclass(frozen=True, slots=True)
class SliceMasks:
    """The number of a slice, and the label volumes of its image volume."""

    index: int
    files: MaskFiles


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
        one_of("options.axis", options.axis, AXES)
        one_of("options.label_header", options.label_header, LABEL_HEADER)
        check_missing_mask(options.missing_mask)
        if isinstance(options.slices, str) and options.slices not in ONE_SLICE:
            raise ValueError(f"options.slices={options.slices!r}: must be [first, last] or {' or '.join(ONE_SLICE)}")
        _check_not_annotated(spec, options)
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

    def spacing_mm(self, item: Item) -> tuple[float, float] | None:
        if self.options.label_header == "ignore":  # the headers of a set contradict each other: neither is believed
            return None
        spacing = self._image_slices(item.image, item.masks.index).spacing_mm
        return None if spacing is None else spacing[1:]

    def slice_of(self, item: Item) -> SliceOf:
        index = item.masks.index
        image = self._image_slices(item.image, index)
        return SliceOf(self.root / item.image, self.options.axis, index, len(image.slices), image.affine)

    def image(self, item: Item) -> NDArray[np.uint8]:
        index = item.masks.index
        return grey_to_rgb(np.array(self._image_slices(item.image, index).slices[index]))

    def masks(self, item: Item) -> dict[str, Instances]:
        index, files = item.masks.index, item.masks.files
        size = self._image_slices(item.image, index).slices.shape[1:]
        pixels = [
            NamedPixels(
                mask.key,
                np.array(self._label_slices(item.image, mask.key, path).slices[index]),
                f"{self.root / path} slice {index}",
            )
            for mask in files
            for path in mask.paths
        ]
        absent = {concept: Instances.separate([], size) for concept in annotated_concepts(self.spec, files)}
        result = absent | self._coding.decode(pixels, size)
        for pattern, concepts in self.options.not_annotated.items():
            if re.search(pattern, item.id):
                result = {concept: found for concept, found in result.items() if concept not in concepts}
        return result

    def place(self, item: Item) -> str:
        return f"{AXIS_LETTER[self.options.axis]}{item.masks.index}"

    def unpack_jobs(self) -> list[Any]:
        return pair_files(self.spec, self.root, self.options.missing_mask)[0]

    def unpack(self, job: Pair) -> None:
        self._slices_of(job)

    def _slices_of(self, pair: Pair) -> Listing:
        """Items of one volume; left out are slices that the options do not want."""
        files = [(mask.key, path) for mask in pair.masks for path in _single(pair, mask.paths)]
        labels = [(path, self._label_slices(pair.image, key, path)) for key, path in files]
        counts = [volume.nonzero_px for _, volume in labels]
        largest = self._largest(pair, counts) if self.options.slices == "largest" else None
        image = self._image_slices(pair.image, largest)
        shape = image.slices.shape
        for path, volume in labels:
            self._check_alignment(image, volume, path)
        most_labelled = np.max(counts, axis=0) if counts else np.zeros(shape[0], dtype=np.int64)
        single = middle(shape[0]) if self.options.slices == "middle" else largest
        items, reasons = [], dict[str, int]()
        for index in range(shape[0]):
            reason = self._reason_to_leave_out(index, int(most_labelled[index]), single)
            if reason is None:
                items.append(self._item(pair, index, shape[0]))
            else:
                reasons[reason] = reasons.get(reason, 0) + 1
        problems = [Problem(pair.id, f"{number} slices {reason}", expected=True) for reason, number in reasons.items()]
        return Listing(items, problems)

    def _check_alignment(self, image: CachedSlices, labels: CachedSlices, path: str) -> None:
        if labels.slices.shape != image.slices.shape:
            raise ValueError(
                f"{self.root / path}: the label volume is {labels.slices.shape}, its image {image.slices.shape} "
                "(slices, height, width)"
            )
        if image.affine is None or labels.affine is None:
            return
        apart = grid_distance(image.affine, labels.affine, image.slices.shape)
        if not apart <= FARTHEST:
            raise ValueError(
                f"{self.root / path}: its header puts a voxel up to {apart:.1f} voxels from where the image's header "
                "puts it, so masks would land elsewhere; if the two arrays belong together voxel by voxel, set "
                "options.label_header: ignore"
            )

    def _largest(self, pair: Pair, counts: list[list[int]]) -> int:
        """The slice with most labelled px of any one mask file; the first of equals."""
        if not np.any(counts):
            raise ValueError(f"{pair.image}: nothing is labelled, so options.slices: largest has nothing to choose by")
        return int(np.argmax(np.max(counts, axis=0)))

    def _reason_to_leave_out(self, index: int, labelled_px: int, single: int | None) -> str | None:
        options: LabelVolumeOptions = self.options
        if single is not None and index != single:
            return f"other than the one of options.slices: {options.slices}"
        if isinstance(options.slices, tuple) and not options.slices[0] <= index <= options.slices[1]:
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
        return Item(item_id, group=pair.id, image=pair.image, masks=SliceMasks(index, pair.masks), part=part)

    def _image_slices(self, path: str, index: int | None) -> CachedSlices:
        """The slices of an image volume; where one of each is wanted, only that one is kept."""
        options: LabelVolumeOptions = self.options
        only = {"middle": "middle", "largest": index}.get(options.slices) if isinstance(options.slices, str) else None
        recipe = Recipe(options.axis, labels=False, window=options.window, percentiles=options.percentiles, only=only)
        return cached_slices(self.root / path, self.cache / f"{path.replace('/', '__')}.image", recipe)

    def _label_slices(self, image: str, key: Key, path: str) -> CachedSlices:
        threshold = self.options.threshold
        if isinstance(threshold, dict):
            threshold = threshold.get(key)
        only = "middle" if self.options.slices == "middle" else None
        believed = self.options.label_header == "check"
        recipe = Recipe(self.options.axis, labels=True, threshold=threshold, own_header=believed, only=only)
        ending = "labels" if key is None else f"{key}.labels"
        target = self.cache / f"{path.replace('/', '__')}.{ending}"
        return cached_slices(self.root / path, target, recipe, header=self.root / image)


def _single(pair: Pair, paths: tuple[str, ...]) -> tuple[str, ...]:
    if len(paths) > 1:
        raise ValueError(f"{pair.image}: several label volumes: {', '.join(paths)}")
    return paths


def _check_not_annotated(spec: DatasetSpec, options: LabelVolumeOptions) -> None:
    for pattern, concepts in options.not_annotated.items():
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"options.not_annotated: {pattern!r} does not compile: {error}") from error
        for concept in concepts:
            if concept not in spec.concept_names:
                raise ValueError(
                    f"options.not_annotated: {concept!r} is no concept; there are {', '.join(spec.concept_names)}"
                )


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
