"""Decoders of annotation files: shapes with labels from JSON, CSV, XML and text files."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any
from xml.parsers import expat

import numpy as np

from medsam3.layouts.pixels import unreadable
from medsam3.layouts.shapes import CocoRegion, Outline, RunLengths, Shape, Size

NO_RUNS = ("", "-1")  # what stands in the column of the run lengths if there is no region
XML_OUTLINES = ("0", "1")  # Region/@Type of free-hand regions and rectangles; others (ellipses, rulers) are no outlines


@dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """What an annotation file says about one image."""

    name: str  # file name or id of the image; "" where the file is about one image only
    size: Size | None  # if the file says so
    shapes: tuple[Shape, ...]


def read_labelme(path: Path, shape_types: Sequence[str] | None) -> AnnotatedImage:
    """A labelme file.

    Args:
        shape_types: those to read, of polygon and rectangle; None: polygons, and any other is an error.

    Raises:
        ValueError: not a labelme file, a shape of another type, shapes of which none is of the wanted types.
    """
    content = _read_json(path)
    try:
        shapes = [
            (shape.get("shape_type") or "polygon", _outline(shape["label"], f"shape {index}", shape["points"]))
            for index, shape in enumerate(content["shapes"])
        ]
        size = (content["imageHeight"], content["imageWidth"]) if content.get("imageHeight") else None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: not a labelme file ({error!r})") from error
    found = dict.fromkeys(shape_type for shape_type, _ in shapes)
    wanted = shape_types or ("polygon",)
    if shapes and (not set(found) & set(wanted) or (shape_types is None and len(found) > 1)):
        raise ValueError(f"{path}: shapes of type {', '.join(found)}; name the types to read in options.shape_types")
    kept = [_as_corners(shape) if kind == "rectangle" else shape for kind, shape in shapes if kind in wanted]
    return AnnotatedImage("", size, tuple(kept))


def read_via(path: Path, label: str | None) -> list[AnnotatedImage]:
    """A file of the VGG Image Annotator, versions 1 and 2: polygons, rectangles, circles and ellipses.

    Args:
        label: the region attribute that holds the label; None: shapes get no label.

    Raises:
        ValueError: not such a file, another shape, a region without the attribute.
    """
    content = _read_json(path)
    try:
        images = content.get("_via_img_metadata", content)
        result = []
        for entry in images.values():
            regions = entry["regions"]
            regions = list(regions.values()) if isinstance(regions, dict) else regions
            where = f"{entry['filename']}, region"
            shapes = [_via_shape(region, label, f"{where} {index}") for index, region in enumerate(regions)]
            result.append(AnnotatedImage(entry["filename"], None, tuple(shapes)))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a file of the VGG Image Annotator, or a region without {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return result


def _via_shape(region: dict[str, Any], label: str | None, where: str) -> Outline:
    form = region["shape_attributes"]
    value = region["region_attributes"][label] if label is not None else ""
    if isinstance(value, dict):  # tick boxes
        ticked = [name for name, is_ticked in value.items() if is_ticked]
        if len(ticked) != 1:
            raise ValueError(f"{where}: {len(ticked)} values of {label!r} are ticked, not one")
        value = ticked[0]
    match form["name"]:
        case "polygon":
            points = list(zip(form["all_points_x"], form["all_points_y"], strict=True))
        case "rect":
            x, y = form["x"], form["y"]
            points = _corners((x, y), (x + form["width"], y + form["height"]))
        case "circle" | "ellipse":
            radii = (form.get("rx", form.get("r")), form.get("ry", form.get("r")))
            points = _ellipse((form["cx"], form["cy"]), radii, form.get("theta", 0.0))
        case other:
            raise ValueError(f"{where}: a {other} is no region")
    return _outline(value, where, points)


def read_coco(path: Path, crowd: str | None) -> list[AnnotatedImage]:
    """A COCO file; labels are the names of the categories. Annotations are found by image, never by their own id.

    Args:
        crowd: what a region with iscrowd = 1 is: `shape` (one shape like any other) or `exclude`; None: an error.

    Raises:
        ValueError: not a COCO file, two images of one id, an annotation of an unknown image or category.
    """
    content = _read_json(path)
    try:
        names = {category["id"]: str(category["name"]) for category in content["categories"]}
        images = {image["id"]: image for image in content["images"]}
        if len(images) < len(content["images"]):
            raise ValueError("two images have the same id")
        shapes: dict[Any, list[Shape]] = {image_id: [] for image_id in images}
        for index, annotation in enumerate(content["annotations"]):
            where = f"annotations[{index}]"
            if annotation["image_id"] not in images or annotation["category_id"] not in names:
                ids = f"image_id {annotation['image_id']!r} or category_id {annotation['category_id']!r}"
                raise ValueError(f"{where}: the file does not list its {ids}")
            if annotation.get("iscrowd") and crowd is None:
                raise ValueError(f"{where}: a crowd; set options.crowd to shape or exclude")
            if not (annotation.get("iscrowd") and crowd == "exclude"):
                region = CocoRegion(names[annotation["category_id"]].strip(), where, annotation["segmentation"])
                shapes[annotation["image_id"]].append(region)
        return [
            AnnotatedImage(str(image["file_name"]), (image["height"], image["width"]), tuple(shapes[image_id]))
            for image_id, image in images.items()
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a COCO file ({error!r})") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_run_lengths(path: Path, image: str, runs: str, label: str | None, relative: bool) -> list[AnnotatedImage]:
    """A CSV file with a region per row; several rows of one image are several shapes, a row without runs is none.

    Args:
        image: how the columns name the image, for instance "{subject}_{img}".
        runs: the column of the run lengths.
        label: the column of the labels; None: shapes get no label.
        relative: see RunLengths.

    Raises:
        ValueError: a file that cannot be read, a missing column.
    """
    csv.field_size_limit(2**31 - 1)  # a mask can be longer than the 128 KiB that the module allows
    wanted = [*(name for _, name, _, _ in Formatter().parse(image) if name), runs, *([label] if label else [])]
    shapes: dict[str, list[Shape]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, skipinitialspace=True, restval="")
            rows.fieldnames = [name.strip() for name in rows.fieldnames or ()]
            missing = [name for name in wanted if name not in rows.fieldnames]
            if missing:
                raise ValueError(f"{path}: no column {missing[0]!r}; there are: {', '.join(rows.fieldnames) or 'none'}")
            for row in rows:
                found = shapes.setdefault(image.format_map(row), [])
                text = row[runs].strip()
                if text not in NO_RUNS:
                    name = "" if label is None else row[label].strip()
                    found.append(RunLengths(name, f"line {rows.line_num}", text, relative))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise unreadable(path, error) from error
    return [AnnotatedImage(name, None, tuple(found)) for name, found in shapes.items()]


def read_polygon_xml(path: Path) -> AnnotatedImage:
    """Regions of an Aperio ImageScope file: Annotations/Annotation/Regions/Region/Vertices/Vertex with X and Y.

    Labels are the names of the Annotation layers ("" if they have none).

    Raises:
        ValueError: the file is no XML or not of this kind; a region that is to be cut out, or that is no outline.
    """
    reader = _ImageScopeReader()
    try:
        reader.read(path.read_bytes())
    except OSError as error:
        raise unreadable(path, error) from error
    except (expat.ExpatError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: not a file of ImageScope regions ({error})") from error
    return AnnotatedImage("", None, tuple(reader.shapes))


class _ImageScopeReader:
    """Collects regions while the file is parsed: a tree of the hundred thousand vertices would cost twice the time."""

    def __init__(self) -> None:
        self.shapes: list[Shape] = []
        self._layer = ""
        self._region = ""
        self._points: list[tuple[float, float]] = []
        self._root: str | None = None

    def read(self, content: bytes) -> None:
        parser = expat.ParserCreate()
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.Parse(content, True)

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if self._root is None:
            self._root = name
            if name != "Annotations":
                raise ValueError(f"it begins with <{name}>, not with <Annotations>")
        elif name == "Vertex":
            self._points.append((float(attributes["X"]), float(attributes["Y"])))
        elif name == "Annotation":
            self._layer = attributes.get("Name", "").strip()
        elif name == "Region":
            self._region = f"region {attributes.get('Id', len(self.shapes) + 1)}"
            self._points = []
            if attributes.get("NegativeROA", "0") != "0":
                raise ValueError(f"{self._region} is to be cut out of another, which is not supported")
            if attributes.get("Type", "0") not in XML_OUTLINES:
                raise ValueError(f"{self._region} is of type {attributes['Type']}, no outline")

    def _end(self, name: str) -> None:
        if name == "Region":
            self.shapes.append(Outline(self._layer, self._region, tuple(self._points)))


def read_contour(path: Path, label: str) -> Outline:
    """A text file with one point per line: x and y, separated by blanks, tabs or a comma.

    Raises:
        ValueError: the file cannot be read, or a line does not hold two numbers.
    """
    points = []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error) from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                x, y = (float(text) for text in line.replace(",", " ").split())
            except ValueError as error:
                raise ValueError(f"{path}: line {number}: expected x and y, found {line.strip()[:40]!r}") from error
            points.append((x, y))
    return Outline(label, "contour", tuple(points))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise unreadable(path, error) from error


def _outline(label: Any, where: str, points: Iterable[Any]) -> Outline:
    return Outline(str(label).strip(), where, tuple((float(x), float(y)) for x, y in points))


def _as_corners(shape: Outline) -> Outline:
    """A rectangle that is given by two opposite corners (labelme) as an outline; one of four corners stays."""
    points = _corners(*shape.points_px) if len(shape.points_px) == 2 else shape.points_px
    return Outline(shape.label, shape.where, tuple(points))


def _corners(one: tuple[float, float], other: tuple[float, float]) -> list[tuple[float, float]]:
    return [one, (other[0], one[1]), other, (one[0], other[1])]


def _ellipse(centre: tuple[float, float], radii: tuple[float, float], theta: float) -> list[tuple[float, float]]:
    """An outline of 720 tangents: its area is 0.001 % too large, so that pixels on the ellipse are in it."""
    angles, outside = np.linspace(0, 2 * np.pi, 720, endpoint=False), 1 / np.cos(np.pi / 720)
    x, y = outside * radii[0] * np.cos(angles), outside * radii[1] * np.sin(angles)
    turned = centre[0] + x * np.cos(theta) - y * np.sin(theta), centre[1] + x * np.sin(theta) + y * np.cos(theta)
    return list(zip(*(axis.tolist() for axis in turned), strict=True))
