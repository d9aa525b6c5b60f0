"""Reader `image_mask`: an image file and its mask files, paired by file name (formats: see pixels.py)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from medsam3.layouts.instances import Instances
from medsam3.layouts.mask_coding import ALL, MaskCoding, NamedPixels
from medsam3.layouts.pairing import (
    KeyFiles,
    MaskFiles,
    MissingMask,
    Pair,
    annotated_concepts,
    check_missing_mask,
    pair_files,
)
from medsam3.layouts.pixels import read_image, read_mask, size_of
from medsam3.layouts.reader import Item, LeftOutError, Listing, Problem, Reader
from medsam3.messages import listed, one_of
from medsam3.registry.patterns import FilePattern
from medsam3.registry.spec import UNION, DatasetSpec

ANNOTATORS = ("first", "union")
OTHER_SIZE = ("error", "exclude")
BARE = 255  # what blank_values look like in the image: white, as glass without tissue


@dataclass(frozen=True)
class ImageMaskOptions:
    """See MaskCoding for the first four, `pair_files` for the fifth, `to_8_bit` for the last two."""

    threshold: dict[int | str, float] | float | None = None
    ignore_values: tuple[int | str, ...] = ()
    tolerance: float = 0.0  # largest distance in RGB to a colour of concepts
    fill: str | None = None
    missing_mask: MissingMask = "error"
    annotators: str | None = None  # several mask files of one image: first | union
    other_size: str = "error"  # a mask of another size than its image: error | exclude
    concept_by: str | None = None  # the placeholder whose text is the key of the concept that a mask file is about
    # Mask values of pixels that nobody annotated. They are painted white in the image: what is not to be seen is not
    # there, and so is neither taught nor held against a prediction.
    blank_values: tuple[int, ...] = ()
    window: tuple[float, float] | None = None
    percentiles: tuple[float, float] | None = None


class ImageMaskReader(Reader):
    """Images and masks as pairs of files. With instances: files, each mask file is one instance."""

    Options: ClassVar[type] = ImageMaskOptions

    def __init__(self, spec: DatasetSpec, root: Path, cache: Path) -> None:
        super().__init__(spec, root, cache)
        self._coding = _coding(spec, self.options)

    @classmethod
    def check(cls, spec: DatasetSpec) -> ImageMaskOptions:
        options: ImageMaskOptions = super().check(spec)
        if spec.masks is None:
            raise ValueError("masks: the reader image_mask needs a pattern, a list of patterns, or one per concept")
        check_missing_mask(options.missing_mask)
        _check_missing_mask_keys(spec, options.missing_mask)
        if options.annotators is not None:
            one_of("options.annotators", options.annotators, ANNOTATORS)
        one_of("options.other_size", options.other_size, OTHER_SIZE)
        names = sorted({name for text in spec.images for name in FilePattern(text).names})
        if options.concept_by is not None and (options.concept_by not in names or isinstance(spec.masks, dict)):
            raise ValueError(
                f"options.concept_by={options.concept_by!r}: must be a placeholder of images ({', '.join(names)}), and "
                "masks no mapping"
            )
        coding = _coding(spec, options)
        if options.blank_values and (coding.binary or coding.colours or spec.instances == "labels"):
            raise ValueError("options.blank_values: only masks of exact values can mark what is not annotated")
        return options

    def find(self) -> Listing:
        pairs, problems = pair_files(self.spec, self.root, self.options.missing_mask)
        items = []
        for pair in pairs:
            unclear = self._unclear_files(pair)
            if unclear:
                reason = f"several mask files ({listed(unclear)}): set options.annotators to first or union"
                problems.append(Problem(pair.id, reason))
            else:
                items.append(Item(pair.id, group=pair.id, image=pair.image, masks=self._keyed(pair)))
        return Listing(items, problems)

    def image(self, item: Item) -> NDArray[np.uint8]:
        image = read_image(self.root / item.image, self.options.window, self.options.percentiles)
        for path in (path for mask in item.masks for path in mask.paths) if self.options.blank_values else ():
            mask = read_mask(self.root / path)
            if mask.shape[:2] == image.shape[:2]:  # otherwise `masks` says so
                image[np.isin(mask, self.options.blank_values)] = BARE
        return image

    def masks(self, item: Item) -> dict[str, Instances]:
        size = size_of(self.root / item.image)
        files = [
            NamedPixels(mask.key, read_mask(self.root / path), str(self.root / path))
            for mask in item.masks
            for path in mask.paths
        ]
        if self.options.other_size == "exclude":
            for file in files:
                if file.values.shape[:2] != size:
                    found = " x ".join(map(str, file.values.shape[:2]))
                    raise LeftOutError(f"{file.where}: {found} px, its image {size[0]} x {size[1]} (height x width)")
        absent = {concept: Instances.separate([], size) for concept in self._annotated(item)}
        return absent | self._coding.decode(files, size)

    def _annotated(self, item: Item) -> tuple[str, ...]:
        if self.options.concept_by is not None:
            return self.spec.concept_names
        return annotated_concepts(self.spec, item.masks)

    def _unclear_files(self, pair: Pair) -> tuple[str, ...]:
        if self.spec.instances == "files" or self.options.annotators is not None:
            return ()
        return next((mask.paths for mask in pair.masks if len(mask.paths) > 1), ())

    def _keyed(self, pair: Pair) -> MaskFiles:
        """The mask files to read, by key of concepts."""
        first_only = self.spec.instances != "files" and self.options.annotators == "first"
        kind = self.options.concept_by
        return tuple(
            KeyFiles(mask.key if kind is None else pair.captured[kind], mask.paths[:1] if first_only else mask.paths)
            for mask in pair.masks
        )


def _coding(spec: DatasetSpec, options: ImageMaskOptions) -> MaskCoding:
    every = options.ignore_values == (ALL,)
    ignored = options.ignore_values if every else (*options.ignore_values, *options.blank_values)
    by_folder = options.concept_by is not None
    return MaskCoding(spec, options.threshold, ignored, options.tolerance, options.fill, by_folder)


def _check_missing_mask_keys(spec: DatasetSpec, missing_mask: MissingMask) -> None:
    if isinstance(missing_mask, dict) and (not isinstance(spec.masks, dict) or set(missing_mask) != set(spec.masks)):
        raise ValueError("options.missing_mask: give one value, or one for each key of masks")
    rules = missing_mask.values() if isinstance(missing_mask, dict) else [missing_mask]
    if "unlabelled" in rules and UNION in spec.concepts:
        raise ValueError(f"options.missing_mask: the concept of {UNION!r} needs the files of all keys, not unlabelled")
