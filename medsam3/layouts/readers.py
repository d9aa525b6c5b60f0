"""The readers by name, and how to open one. A new layout of files is one class and one line here."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from medsam3.layouts.array_stack import ArrayStackReader
from medsam3.layouts.image_mask import ImageMaskReader
from medsam3.layouts.label_volume import LabelVolumeReader
from medsam3.layouts.mat import MatReader
from medsam3.layouts.per_image_shapes import ContourTextReader, LabelmeReader, PolygonXmlReader
from medsam3.layouts.reader import Reader
from medsam3.layouts.shape_tables import CocoReader, RunLengthReader, ViaReader
from medsam3.messages import did_you_mean, listed, one_of
from medsam3.registry.patterns import FilePattern, archives_in, is_junk
from medsam3.registry.spec import DatasetSpec

READERS: dict[str, type[Reader]] = {
    "image_mask": ImageMaskReader,
    "label_volume": LabelVolumeReader,
    "labelme_json": LabelmeReader,
    "polygon_xml": PolygonXmlReader,
    "contour_text": ContourTextReader,
    "coco_json": CocoReader,
    "via_json": ViaReader,
    "rle_csv": RunLengthReader,
    "mat": MatReader,
    "array_stack": ArrayStackReader,
}
PACKAGE = "package:"


def check_reader(spec: DatasetSpec) -> None:
    """Check what the registry cannot: the reader's name, and the options that it alone understands.

    Raises:
        ValueError: names the data set's file, the key, its value and the legal ones.
    """
    where = f"configs/dataset/{spec.name}.yaml"
    one_of(f"{where}: reader", spec.reader, READERS)
    try:
        READERS[spec.reader].check(spec)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


class NotFoundError(ValueError):
    """The folder of a data set is not there."""


def open_reader(spec: DatasetSpec, data_root: Path, cache: Path) -> Reader:
    """The reader of a data set.

    Args:
        data_root: holds the data sets as downloaded, see `find_root`.
        cache: folder of unpacked files; the reader uses a folder `<cache>/<name>`.

    Raises:
        ValueError: see `check_reader` and `find_root`.
    """
    check_reader(spec)
    return READERS[spec.reader](spec, find_root(spec, Path(data_root)), Path(cache) / spec.name)


def find_root(spec: DatasetSpec, data_root: Path) -> Path:
    """The folder of a data set: <data_root>/<root>, or <data_root>/<name>/<root>, or a folder of a Python package.

    Upper and lower case are alike. A folder that holds the folders of the image patterns comes before one that does
    not. What a download unpacks may also lie in <data_root>/<name> itself.

    Raises:
        ValueError: data_root is no folder; the data set is not in it (NotFoundError), or is there twice.
    """
    if spec.root[0].startswith(PACKAGE):
        return _inside_package(spec)
    if not data_root.is_dir():
        raise ValueError(
            f"data.root={data_root}: no such folder; set data.root=<folder that holds the downloaded data sets>"
        )
    named = _in_any_case(data_root, spec.name)
    nested = [_in_any_case(data_root, root) for root in spec.root]
    nested += [_in_any_case(named, root) for root in spec.root if root != spec.name]
    places = list(dict.fromkeys(nested))
    there = [place for place in places if place.is_dir()]
    found = (
        [place for place in there if _holds_images(spec, place)]
        or [place for place in [named] if place.is_dir() and _holds_images(spec, place)]
        or [place for place in there if place != data_root]
    )
    if not found:
        raise NotFoundError(_not_there(spec, data_root, [place for place in [*places, named] if not place.is_dir()]))
    for other in found[1:]:
        if not other.samefile(found[0]):
            raise ValueError(f"data set {spec.name!r}: two copies, {found[0]} and {other}; remove one")
    return found[0]


def _in_any_case(folder: Path, relative: str) -> Path:
    """A path below a folder; where it is not there as written, the same in upper or lower case if that is there."""
    path = folder
    for name in Path(relative).parts:
        if not (path / name).exists() and path.is_dir():
            name = next((there for there in _names_in(path) if there.casefold() == name.casefold()), name)
        path /= name
    return path


def _not_there(spec: DatasetSpec, data_root: Path, places: list[Path]) -> str:
    """What was looked for and what is there instead."""
    named = _in_any_case(data_root, spec.name)
    message = f"data set {spec.name!r}: no folder {' nor '.join(map(str, dict.fromkeys(places)))}."
    if named.is_dir():
        message += f" {named} is there, but holds {listed(_names_in(named)) or 'nothing'}."
    else:
        message += did_you_mean(spec.root[0], [path.name for path in data_root.iterdir() if path.is_dir()])
    wanted = [folder for text in spec.images if (folder := FilePattern(text).folder.partition("/")[0])]
    if wanted and spec.root[0] == ".":
        message += f" It is found by its folder {' or '.join(dict.fromkeys(wanted))}."
    packed = [*archives_in(data_root), *archives_in(named)]
    if packed:
        message += f" Archives are there, still packed: {listed(packed)}."
    return f"{message} Set data.root, or unpack {spec.title} there"


def _names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not is_junk(path.name))


def _holds_images(spec: DatasetSpec, place: Path) -> bool:
    return any((place / FilePattern(text).folder).is_dir() for text in spec.images)


def _inside_package(spec: DatasetSpec) -> Path:
    package, _, folder = spec.root[0].removeprefix(PACKAGE).partition("/")
    found = importlib.util.find_spec(package)  # locates a top-level package without running its code
    if found is None or not found.submodule_search_locations:
        raise NotFoundError(
            f"data set {spec.name!r}: the Python package {package!r} is not installed: pip install {package}"
        )
    path = Path(found.submodule_search_locations[0]) / folder
    if not path.is_dir():
        raise NotFoundError(f"data set {spec.name!r}: the installed package {package!r} has no folder {folder!r}")
    return path
