"""Readers of annotation files, which hold shapes instead of mask images; here those with a file for each image:
`labelme_json`, `polygon_xml`, `contour_text`. Those with a file for many images are in annotation_tables.py.

Keys of `concepts` are the labels of the shapes. The key "*" is the union of all labels; alone it takes shapes of any
label or of none, beside others a label that is no key is an error all the same.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from medsam3.layouts.instances import Instances
from medsam3.layouts.mask_coding import ALL, Key
from medsam3.layouts.pairing import check_missing_mask, pair_files
from medsam3.layouts.pixels import read_image, size_of
from medsam3.layouts.reader import Item, Listing, Problem, Reader
from medsam3.layouts.shape_files import AnnotatedImage, read_contour, read_labelme, read_polygon_xml
from medsam3.layouts.shapes import Patch, Shape, Size, UnusableShapeError
from medsam3.messages import one_of
from medsam3.registry.spec import UNION, DatasetSpec

INSTANCES = ("whole", "components", "labels")
UNUSABLE_SHAPES = ("error", "exclude")


@dataclass(frozen=True, kw_only=True)
class AnnotationOptions:
    """See `pair_files` for the first, `to_8_bit` for the last two."""

    missing_mask: str = "error"
    unusable_shapes: str = "error"  # less than three points, or outside the image: error | exclude (and list) the shape
    ignore_labels: tuple[str, ...] = ()  # labels that are no concept; ["all"]: every one that is no key of concepts
    window: tuple[float, float] | None = None
    percentiles: tuple[float, float] | None = None


class AnnotationReader(Reader):
    """Images whose masks are shapes with labels. Subclasses give `find`, `_annotation` and `_source`.

    instances: labels makes each shape an instance; whole and components look at the union of a concept's shapes.
    """

    Options: ClassVar[type] = AnnotationOptions

    @classmethod
    def check(cls, spec: DatasetSpec) -> Any:
        options = super().check(spec)
        check_missing_mask(options.missing_mask)
        one_of("options.unusable_shapes", options.unusable_shapes, UNUSABLE_SHAPES)
        one_of(f"instances of the reader {spec.reader}", spec.instances, INSTANCES)
        for label in options.ignore_labels:
            if label in map(str, spec.concepts):
                raise ValueError(f"options.ignore_labels: {label!r} is a key of concepts too")
        return options

    @abstractmethod
    def _annotation(self, item: Item) -> AnnotatedImage:
        """The shapes of an item; none where options.missing_mask says that no file means no shape."""

    @abstractmethod
    def _source(self, item: Item) -> str:
        """The annotation file of an item, for messages."""

    def listing(self, splits: Path | None = None) -> Listing:
        """As for every reader. With unusable_shapes: exclude every annotation file is read to list those shapes."""
        found = super().listing(splits)
        if self.options.unusable_shapes == "error":
            return found
        problems = [problem for item in found.items for problem in self._unusable_shapes(item)]
        return Listing(found.items, sorted([*found.problems, *problems], key=lambda p: (p.item, p.reason)))

    def image(self, item: Item) -> NDArray[np.uint8]:
        return read_image(self.root / item.image, self.options.window, self.options.percentiles)

    def masks(self, item: Item) -> dict[str, Instances]:
        size = size_of(self.root / item.image)
        concepts = {str(key): self.spec.concepts[key] for key in self._keys(item)}
        patches: dict[str, list[Patch]] = {concept: [] for concept in concepts.values()}
        for shape, patch in self._patches(item, size):
            for concept in self._concepts_of(shape.label, concepts, f"{self._source(item)}: {shape.where}"):
                if isinstance(patch, Patch):
                    patches[concept].append(patch)
        return {concept: self._instances(concept, found, size) for concept, found in patches.items()}

    def _keys(self, item: Item) -> Iterable[int | str]:
        """The keys of concepts that somebody looked for in the image."""
        return self.spec.concepts

    def _patches(self, item: Item, size: Size) -> Iterator[tuple[Shape, Patch | str]]:
        """The shapes of an item with their pixels, or with the reason why a shape is left out."""
        annotation = self._annotation(item)
        if annotation.size is not None and annotation.size != size:
            turned = " (was the picture turned after it was annotated?)" if annotation.size == size[::-1] else ""
            raise ValueError(
                f"{self._source(item)}: made for {annotation.size[0]} x {annotation.size[1]} px, its image "
                f"{self.root / item.image} has {size[0]} x {size[1]} (height x width){turned}"
            )
        for shape in annotation.shapes:
            where = f"{self._source(item)}: {shape.where}"
            try:
                yield shape, shape.pixels(size)
            except UnusableShapeError as error:
                if self.options.unusable_shapes == "error":
                    raise ValueError(f"{where}: {error}; options.unusable_shapes: exclude leaves it out") from error
                yield shape, f"{where}: {error}"
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error

    def _unusable_shapes(self, item: Item) -> list[Problem]:
        try:
            patches = list(self._patches(item, size_of(self.root / item.image)))
        except ValueError:  # said again by whoever reads the masks, with everything else that is wrong with the item
            return []
        return [Problem(item.id, reason, expected=True) for _, reason in patches if isinstance(reason, str)]

    def _concepts_of(self, label: str, concepts: dict[str, str], where: str) -> list[str]:
        """The concepts of a shape, of those that its file is about by label."""
        if label in concepts or set(concepts) == {UNION}:
            return list(dict.fromkeys(concepts[key] for key in (label, UNION) if key in concepts))
        ignored = self.options.ignore_labels
        if label in ignored or ignored == (ALL,):
            return []
        raise ValueError(
            f"{where}: unknown label {label!r} (known: {', '.join([*concepts, *ignored])}); add it to concepts or "
            "options.ignore_labels"
        )

    def _instances(self, concept: str, patches: list[Patch], size: Size) -> Instances:
        how = self.spec.instances_of(concept)
        if how == "labels":
            kept = [patch for patch in patches if np.count_nonzero(patch.mask) >= self.spec.min_area_px]
            boxes_px = np.asarray([patch.box_px for patch in kept], np.int32).reshape(-1, 4)
            return Instances(size, boxes_px, tuple(patch.mask for patch in kept), dropped=len(patches) - len(kept))
        union = np.zeros(size, dtype=bool)
        for patch in patches:
            left, top, right, bottom = patch.box_px
            union[top:bottom, left:right] |= patch.mask
        return Instances.components(union, self.spec.min_area_px) if how == "components" else Instances.whole(union)


class FilePerImageReader(AnnotationReader):
    """Annotation files that belong to images by the pattern `masks`, as mask images do."""

    @classmethod
    def check(cls, spec: DatasetSpec) -> Any:
        if spec.masks is None:
            raise ValueError(f"masks: the reader {spec.reader} needs the pattern of its annotation files")
        options = super().check(spec)
        if options.missing_mask == "unlabelled" and UNION in spec.concepts:
            raise ValueError(f"options.missing_mask: unlabelled: the concept of {UNION!r} needs the files of all keys")
        return options

    def find(self) -> Listing:
        pairs, problems = pair_files(self.spec, self.root, self.options.missing_mask)
        if pairs and not any(mask.paths for pair in pairs for mask in pair.masks):
            raise ValueError(f"{self.root}: {len(pairs)} images, but no file fits masks: {self.spec.masks}")
        return Listing([Item(pair.id, group=pair.id, image=pair.image, masks=pair.masks) for pair in pairs], problems)

    @abstractmethod
    def _read(self, path: Path, key: Key) -> AnnotatedImage:
        """Decode one file; `key` is its key in `masks`, if these are several."""

    def _annotation(self, item: Item) -> AnnotatedImage:
        files = [self._read(self.root / path, mask.key) for mask in item.masks for path in mask.paths]
        sizes = [file.size for file in files if file.size is not None]
        return AnnotatedImage("", sizes[0] if sizes else None, tuple(shape for file in files for shape in file.shapes))

    def _keys(self, item: Item) -> Iterable[int | str]:
        keys = {mask.key for mask in item.masks}
        return [key for key in self.spec.concepts if None in keys or key in keys or key == UNION]

    def _source(self, item: Item) -> str:
        return ", ".join(str(self.root / path) for mask in item.masks for path in mask.paths)


@dataclass(frozen=True, kw_only=True)
class LabelmeOptions(AnnotationOptions):
    shape_types: tuple[str, ...] | None = None  # polygon, rectangle: those to read; the others are left out


class LabelmeReader(FilePerImageReader):
    """A labelme JSON file per image."""

    Options: ClassVar[type] = LabelmeOptions

    @classmethod
    def check(cls, spec: DatasetSpec) -> LabelmeOptions:
        options: LabelmeOptions = super().check(spec)
        for shape_type in options.shape_types or ():
            one_of("options.shape_types", shape_type, ("polygon", "rectangle"))
        return options

    def _read(self, path: Path, key: Key) -> AnnotatedImage:
        return read_labelme(path, self.options.shape_types)


class PolygonXmlReader(FilePerImageReader):
    """An Aperio ImageScope XML file per image; labels are the names of its layers."""

    def _read(self, path: Path, key: Key) -> AnnotatedImage:
        return read_polygon_xml(path)


class ContourTextReader(FilePerImageReader):
    """A text file per outline; its key in `masks` is its label."""

    def _read(self, path: Path, key: Key) -> AnnotatedImage:
        return AnnotatedImage("", None, (read_contour(path, "" if key is None else str(key)),))
