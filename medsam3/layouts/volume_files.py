"""Volume files by their ending: NIfTI, MetaImage, TIFF and ICS stacks, HDF5, NumPy.

Arrays come as the usual library of the format gives them: NIfTI as [X, Y, Z], the others slowest axis first, [Z, Y, X].
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import SimpleITK as sitk
import tifffile
from numpy.typing import NDArray

Voxels = NDArray[Any]


@dataclass(frozen=True)
class Volume:
    voxels: Voxels  # three axes in the order of the file
    affine: NDArray[np.floating] | None  # [4, 4] voxel -> mm, right-anterior-superior; None: not read from this format


def load_nifti(path: Path) -> Volume:
    image = nibabel.load(path)
    return Volume(np.asarray(image.dataobj), image.affine)  # type: ignore[attr-defined]


def load_meta_image(path: Path) -> Volume:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("MetaImageIO")
    reader.SetFileName(str(path))
    image = reader.Execute()
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise ValueError(f"{image.GetNumberOfComponentsPerPixel()} numbers for each voxel, expected one")
    return Volume(sitk.GetArrayFromImage(image), None)


def load_tiff(path: Path) -> Volume:
    return Volume(tifffile.imread(path), None)


def load_hdf5(path: Path) -> Volume:
    """The one data set of three axes in the file."""
    found: dict[str, h5py.Dataset] = {}

    def collect(name: str, node: h5py.Group | h5py.Dataset) -> None:
        if isinstance(node, h5py.Dataset) and len(_without_trailing_ones(node.shape)) == 3:
            found[name] = node

    with h5py.File(path) as file:
        file.visititems(collect)
        if len(found) != 1:
            raise ValueError(f"expected one data set of 3 axes in the file, found {', '.join(found) or 'none'}")
        return Volume(next(iter(found.values()))[()], None)


def load_numpy(path: Path) -> Volume:
    return Volume(np.load(path, mmap_mode="r", allow_pickle=False), None)


def load_ics(path: Path) -> Volume:
    """Image Cytometry Standard 1 (voxels in the .ids file beside it) and 2 (in the same file)."""
    content = path.read_bytes()
    field, line = (content[place : place + 1].decode("ascii") for place in (0, 1))  # the file names its separators
    header: dict[tuple[str, ...], list[str]] = {}
    position = 2
    while position < len(content):
        end = content.find(line.encode(), position)
        end = len(content) if end < 0 else end
        words = content[position:end].decode("latin-1").strip("\r\n").split(field)
        position = end + 1
        if words[0] == "end":
            break
        header[tuple(words[:2])] = words[2:]
    same_file = ("ics_version", "2.0") in header
    data = content[position:] if same_file else path.with_suffix(".ids").read_bytes()
    if header.get(("representation", "compression"), ["uncompressed"])[0].startswith("gzip"):
        data = gzip.decompress(data)
    return Volume(np.frombuffer(data, _ics_type(header)).reshape(_ics_shape(header)), None)


def _ics_shape(header: dict[tuple[str, ...], list[str]]) -> list[int]:
    """Slowest axis first; the file names the fastest first, after the bits of a voxel."""
    if header["layout", "order"][0] != "bits":
        raise ValueError(f"layout order {header['layout', 'order']}: expected the bits first")
    return [int(size) for size in header["layout", "sizes"][:0:-1]]


def _ics_type(header: dict[tuple[str, ...], list[str]]) -> np.dtype:
    kind, sign = header["representation", "format"][0], header.get(("representation", "sign"), ["unsigned"])[0]
    letter = "f" if kind == "real" else {"integerunsigned": "u", "integersigned": "i"}[kind + sign]
    order = header.get(("representation", "byte_order"), ["1"])
    return np.dtype(f"{'<' if order[0] == '1' else '>'}{letter}{int(header['layout', 'sizes'][0]) // 8}")


LOADERS: dict[str, Callable[[Path], Volume]] = {
    ".nii": load_nifti,
    ".nii.gz": load_nifti,
    ".mha": load_meta_image,
    ".mhd": load_meta_image,
    ".tif": load_tiff,
    ".tiff": load_tiff,
    ".ics": load_ics,
    ".h5": load_hdf5,
    ".hdf5": load_hdf5,
    ".npy": load_numpy,
}


def load_volume(path: Path) -> Volume:
    """Any volume file; trailing axes of length 1 are dropped.

    Raises:
        ValueError: an unknown ending, a file that cannot be read, not three axes, NaN or infinite voxels.
    """
    loader = next((load for ending, load in LOADERS.items() if path.name.lower().endswith(ending)), None)
    if loader is None:
        raise ValueError(f"{path}: no loader for this ending; there are loaders for {', '.join(LOADERS)}")
    try:
        with path.open("rb"):  # not every library says why a file cannot be opened
            volume = loader(path)
    except Exception as error:  # each library has errors of its own
        raise ValueError(f"{path}: cannot be read ({type(error).__name__}: {error})") from error
    voxels = volume.voxels.reshape(_without_trailing_ones(volume.voxels.shape))
    if voxels.ndim != 3:
        raise ValueError(f"{path}: has {voxels.ndim} axes {voxels.shape}, expected 3")
    if np.issubdtype(voxels.dtype, np.floating) and not np.isfinite(voxels).all():
        raise ValueError(f"{path}: holds NaN or infinite voxels")
    return Volume(voxels, volume.affine)


def _without_trailing_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A volume of one slice keeps its three axes."""
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape
