"""The readers by name, and how to open one. A new layout of files is one class and one line here."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from medsam3.data.image_mask import ImageMaskReader
from medsam3.data.label_volume import LabelVolumeReader
from medsam3.data.patterns import archives_in
from medsam3.data.reader import Reader
from medsam3.data.schema import did_you_mean
from medsam3.data.spec import DatasetSpec

READERS: dict[str, type[Reader]] = {
    "image_mask": ImageMaskReader,
    "label_volume": LabelVolumeReader,
}
PACKAGE = "package:"


class NotFoundError(ValueError):
    """The folder of a data set is not there."""


def open_reader(spec: DatasetSpec, data_root: Path, cache: Path) -> Reader:
    """The reader of a data set.

    Args:
        data_root: holds the data sets as downloaded, see `find_root`.
        cache: folder of unpacked files; the reader uses a folder `<cache>/<name>`.

    Raises:
        ValueError: see `find_root`.
    """
    return READERS[spec.reader](spec, find_root(spec, Path(data_root)), Path(cache) / spec.name)


def find_root(spec: DatasetSpec, data_root: Path) -> Path:
    """The folder of a data set: <data_root>/<root>, or <data_root>/<name>/<root>, or a folder of a Python package.

    Raises:
        ValueError: data_root is no folder; the data set is not in it (NotFoundError), or is there twice.
    """
    if spec.root.startswith(PACKAGE):
        return _inside_package(spec)
    if not data_root.is_dir():
        raise ValueError(
            f"data.root={data_root}: no such folder; set data.root=<folder that holds the downloaded data sets>"
        )
    places = list(dict.fromkeys([data_root / spec.root, data_root / spec.name / spec.root]))
    found = [place for place in places if place.is_dir()]
    if not found:
        there = [path.name for path in data_root.iterdir() if path.is_dir()]
        packed = archives_in(data_root)
        hint = f" Archives are there, still packed: {', '.join(packed[:5])}." if packed else ""
        raise NotFoundError(
            f"data set {spec.name!r}: no folder {places[0]} (nor {places[-1]}).{did_you_mean(spec.root, there)}{hint} "
            f"Set data.root, or unpack {spec.title} there"
        )
    if len(found) > 1 and not found[0].samefile(found[1]):
        raise ValueError(f"data set {spec.name!r}: two copies, {found[0]} and {found[1]}; remove one")
    return found[0]


def _inside_package(spec: DatasetSpec) -> Path:
    package, _, folder = spec.root.removeprefix(PACKAGE).partition("/")
    found = importlib.util.find_spec(package)  # locates a top-level package without running its code
    if found is None or not found.submodule_search_locations:
        raise NotFoundError(
            f"data set {spec.name!r}: the Python package {package!r} is not installed: pip install {package}"
        )
    path = Path(found.submodule_search_locations[0]) / folder
    if not path.is_dir():
        raise NotFoundError(f"data set {spec.name!r}: the installed package {package!r} has no folder {folder!r}")
    return path
