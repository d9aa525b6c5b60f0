"""Readers of annotation files that are about many images: `coco_json`, `via_json`, `rle_csv`. See annotated.py.

`options.annotations` names the files instead of `masks`; its placeholders tell which images a file is about. The shapes
of an image are kept in its item, so no annotation file is read again.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from medsam3.layouts.per_image_shapes import AnnotationOptions, AnnotationReader
from medsam3.layouts.reader import Item, Listing, Problem
from medsam3.layouts.shape_files import AnnotatedImage, read_coco, read_run_lengths, read_via
from medsam3.messages import one_of
from medsam3.registry.patterns import FilePattern, list_files, one_sign
from medsam3.registry.spec import DatasetSpec

Captured = dict[str, str]  # placeholder -> text


@dataclass(frozen=True, kw_only=True)
class TableOptions(AnnotationOptions):
    # Patterns of the annotation files; or {pattern: the keys of concepts that its files are about}, where an image of
    # one file says nothing about the concepts of another.
    annotations: dict[str, tuple[int | str, ...]] | tuple[str, ...]


@dataclass(frozen=True)
class _Table:
    path: str
    captured: Captured
    keys: tuple[int | str, ...]  # of the concepts that it is about


@dataclass(frozen=True, slots=True)
class TableEntry:
    """What an annotation file says about one image, and the keys of the concepts that the file is about."""

    file: str
    keys: tuple[int | str, ...]
    annotation: AnnotatedImage


class AnnotationTableReader(AnnotationReader):
    """Annotation files that name their images, with or without folders and ending."""

    Options: ClassVar[type] = TableOptions

    @classmethod
    def check(cls, spec: DatasetSpec) -> Any:
        options: TableOptions = super().check(spec)
        if spec.masks is not None:
            raise ValueError(f"masks: the reader {spec.reader} has options.annotations instead")
        shared = {name for text in spec.images for name in FilePattern(text).names} - {"id"}
        for text, keys in _keys_by_pattern(spec, options).items():
            for key in keys:
                one_of(f"options.annotations: {text}", key, list(spec.concepts))
            if not set(FilePattern(text).names) <= shared:
                raise ValueError(
                    f"options.annotations={text!r}: its placeholders must be some of those of images other than {{id}} "
                    f"({', '.join(sorted(shared)) or 'there are none'})"
                )
        return options

    @abstractmethod
    def _read(self, path: Path) -> list[AnnotatedImage]:
        """Decode one file."""

    def find(self) -> Listing:
        images, tables, problems = self._files()
        if images and not tables:
            raise ValueError(f"{self.root}: no file fits options.annotations: {' | '.join(self.options.annotations)}")
        found: dict[str, Item] = {}
        without: dict[str, _Table | None] = dict.fromkeys(images)  # images that no table names so far
        for table in tables:
            its_images = [path for path, texts in images.items() if table.captured.items() <= texts.items()]
            without |= dict.fromkeys(its_images, table)
            names = _by_name(its_images)
            for annotation in self._read(self.root / table.path):
                paths = _fitting(annotation.name, names)
                if len(paths) != 1:
                    what = f"fits several images ({', '.join(paths)})" if paths else "there is no such image"
                    problems.append(Problem(annotation.name, f"{self.root / table.path}: annotated, but {what}"))
                elif paths[0] in found:
                    problems.append(Problem(annotation.name, f"{self.root / table.path}: annotated twice"))
                else:
                    found[paths[0]] = _item(paths[0], images, table, annotation)
        missing = self.options.missing_mask
        for path in sorted(without.keys() - found.keys()):
            nearest = without[path]
            if nearest is not None and missing == "absent":
                found[path] = _item(path, images, nearest, AnnotatedImage("", None, ()))
            else:
                what = "image without annotation" if nearest else "image without annotation file"
                problems.append(Problem(_id(images[path]), f"{path}: {what}", missing in ("exclude", "unlabelled")))
        return Listing(list(found.values()), problems)

    def _files(self) -> tuple[dict[str, Captured], list[_Table], list[Problem]]:
        """Images with what their placeholders are, annotation files, and a problem for each file to ignore."""
        image_patterns = [FilePattern(text) for text in self.spec.images]
        keys = {FilePattern(text): keys for text, keys in _keys_by_pattern(self.spec, self.options).items()}
        there = list_files(self.root, [*image_patterns, *keys])
        ignored = self.spec.ignore_files
        problems = [Problem(path, ignored[path], expected=True) for path in there if path in ignored]
        files = [path for path in there if path not in ignored]
        images = {path: captured for path in files if (captured := _captured(image_patterns, path)) is not None}
        tables = [
            _Table(path, captured, keys[pattern])
            for path in files
            for pattern in keys
            if (captured := pattern.match(path)) is not None
        ]
        return images, tables, problems

    def _annotation(self, item: Item) -> AnnotatedImage:
        entry: TableEntry = item.masks
        return entry.annotation

    def _keys(self, item: Item) -> Iterable[int | str]:
        entry: TableEntry = item.masks
        return entry.keys

    def _source(self, item: Item) -> str:
        return f"{self.root / item.masks.file}: {item.masks.annotation.name}"


@dataclass(frozen=True, kw_only=True)
class CocoOptions(TableOptions):
    crowd: str | None = None  # what a region with iscrowd = 1 is: shape | exclude; an error if not said


class CocoReader(AnnotationTableReader):
    """COCO JSON; labels are the names of the categories."""

    Options: ClassVar[type] = CocoOptions

    @classmethod
    def check(cls, spec: DatasetSpec) -> CocoOptions:
        options: CocoOptions = super().check(spec)
        if options.crowd is not None:
            one_of("options.crowd", options.crowd, ("shape", "exclude"))
        return options

    def _read(self, path: Path) -> list[AnnotatedImage]:
        return read_coco(path, self.options.crowd)


@dataclass(frozen=True, kw_only=True)
class ViaOptions(TableOptions):
    label: str | None = None  # the region attribute that holds the label


class ViaReader(AnnotationTableReader):
    """JSON of the VGG Image Annotator."""

    Options: ClassVar[type] = ViaOptions

    def _read(self, path: Path) -> list[AnnotatedImage]:
        return read_via(path, self.options.label)


@dataclass(frozen=True, kw_only=True)
class RunLengthOptions(TableOptions):
    image: str  # how the columns name an image: "{ImageId}", "{subject}_{img}"
    runs: str  # column of the run lengths
    starts: str  # absolute (the first pixel is 1) | relative (to the end of the run before)
    label: str | None = None  # column of the labels


class RunLengthReader(AnnotationTableReader):
    """CSV with run lengths."""

    Options: ClassVar[type] = RunLengthOptions

    @classmethod
    def check(cls, spec: DatasetSpec) -> RunLengthOptions:
        options: RunLengthOptions = super().check(spec)
        one_of("options.starts", options.starts, ("absolute", "relative"))
        return options

    def _read(self, path: Path) -> list[AnnotatedImage]:
        options: RunLengthOptions = self.options
        return read_run_lengths(path, options.image, options.runs, options.label, options.starts == "relative")


def _keys_by_pattern(spec: DatasetSpec, options: TableOptions) -> dict[str, tuple[int | str, ...]]:
    if isinstance(options.annotations, dict):
        return options.annotations
    return dict.fromkeys(options.annotations, tuple(spec.concepts))


def _captured(patterns: list[FilePattern], path: str) -> Captured | None:
    """What the placeholders of the first fitting pattern are."""
    return next((captured for pattern in patterns if (captured := pattern.match(path)) is not None), None)


def _by_name(paths: Iterable[str]) -> dict[str, list[str]]:
    """Paths by file name and by file name without its ending."""
    result: dict[str, list[str]] = {}
    for path in paths:
        name = one_sign(PurePosixPath(path).name)
        for key in dict.fromkeys((name, name.rpartition(".")[0])):
            result.setdefault(key, []).append(path)
    return result


def _fitting(name: str, paths: dict[str, list[str]]) -> list[str]:
    """The images that an annotation file can mean by a name; folders in it count where the name alone is not enough."""
    parts = PurePosixPath(one_sign(name).replace("\\", "/"))
    found = paths.get(parts.name, [])
    if len(found) < 2:
        return found
    return [path for path in found if f"/{one_sign(path)}".endswith(f"/{parts}")] or found


def _item(path: str, images: dict[str, Captured], table: _Table, annotation: AnnotatedImage) -> Item:
    item_id = _id(images[path])
    return Item(item_id, group=item_id, image=path, masks=TableEntry(table.path, table.keys, annotation))


def _id(captured: Captured) -> str:
    return "/".join(captured.values())
