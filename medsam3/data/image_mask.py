"""Reader `image_mask`: an image file and its mask files, paired by file name (PNG, JPEG, GIF, BMP, TIFF, PPM)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from medsam3.data.instances import Instances
from medsam3.data.mask_coding import MaskCoding, NamedPixels
from medsam3.data.pairing import Pair, check_missing_mask, pair_files
from medsam3.data.pixels import read_image, read_mask, size_of
from medsam3.data.reader import Item, Listing, Problem, Reader, listed
from medsam3.data.spec import DatasetSpec

ANNOTATORS = ("first", "union")


@dataclass(frozen=True)
class ImageMaskOptions:
    """See MaskCoding for the first three, `pair_files` for the fourth, `to_8_bit` for the last two."""

    threshold: dict[int | str, float] | float | None = None
    ignore_values: tuple[int | str, ...] = ()
    tolerance: float = 0.0  # largest distance in RGB to a colour of concepts
    missing_mask: str = "error"
    annotators: str | None = None  # several mask files of one image: first | union
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
        if options.annotators is not None and options.annotators not in ANNOTATORS:
            raise ValueError(f"options.annotators={options.annotators!r}: must be one of {', '.join(ANNOTATORS)}")
        _coding(spec, options)
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
                items.append(Item(pair.id, group=pair.id, image=pair.image, masks=self._chosen(pair)))
        return Listing(items, problems)

    def image(self, item: Item) -> NDArray[np.uint8]:
        return read_image(self.root / item.image, self.options.window, self.options.percentiles)

    def masks(self, item: Item) -> dict[str, Instances]:
        size = size_of(self.root / item.image)
        files = [
            NamedPixels(key, read_mask(self.root / path), str(self.root / path))
            for key, paths in item.masks
            for path in paths
        ]
        result = self._coding.decode(files, size)
        for key, paths in item.masks:
            if not paths:  # options.missing_mask: absent
                concepts = self.spec.concept_names if key is None else (self.spec.concepts[key],)
                result |= {concept: Instances.separate([], size) for concept in concepts if concept not in result}
        return result

    def _unclear_files(self, pair: Pair) -> tuple[str, ...]:
        if self.spec.instances == "files" or self.options.annotators is not None:
            return ()
        return next((paths for _, paths in pair.masks if len(paths) > 1), ())

    def _chosen(self, pair: Pair) -> tuple[tuple[int | str | None, tuple[str, ...]], ...]:
        if self.spec.instances == "files" or self.options.annotators != "first":
            return pair.masks
        return tuple((key, paths[:1]) for key, paths in pair.masks)


def _coding(spec: DatasetSpec, options: ImageMaskOptions) -> MaskCoding:
    return MaskCoding(spec, options.threshold, options.ignore_values, options.tolerance)
